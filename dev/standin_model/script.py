"""Define what a script is made of: a generator that yields the tool calls it needs next, and is sent their results.

The scripts of the domain are in dev/standin_model/tasks; those about the conversation itself are below.
"""

import textwrap
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

from .conversation import Conversation, Json, Turn
from .faults import simulated_fault

NOT_UNDERSTOOD = "I did not understand"
ECHO_LENGTH = 60  # characters of the user's message that an answer repeats


class Trouble(Exception):
    """Raised in a script that cannot fulfil its wish; its text is the answer's sentence."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A tool call that a script needs."""

    tool: str
    arguments: Json


@dataclass(frozen=True, slots=True)
class Result:
    """Holds a tool's result: as text, and as an object if it is one. If it is none, the text is the tool's error."""

    text: str
    value: Json | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A part of the answer. Neighbours with the same verb become one sentence; one without a verb is a sentence."""

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
    """Holds the stand-in's knowledge of a domain."""

    understand: Callable[[str], list[Wish]]
    """Reads a message."""
    help: str
    """Lists the sentences that are understood, after one that was not."""
    reads: frozenset[str] = field(default_factory=frozenset)
    """Tools that change nothing."""
    key: str = ""
    """The argument that names the row a tool changes: two calls with the same one are not made in parallel."""


def say(outcome: Outcome) -> Script:
    """Run a script without any call; `yield from` nothing makes it a generator."""
    yield from ()
    return [outcome]


def unclear(text: str) -> Wish:
    """Return the wish for a text that was not understood."""
    return Wish(lambda _: say(Outcome(f"\u201c{short(text)}\u201d", NOT_UNDERSTOOD)))


def recall_message() -> Wish:
    """Return the wish to repeat the message before the current one."""
    return Wish(lambda conversation: say(Outcome(_last_said(conversation.turns[:-1]))))


def recall_tools() -> Wish:
    """Return the wish to name the tools of earlier turns."""
    return Wish(lambda conversation: say(Outcome(_tools_used(conversation.turns[:-1]))))


def simulate(message: str) -> Wish:
    """Return the wish to report a simulated fault: the request was answered with it before this runs."""
    return Wish(lambda _: say(Outcome(_simulated(message))))


def _last_said(earlier: list[Turn]) -> str:
    return f"You said: {earlier[-1].message}" if earlier else "You said nothing before this."


def _simulated(message: str) -> str:
    name = simulated_fault(message)
    return f"Simulated {name}." if name else f"I know no such fault: {short(message)}."


def _tools_used(turns: Iterable[Turn]) -> str:
    names = list(dict.fromkeys(made.call.name for turn in turns for made in turn.calls))
    return f"Earlier I used {enumerate_names(names)}." if names else "I have used no tools before this."


def clause(error: str) -> str:
    """Return a tool's error sentence without its full stop, for use inside another sentence."""
    return error.strip().rstrip(".") or "the tool did not say why"


def short(text: str) -> str:
    """Return the text, cut to ECHO_LENGTH."""
    return textwrap.shorten(text, ECHO_LENGTH, placeholder="\u2026")


def enumerate_names(names: Iterable[str]) -> str:
    """Return "a, b and c"."""
    *first, last = list(names)
    return f"{', '.join(first)} and {last}" if first else last
