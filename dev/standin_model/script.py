"""Write scripts with these: generators that yield the tool calls they need next, and are sent the results.

A domain's scripts are written with these; a conversation's own are below.
"""

import re
import textwrap
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

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
class Examples:
    """Holds what the development commands and the page say, call and look for, to try a domain."""

    add: str
    """A message that adds one thing, with one call of the first tool of `calls`."""
    added: str
    """The text of that thing."""
    show: str
    """A message that lists the things, with one call of the second tool of `calls`."""
    more: tuple[str, ...]
    """Further messages to suggest on the page."""
    calls: tuple[tuple[str, Json], ...]
    """Each tool once, in an order that works on an empty table, where the first thing has the id 1."""
    table: str
    text: str
    """The column of the things' text, and the name of the first tool's argument for it."""
    scopes: tuple[str, ...]
    """All scopes of the toolset."""

    @property
    def add_and_show(self) -> str:
        """A message that does both."""
        return f"{self.add}, then {self.show[0].lower()}{self.show[1:]}"

    @property
    def tools(self) -> tuple[str, ...]:
        """The names of all tools."""
        return tuple(tool for tool, _ in self.calls)


@dataclass(frozen=True, slots=True)
class Domain:
    """Holds all that the stand-in and the development commands know of a domain."""

    understand: Callable[[str], list[Wish]]
    """Reads a message."""
    help: str
    """Says what is understood, after a sentence that was not."""
    examples: Examples
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


def any_domain(clause: str) -> Wish | None:
    """Return the wish of a clause that means the same in every domain: to recall, or to simulate a fault."""
    for pattern, make in _ANY_DOMAIN:
        if pattern.fullmatch(clause):
            return make(clause)
    return None


def recall_message() -> Wish:
    """Say what was said before the current message."""
    return Wish(lambda conversation: say(Outcome(_last_said(conversation.turns[:-1]))))


def recall_tools() -> Wish:
    """Say which tools were called in earlier turns."""
    return Wish(lambda conversation: say(Outcome(_tools_used(conversation.turns[:-1]))))


def simulate(said: str) -> Wish:
    """Say that a fault has struck, which it has by the time that this is read."""
    return Wish(lambda _: say(Outcome(_simulated(said))))


_ANY_DOMAIN: Final[tuple[tuple[re.Pattern[str], Callable[[str], Wish]], ...]] = (
    (re.compile(r"what did i (?:just )?(?:say|write|ask)\b.*", re.IGNORECASE | re.DOTALL), lambda _: recall_message()),
    (re.compile(r"(?:which|what) tools (?:did|have) you use.*", re.IGNORECASE | re.DOTALL), lambda _: recall_tools()),
    (re.compile(r"simulate .+", re.IGNORECASE | re.DOTALL), simulate),
)


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
