"""Choose the fault of a request: one that was set through the control routes, or one that the message asks for."""

import re
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from .conversation import Conversation, Json
from .failures import FAULTS, STREAMS, parameters
from .wire import ApiError

ENDLESS = frozenset({"endless_tool_calls"})  # these last until they are cleared
WHOLE_TURN = ENDLESS | {"drip"}  # a message that asks for one of these gets it in every answer of the turn
TRIES = 3  # requests that taskchat makes for one call of the model, if the fault may pass
MAY_PASS = frozenset(
    {"rate_limit", "server_error", "unavailable", "bad_gateway", "disconnect"}
    | {"empty_body", "malformed_body", "wrong_schema", "disconnect_midway"}
)
RETRY_WINDOW = 600  # seconds in which a person may send the request once more, which is then answered
ALIASES = {"fail 502": "server_error", "fail 504": "hang"}
NAMES = {name.replace("_", " "): name for name in FAULTS} | ALIASES
UNITS = {"s": ("seconds", "retry_after"), "ms": ("milliseconds", "retry_after_ms")}
ASKED = re.compile(
    rf"\bstand-in: ?(?P<name>{'|'.join(sorted((name.replace(' ', '[ _]') for name in NAMES), key=len, reverse=True))})"
    r"(?: (?P<number>\d{1,5}) ?(?P<unit>ms|s))?(?P<at_end> at the end)?(?P<once> once)?\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class AskedFault:
    """A fault that a message asks for, such as `stand-in: slow 20 s` or `stand-in: fail 502 at the end`."""

    name: str
    parameters: Json
    times: int | None
    """Requests that get it: as many as make the turn fail. None: all."""
    at_end: bool
    """It applies after the calls of the turn. Otherwise, it applies before them."""

    @classmethod
    def find(cls, message: str) -> "AskedFault | None":
        """Return the fault that the message asks for, if any."""
        found = ASKED.search(message)
        if found is None:
            return None
        name = NAMES[found["name"].lower().replace("_", " ")]
        fitting = [
            parameter for parameter in UNITS.get((found["unit"] or "").lower(), ()) if parameter in parameters(name)
        ]
        times = 1 if found["once"] or found["number"] or name not in MAY_PASS else TRIES
        number = {parameter: float(found["number"]) for parameter in fitting}
        return cls(name, number, None if name in WHOLE_TURN else times, bool(found["at_end"]))


@dataclass(slots=True)
class Fault:
    """A fault that applies `times` times, to messages that contain `match`, after `after_calls` calls in the turn."""

    name: str
    match: str = ""
    after_calls: int = 0
    times: int | None = 1
    parameters: Json = field(default_factory=dict)

    @classmethod
    def from_request(cls, body: Json) -> "Fault":
        """Read a fault. Raises ApiError for an unknown fault or parameter: a test that misspells one must not pass."""
        name = body.get("fault")
        if not isinstance(name, str) or name not in FAULTS:
            raise ApiError(400, f"There is no fault {name!r}; there are: {', '.join(FAULTS)}.", param="fault")
        rest = {key: value for key, value in body.items() if key not in ("fault", "match", "after_calls", "times")}
        if unknown := rest.keys() - parameters(name):
            raise ApiError(400, f"The fault {name} has no parameter {', '.join(sorted(unknown))}.")
        times = body.get("times", None if name in ENDLESS else 1)
        return cls(name, body.get("match") or "", body.get("after_calls") or 0, times, rest)

    def applies_to(self, conversation: Conversation) -> bool:
        """Return whether the request is one that the fault is set for."""
        turn = conversation.turn
        return self.match.lower() in turn.message.lower() and len(turn.calls) >= self.after_calls


class Use(NamedTuple):
    """Count how often a message has had its fault, and keep when it last had."""

    times: int
    at: float


class Faults:
    """The faults that are set, in order, and the messages whose own fault was applied lately."""

    def __init__(self) -> None:
        self._set: list[Fault] = []
        self._asked: dict[int, Use] = {}

    def set(self, fault: Fault) -> None:
        """Add a fault behind the others."""
        self._set.append(fault)

    def clear(self) -> None:
        """Forget all faults."""
        self._set.clear()
        self._asked.clear()

    def take(self, conversation: Conversation, *, is_streamed: bool) -> Fault | None:
        """Return the first fault that applies to the request, if any, and count it as used."""
        for fault in self._set:
            if fault.applies_to(conversation):
                self._use(fault)
                return fault
        return self._asked_for(conversation, is_streamed=is_streamed)

    def _use(self, fault: Fault) -> None:
        if fault.times is None:
            return
        fault.times -= 1
        if fault.times <= 0:
            self._set.remove(fault)

    def _asked_for(self, conversation: Conversation, *, is_streamed: bool) -> Fault | None:
        """Return the fault that the message asks for, unless it is over. In an answer at once, no stream can break."""
        asked = AskedFault.find(conversation.turn.message)
        if asked is None or (asked.name in STREAMS and not is_streamed):
            return None
        if asked.times is not None and self._is_over(asked, conversation):
            return None
        return Fault(asked.name, parameters=asked.parameters)

    def _is_over(self, asked: AskedFault, conversation: Conversation) -> bool:
        """Return whether this message has had its fault, or does not ask for it at this point of the turn."""
        if asked.at_end != bool(conversation.turn.calls):
            return True
        now = time.monotonic()
        self._asked = {messages: use for messages, use in self._asked.items() if now - use.at < RETRY_WINDOW}
        messages = hash(tuple((turn.context, turn.message) for turn in conversation.turns))
        times = self._asked.pop(messages, Use(0, now)).times
        if times == asked.times:
            return True
        self._asked[messages] = Use(times + 1, now)
        return False
