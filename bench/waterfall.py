"""`python -m bench.waterfall`: measure the parts of a warm turn, with the database here and a roundtrip away.

This module wraps the functions that begin and end a part. The shipped modules do not know of it.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from inspect import iscoroutinefunction
from statistics import median
from typing import Any, Final

import psycopg

from bench import distance, parts
from bench.parts import Parts, Worker
from bench.turn import NEW, WARM_UP, Person, prepare, take

SPANS: Final = (
    "the whole turn",
    "token check",
    "begin: allowance, lease, history, message",
    "model call",
    "tool call: effect and record",
    "second model call",
    "finish: allowance, reply, usage",
)


@dataclass(frozen=True)
class Span:
    """One part of a turn: medians, in milliseconds after the event."""

    name: str
    start: float
    end: float


class Watch:
    """Records when watched functions begin and end."""

    def __init__(self) -> None:
        """Wrap the functions that begin and end the parts of a turn."""
        from chat import agent, turn
        from chat.agent import ChatAgent
        from chat.model import ProviderModel
        from taskchat.http.auth import Verifier

        self._seen: dict[str, list[tuple[float, float]]] = {}
        for owner, name in (
            (Verifier, "verify"),
            (turn.TurnRunner, "begin"),
            (turn.TurnRunner, "_finish"),
            (ChatAgent, "execute"),
            (ProviderModel, "get_response"),
            (agent, "_call_tool"),
        ):
            self._wrap(owner, name)

    def _wrap(self, owner: Any, name: str) -> None:
        function = getattr(owner, name)

        @wraps(function)
        async def asynchronous(*arguments: Any, **named: Any) -> Any:
            with self._noting(name):
                return await function(*arguments, **named)

        @wraps(function)
        def synchronous(*arguments: Any, **named: Any) -> Any:
            with self._noting(name):
                return function(*arguments, **named)

        setattr(owner, name, asynchronous if iscoroutinefunction(function) else synchronous)

    @contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._seen.setdefault(name, []).append((began, time.perf_counter()))

    def spans(self, turn: Callable[[], None]) -> dict[str, tuple[float, float]]:
        """Return the begin and end of each part of the turn. Raises KeyError or ValueError if one did not run once."""
        self._seen.clear()
        began = time.perf_counter()
        turn()
        whole, seen = (began, time.perf_counter()), self._seen
        [first, second], [executed], [finished] = seen["get_response"], seen["execute"], seen["_finish"]
        [token], [tool], [begun] = seen["verify"], seen["_call_tool"], seen["begin"]
        last = executed[1], finished[1]
        found = zip(SPANS, (whole, token, begun, first, tool, second, last), strict=True)
        return {name: ((start - began) * 1000, (end - began) * 1000) for name, (start, end) in found}


def measure(running: Parts, turns: int, *, is_away: bool = False) -> list[Span]:
    """Return the parts of a turn with one tool call in a new conversation: the medians of so many turns."""
    with ExitStack() as stack:
        environment = os.environ | running.environment
        if is_away:
            environment["DATABASE_URL"] = stack.enter_context(distance.away(environment["DATABASE_URL"]))
        worker = Worker("bench.waterfall", "--worker", environment=environment)
        worker.ask(WARM_UP)
        found: list[dict[str, tuple[float, float]]] = worker.ask(turns)
        worker.stop()
    return [Span(name, *(median(one[name][end] for one in found) for end in (0, 1))) for name in SPANS]


def _work() -> None:
    """Serve as the measured process: read a number of turns from each line; print the parts of each turn."""
    handler, issuer, answers = prepare("ours")
    watch = Watch()
    with psycopg.connect(os.environ["SUPERUSER_URL"], autocommit=True) as database:
        person = Person(NEW, issuer, database)
        for line in sys.stdin:
            requests = [person.request() for _ in range(json.loads(line))]
            found = [watch.spans(lambda: take(handler, request)) for request in requests]  # noqa: B023 - called at once
            print(json.dumps(found), file=answers, flush=True)


def main() -> None:
    """Measure and print one line for each part. With --worker, serve as the measured process."""
    if sys.argv[1:] == ["--worker"]:
        return _work()
    with parts.running() as running:
        near, away = (measure(running, 60, is_away=is_away) for is_away in (False, True))
    print(f"{'ms after the event':44}{'this machine':>16}{'a roundtrip away':>20}")
    for one, other in zip(near, away, strict=True):
        print(f"{one.name:44}{one.start:8.1f}{one.end:8.1f}{other.start:12.1f}{other.end:8.1f}")
    return None


if __name__ == "__main__":
    main()
