"""Define the types into which both wire formats read a request."""

import json
import re
import secrets
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

Json = dict[str, Any]

CONTEXT_LINE = "[context"
"""Begins a line that taskchat adds to a message; the user did not write it."""


def dump(value: Any) -> str:
    """Return the value as JSON in ASCII: a lone surrogate cannot be sent in any other form."""
    return json.dumps(value, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Call:
    """Hold a tool call, with its arguments as the JSON text that is sent."""

    call_id: str
    name: str
    arguments: str

    @classmethod
    def new(cls, name: str, arguments: Json) -> "Call":
        """Return a call with an id of its own."""
        return cls(f"call_{secrets.token_hex(12)}", name, dump(arguments))

    def parsed(self) -> Json | None:
        """Return the arguments as an object, or None if they are not one: a model may write anything."""
        try:
            value = json.loads(self.arguments)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    def with_arguments(self, arguments: Json) -> "Call":
        """Return the same call with other arguments."""
        return replace(self, arguments=dump(arguments))


@dataclass(slots=True)
class MadeCall:
    """A call in the input, with its output (None until that has been read)."""

    call: Call
    output: str | None = None


@dataclass(slots=True)
class Turn:
    """A message of the user, and the calls made since."""

    message: str
    calls: list[MadeCall] = field(default_factory=list)
    context: str = ""
    """The first context line of the message; a user may write further ones."""

    @property
    def now(self) -> datetime | None:
        """The user's day and time, if the context line has a day."""
        found = re.search(r"(\d{4}-\d\d-\d\d)(?: (\d\d:\d\d))?(?:, ([\w/+-]+))?", self.context)
        if found is None:
            return None
        return datetime.fromisoformat(f"{found[1]} {found[2] or '00:00'}").replace(tzinfo=_zone(found[3]))


@dataclass(frozen=True, slots=True)
class Tool:
    """A function tool on offer, with as much of its schema as a call needs."""

    name: str
    properties: frozenset[str]
    required: tuple[str, ...]

    @classmethod
    def from_function(cls, function: Json) -> "Tool":
        """Read the description of a function in a request."""
        schema = function.get("parameters") or {}
        return cls(function["name"], frozenset(schema.get("properties") or ()), tuple(schema.get("required") or ()))

    def fit(self, arguments: Json) -> Json:
        """Drop arguments that the schema does not know; add null for required ones (strict schemas require all)."""
        known = {name: value for name, value in arguments.items() if name in self.properties}
        return known | {name: None for name in self.required if name not in known}


@dataclass(slots=True)
class Conversation:
    """A whole conversation, as one request gives it: the stand-in stores none."""

    tools: dict[str, Tool] = field(default_factory=dict)
    one_call_at_a_time: bool = False
    turns: list[Turn] = field(default_factory=list)
    _unanswered: defaultdict[str, deque[MadeCall]] = field(default_factory=lambda: defaultdict(deque))

    @property
    def turn(self) -> Turn:
        """The current turn, which begins with the user's last message."""
        if not self.turns:
            self.turns.append(Turn(""))
        return self.turns[-1]

    def add_message(self, text: str) -> None:
        """Begin a turn with the user's message, without its context lines."""
        lines = text.splitlines()
        context = [line for line in lines if line.lstrip().lower().startswith(CONTEXT_LINE)]
        message = "\n".join(line for line in lines if line not in context).strip()
        self.turns.append(Turn(message, context=context[0] if context else ""))

    def call(self, call: Call) -> None:
        """Add a call to the current turn."""
        made = MadeCall(call)
        self.turn.calls.append(made)
        self._unanswered[call.call_id].append(made)

    def output(self, call_id: str, text: str) -> bool:
        """Pair an output with its call. Return False if no call waits for it."""
        if not self._unanswered[call_id]:
            return False
        self._unanswered[call_id].popleft().output = text
        return True

    def unanswered(self) -> list[str]:
        """Return the ids of the calls that have no output yet."""
        return [call_id for call_id, waiting in self._unanswered.items() if waiting]


def _zone(name: str | None) -> ZoneInfo:
    """Return the time zone with this name. UTC stands for an unknown one."""
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError):
        return ZoneInfo("UTC")


def words(text: str) -> list[str]:
    """Split a text into words, each with the space after it."""
    return re.findall(r"\S*\s+|\S+", text)


def code_units(text: str) -> list[str]:
    """Split a text into UTF-16 code units: an emoji becomes two lone surrogates."""
    encoded = text.encode("utf-16-le", "surrogatepass")
    return [chr(int.from_bytes(encoded[at : at + 2], "little")) for at in range(0, len(encoded), 2)]


@dataclass(frozen=True, slots=True)
class Answer:
    """The model's answer. `stopped` is the reason why it broke off, as the Responses API names it."""

    text: str | None = None
    calls: tuple[Call, ...] = ()
    refusal: str | None = None
    stopped: str | None = None
    more: tuple[str, ...] = ()
    """Texts after the first: messages of their own, or parts of one message. Chat Completions joins them."""
    is_one_message: bool = False
    split: Callable[[str], list[str]] = words
    """Returns the pieces in which a text is streamed."""
    seconds_per_piece: float = 0

    @property
    def texts(self) -> tuple[str, ...]:
        """Return all texts, in order."""
        return () if self.text is None else (self.text, *self.more)
