"""What a request says, whichever wire format it came in. Both wire modules read into these types."""

import json
import secrets
from collections import defaultdict, deque
from dataclasses import dataclass, field, replace
from typing import Any

Json = dict[str, Any]

CONTEXT_LINE = "[context"  # the product may add such a line to a message; it is not what the person said


def dump(value: Any) -> str:
    """JSON in ASCII, because a lone surrogate has no other way through the wire."""
    return json.dumps(value, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Call:
    """One tool call, with its arguments as the JSON text that travels."""

    call_id: str
    name: str
    arguments: str

    @classmethod
    def new(cls, name: str, arguments: Json) -> "Call":
        return cls(f"call_{secrets.token_hex(12)}", name, dump(arguments))

    def parsed(self) -> Json | None:
        """The arguments as an object; None if they are none, for a model may write anything."""
        try:
            value = json.loads(self.arguments)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    def with_arguments(self, arguments: Json) -> "Call":
        return replace(self, arguments=dump(arguments))


@dataclass(slots=True)
class Made:
    """A call that stands in the input, and what came of it (None until its output has been read)."""

    call: Call
    output: str | None = None


@dataclass(slots=True)
class Turn:
    """What the person said, and the calls made since."""

    said: str
    calls: list[Made] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Tool:
    """A function tool on offer: enough of its schema to call it."""

    name: str
    properties: frozenset[str]
    required: tuple[str, ...]

    @classmethod
    def from_function(cls, function: Json) -> "Tool":
        schema = function.get("parameters") or {}
        return cls(function["name"], frozenset(schema.get("properties") or ()), tuple(schema.get("required") or ()))

    def fit(self, arguments: Json) -> Json:
        """Only what the schema knows, and null for what it insists on (strict schemas require every parameter)."""
        known = {name: value for name, value in arguments.items() if name in self.properties}
        return known | {name: None for name in self.required if name not in known}


@dataclass(slots=True)
class Conversation:
    """All that a request says. Nothing else is known of a conversation: the stand-in keeps none."""

    tools: dict[str, Tool] = field(default_factory=dict)
    one_call_at_a_time: bool = False
    turns: list[Turn] = field(default_factory=list)
    _unanswered: defaultdict[str, deque[Made]] = field(default_factory=lambda: defaultdict(deque))

    @property
    def turn(self) -> Turn:
        """The current turn: since the last thing the person said."""
        if not self.turns:
            self.turns.append(Turn(""))
        return self.turns[-1]

    def hear(self, text: str) -> None:
        lines = (line for line in text.splitlines() if not line.lstrip().lower().startswith(CONTEXT_LINE))
        self.turns.append(Turn("\n".join(lines).strip()))

    def call(self, call: Call) -> None:
        made = Made(call)
        self.turn.calls.append(made)
        self._unanswered[call.call_id].append(made)

    def output(self, call_id: str, text: str) -> bool:
        """Pair an output with its call; False if no call waits for it."""
        if not self._unanswered[call_id]:
            return False
        self._unanswered[call_id].popleft().output = text
        return True

    def unanswered(self) -> list[str]:
        return [call_id for call_id, waiting in self._unanswered.items() if waiting]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model does next. `stopped` is why it broke off, in the words of the Responses API."""

    text: str | None = None
    calls: tuple[Call, ...] = ()
    refusal: str | None = None
    stopped: str | None = None
