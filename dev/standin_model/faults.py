"""Which fault a request meets: one that was set through the control routes, or what the message itself asks for."""

import re
import time
from dataclasses import dataclass, field

from .conversation import Conversation, Json
from .failures import FAULTS, parameters
from .wire import ApiError

ENDLESS = frozenset({"endless_tool_calls"})  # one of these is over only when it is taken back
RETRY_WINDOW = 30  # seconds in which the same request again is taken for a retry, and answered
NAMES = {name.replace("_", " "): name for name in sorted(FAULTS, key=len, reverse=True)}
SIMULATE = re.compile(rf"\bsimulate:? ({'|'.join(name.replace(' ', '[ _-]') for name in NAMES)})\b", re.IGNORECASE)


@dataclass(slots=True)
class Fault:
    """A fault and when it strikes: on a message that contains `match`, after so many calls in the turn, so often."""

    name: str
    match: str = ""
    after_calls: int = 0
    times: int | None = 1
    parameters: Json = field(default_factory=dict)

    @classmethod
    def from_request(cls, body: Json) -> "Fault":
        """Raise ApiError for an unknown fault or parameter, for a test that misspells one would pass."""
        name = body.get("fault")
        if not isinstance(name, str) or name not in FAULTS:
            raise ApiError(400, f"There is no fault {name!r}; there are: {', '.join(FAULTS)}.", param="fault")
        rest = {key: value for key, value in body.items() if key not in ("fault", "match", "after_calls", "times")}
        if unknown := rest.keys() - parameters(name):
            raise ApiError(400, f"The fault {name} has no parameter {', '.join(sorted(unknown))}.")
        times = body.get("times", None if name in ENDLESS else 1)
        return cls(name, body.get("match") or "", body.get("after_calls") or 0, times, rest)

    def strikes(self, conversation: Conversation) -> bool:
        turn = conversation.turn
        return self.match.lower() in turn.said.lower() and len(turn.calls) >= self.after_calls


class Faults:
    """The faults that are set, in order, and the messages whose own fault has struck lately."""

    def __init__(self) -> None:
        self._set: list[Fault] = []
        self._simulated: dict[int, float] = {}

    def set(self, fault: Fault) -> None:
        self._set.append(fault)

    def clear(self) -> None:
        self._set.clear()
        self._simulated.clear()

    def strike(self, conversation: Conversation) -> Fault | None:
        """The fault that this request meets, if any; it is used up by that."""
        for fault in self._set:
            if fault.strikes(conversation):
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
        name = simulated(conversation.turn.said)
        if name is None or (name not in ENDLESS and self._is_over(conversation)):
            return None
        return Fault(name)

    def _is_over(self, conversation: Conversation) -> bool:
        """Whether this message has had its fault: the turn has gone on, or this is the retry."""
        now = time.monotonic()
        self._simulated = {said: then for said, then in self._simulated.items() if now - then < RETRY_WINDOW}
        said = hash(tuple(turn.said for turn in conversation.turns))
        if self._simulated.pop(said, None) is not None or conversation.turn.calls:
            return True
        self._simulated[said] = now
        return False


def simulated(said: str) -> str | None:
    """The fault that a message asks for with `simulate <fault>`."""
    found = SIMULATE.search(said)
    return NAMES[re.sub("[_-]", " ", found[1].lower())] if found else None
