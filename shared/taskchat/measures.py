"""Collect the figures of one request while it runs, for its metrics and its log lines.

Each entry point begins a collection, in the request's context: several requests may run at once in one process.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

Phase = Literal["begin_ms", "finish_ms", "database_ms"]


@dataclass
class Measures:
    """The figures of one request so far. Times are in milliseconds."""

    request_id: str | None = None
    """API Gateway's id of the request. The response, the log lines and the records of tool calls have it."""
    scope: MutableMapping[str, Any] = field(default_factory=dict)
    """The ASGI scope. Empty for an event that is no request."""
    arrived: float = field(default_factory=time.monotonic)
    """When the request arrived at the gateway, as far as known, by time.monotonic."""
    first_event_ms: float | None = None
    """From the arrival to the first event of a streamed answer."""
    begin_ms: float | None = None
    finish_ms: float | None = None
    """The two transactions of a turn."""
    database_ms: float | None = None
    """All transactions, connecting and lookups included."""
    database_refused: int = 0
    refused_by_limit: int = 0
    secrets_read_again: int = 0
    turn_ids: Mapping[str, str] = field(default_factory=dict)
    """The turn that runs, as its log lines name it."""
    turn: Mapping[str, Any] | None = None
    """The fields of the turn's usage line, once it has ended."""
    model_calls: list[tuple[str, float]] = field(default_factory=list)
    """Outcome and time of each try."""
    tool_calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of audit lines by tool and outcome."""

    def elapsed_ms(self) -> float:
        return to_ms(time.monotonic() - self.arrived)

    @contextmanager
    def timing(self, phase: Phase) -> Iterator[None]:
        """Add the time of the block to a phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = (getattr(self, phase) or 0.0) + (time.perf_counter() - started) * 1000
            setattr(self, phase, round(spent, 3))


def to_ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


_current: ContextVar[Measures | None] = ContextVar("measures", default=None)


def current() -> Measures:
    """Return the figures of the running request. Outside a request, return some that nothing reads."""
    return _current.get() or Measures()


@contextmanager
def measuring(measures: Measures) -> Iterator[None]:
    """Collect the figures of the block."""
    token = _current.set(measures)
    try:
        yield
    finally:
        _current.reset(token)
