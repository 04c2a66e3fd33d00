"""Define what a script is made of: a generator that yields the tool calls it needs next, and is sent their results.

A script of a domain is in its package; those about the conversation itself are below.
"""

import json
import re
import textwrap
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from .conversation import Conversation, Json, Turn
from .faults import AskedFault

NOT_UNDERSTOOD = "I did not understand"
HELLO = "Hello."
WELCOME = "You are welcome."
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

    @classmethod
    def read(cls, output: str) -> "Result":
        """Read a tool's output, without the tag around it if there is one."""
        tagged = re.fullmatch(r"<(\w+)>(.*)</\1>", output, re.DOTALL)
        try:
            value = json.loads(tagged[2] if tagged else output)
        except ValueError:
            value = None
        return cls(output, value if isinstance(value, dict) else None)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A part of the answer. Neighbours with the same verb become one sentence; one without a verb is a sentence."""

    detail: str
    verb: str = ""
    needs_help: bool = False
    """The answer ends with the domain's help."""


Script = Generator[list[Ask], Any, list[Outcome]]
Steps = Generator[list[Ask], Any, list[Json]]


@dataclass(frozen=True, slots=True)
class Wish:
    """Holds one thing that a message asks for, and starts its script."""

    start: Callable[[Conversation], Script]
    tells: bool = False
    """The script waits for all wishes before it."""
    is_talk: bool = False
    """The wish counts only in a message without any other."""


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
    """Holds what the stand-in and the development commands know of a domain."""

    understand: Callable[[str], list[Wish]]
    """Reads a message."""
    help: str
    """Lists the sentences that are understood, after one that was not."""
    examples: Examples
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
    return Wish(lambda _: say(not_understood(text)))


def not_understood(text: str) -> Outcome:
    """Return the outcome for a text that was not understood."""
    return Outcome(f"\u201c{short(text)}\u201d", NOT_UNDERSTOOD, needs_help=True)


def any_domain(clause: str) -> Wish | None:
    """Return the wish of a clause that means the same in every domain: to talk, to recall, or to fail."""
    for pattern, text in _SMALL_TALK:
        if pattern.fullmatch(clause):
            return talk(text)
    for pattern, make in _ANY_DOMAIN:
        if pattern.fullmatch(clause):
            return make(clause)
    return None


def talk(text: str) -> Wish:
    """Return the wish for small talk. The answer to a greeting, or to a question about the model, has the help."""
    return Wish(lambda _: say(Outcome(text, needs_help=text in ("", HELLO))), is_talk=True)


def recall_message() -> Wish:
    """Return the wish to repeat the message before the current one."""
    return Wish(lambda conversation: say(Outcome(_last_said(conversation.turns[:-1]))))


def recall_tools() -> Wish:
    """Return the wish to name the tools of earlier turns."""
    return Wish(lambda conversation: say(Outcome(_tools_used(conversation.turns[:-1]))))


def tell_time() -> Wish:
    """Return the wish to repeat the day and the time in the context line."""
    return Wish(lambda conversation: say(Outcome(_time(conversation.turn))))


def fail(message: str) -> Wish:
    """Return the wish to report the fault that the message asks for: it has happened before this runs."""
    asked = AskedFault.find(message)
    text = f"Simulated {asked.name}." if asked else f"I know no such fault: {short(message)}."
    return Wish(lambda _: say(Outcome(text)))


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text, re.IGNORECASE | re.DOTALL)


_SMALL_TALK: Final = (
    (_pattern(r"(?:hi|hello|hey|hiya|howdy|yo|good (?:morning|afternoon|evening|day))(?: there| again)?"), HELLO),
    (_pattern(r"how (?:are you|is it going)\b.*|(?:who|what) are you\b.*|are you .*"), ""),
    (_pattern(r"what(?: is|'s) (?:this|your name)|how does (?:this|it) work"), ""),
    (_pattern(r"(?:please |i need (?:some )?)?help(?: me)?"), ""),
    (_pattern(r"what (?:can|do|could) (?:you|i) (?:do|say|ask|understand)\b.*"), ""),
    (_pattern(r"(?:many )?(?:thanks|thank you|thx|cheers)(?: (?:so|very) much| a lot| again| for .*)?"), WELCOME),
    (_pattern(r"(?:that(?:'s| is| was) )?(?:great|perfect|nice|awesome|brilliant|good job|well done)"), WELCOME),
    (_pattern(r"ok(?:ay)?|fine|cool|sure|yes|yep|no|nope|never ?mind|forget it|nothing|all good|not now"), "Fine."),
    (_pattern(r"(?:good)?bye(?: bye)?|see you.*|good night"), "Goodbye."),
)
"""Clauses and their answers. After an empty one and after a greeting comes the domain's help."""
_ANY_DOMAIN: Final[tuple[tuple[re.Pattern[str], Callable[[str], Wish]], ...]] = (
    (_pattern(r"what did i (?:just )?(?:say|write|ask)\b.*"), lambda _: recall_message()),
    (_pattern(r"(?:which|what) tools (?:did|have) you use.*"), lambda _: recall_tools()),
    (_pattern(r"what(?:'s| is)? (?:the )?(?:time|date|day)(?: is it)?(?: today| now)?"), lambda _: tell_time()),
    (_pattern(r"stand-in: ?.+"), fail),
)


def _time(turn: Turn) -> str:
    return f"It is {turn.now:%Y-%m-%d %H:%M}." if turn.now else "The request does not say."


def _last_said(earlier: list[Turn]) -> str:
    return f"You said: {earlier[-1].message}" if earlier else "You said nothing before this."


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
