"""Choose the fault of a request: one that was set through the control routes, or one that the message asks for."""

import re
import time
from dataclasses import dataclass, field

from .conversation import Conversation, Json
from .failures import FAULTS, parameters
from .wire import ApiError

ENDLESS = frozenset({"endless_tool_calls"})  # these last until they are cleared
WHOLE_TURN = ENDLESS | {"drip"}  # a message that asks for one of these gets it in every answer of the turn
RETRY_WINDOW = 30  # seconds in which a repeated request counts as a retry, and is answered
NAMES = {name.replace("_", " "): name for name in sorted(FAULTS, key=len, reverse=True)}
SIMULATE = re.compile(rf"\bsimulate:? ({'|'.join(name.replace(' ', '[ _-]') for name in NAMES)})\b", re.IGNORECASE)


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


class Faults:
    """The faults that are set, in order, and the messages whose own fault was applied lately."""

    def __init__(self) -> None:
        self._set: list[Fault] = []
        self._simulated: dict[int, float] = {}

    def set(self, fault: Fault) -> None:
        """Add a fault behind the others."""
        self._set.append(fault)

    def clear(self) -> None:
        """Forget all faults."""
        self._set.clear()
        self._simulated.clear()

    def take(self, conversation: Conversation) -> Fault | None:
        """Return the first fault that applies to the request, if any, and count it as used."""
        for fault in self._set:
            if fault.applies_to(conversation):
                self._use(fault)
                return fault
        return self._simulate(conversation)

    def _use(self, fault: Fault) -> None:
        if fault.times is None:
            return
        fault.times -= 1
        if fault.times <= 0:
            self._set.remove(fault)

    def _simulate(self, conversation: Conversation) -> Fault | None:
        name = simulated_fault(conversation.turn.message)
        if name is None or (name not in WHOLE_TURN and self._is_over(conversation)):
            return None
        return Fault(name)

    def _is_over(self, conversation: Conversation) -> bool:
        """Return whether this message has had its fault: the turn has gone on, or this is the retry."""
        now = time.monotonic()
        self._simulated = {messages: then for messages, then in self._simulated.items() if now - then < RETRY_WINDOW}
        messages = hash(tuple(turn.message for turn in conversation.turns))
        if self._simulated.pop(messages, None) is not None or conversation.turn.calls:
            return True
        self._simulated[messages] = now
        return False


def simulated_fault(message: str) -> str | None:
    """Return the fault that a message asks for with `simulate <fault>`."""
    found = SIMULATE.search(message)
    return NAMES[re.sub("[_-]", " ", found[1].lower())] if found else None
