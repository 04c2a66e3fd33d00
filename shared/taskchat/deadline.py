"""The moment by which a request must be done. Everything that waits (model, database, retry) shares the time left."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Set the deadline of everything in the block, `seconds` from now."""
    token = _deadline.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


@contextmanager
def default(seconds: float) -> Iterator[None]:
    """Set the deadline of everything in the block, unless its entry point has set one."""
    with within(seconds) if remaining() == math.inf else nullcontext():
        yield


def remaining() -> float:
    """Return the seconds left: negative once the deadline has passed, infinite if none is set."""
    return _deadline.get() - time.monotonic()
