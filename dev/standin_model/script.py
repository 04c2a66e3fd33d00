"""Write scripts with these: generators that yield the tool calls they need next, and are sent the results.

A domain's scripts (dev/standin_model/tasks) are written with these; a conversation's own are below.
"""

import textwrap
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

from .conversation import Conversation, Json, Turn
from .faults import simulated

NOT_UNDERSTOOD = "I did not understand"
ECHO_LENGTH = 60  # characters of what the person wrote that a sentence repeats


class Trouble(Exception):
    """Raised in a script when its wish cannot be fulfilled; its text is the sentence to say."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A tool call that a script needs."""

    tool: str
    arguments: Json


@dataclass(frozen=True, slots=True)
class Result:
    """Holds a tool's answer: as text, and as an object if it is one. If it is none, the text says what went wrong."""

    text: str
    value: Json | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Something to say. Neighbours with the same verb become one sentence; without a verb it is a sentence already."""

    detail: str
    verb: str = ""


Script = Generator[list[Ask], Any, list[Outcome]]
Steps = Generator[list[Ask], Any, list[Json]]


@dataclass(frozen=True, slots=True)
class Wish:
    """Holds one thing that a message asks for, and starts its script. A `tells` wish waits for all wishes before it."""

    start: Callable[[Conversation], Script]
    tells: bool = False


@dataclass(frozen=True, slots=True)
class Domain:
    """Holds all that the stand-in knows of a domain."""

    understand: Callable[[str], list[Wish]]
    """Reads a message."""
    help: str
    """Says what is understood, after a sentence that was not."""
    reads: frozenset[str] = field(default_factory=frozenset)
    """Tools that change nothing."""
    key: str = ""
    """The argument that names what a tool changes: two calls with one key are not made side by side."""


def say(outcome: Outcome) -> Script:
    """A script without any call; `yield from` nothing makes it a generator."""
    yield from ()
    return [outcome]


def unclear(text: str) -> Wish:
    """A wish that was not understood."""
    return Wish(lambda _: say(Outcome(f"\u201c{short(text)}\u201d", NOT_UNDERSTOOD)))


def recall_message() -> Wish:
    """Say what was said before the current message."""
    return Wish(lambda conversation: say(Outcome(_last_said(conversation.turns[:-1]))))


def recall_tools() -> Wish:
    """Say which tools were called in earlier turns."""
    return Wish(lambda conversation: say(Outcome(_tools_used(conversation.turns[:-1]))))


def simulate(said: str) -> Wish:
    """Say that a fault has struck, which it has by the time that this is read."""
    return Wish(lambda _: say(Outcome(_simulated(said))))


def _last_said(earlier: list[Turn]) -> str:
    return f"You said: {earlier[-1].said}" if earlier else "You said nothing before this."


def _simulated(said: str) -> str:
    name = simulated(said)
    return f"Simulated {name}." if name else f"I know no such fault: {short(said)}."


def _tools_used(turns: Iterable[Turn]) -> str:
    names = list(dict.fromkeys(made.call.name for turn in turns for made in turn.calls))
    return f"Earlier I used {enumerate_names(names)}." if names else "I have used no tools before this."


def clause(error: str) -> str:
    """A tool's error sentence, to stand inside another sentence."""
    return error.strip().rstrip(".") or "the tool did not say why"


def short(text: str) -> str:
    return textwrap.shorten(text, ECHO_LENGTH, placeholder="\u2026")


def enumerate_names(names: Iterable[str]) -> str:
    *first, last = list(names)
    return f"{', '.join(first)} and {last}" if first else last
