"""`python -m bench.turn`: measure the time of one turn in the function's process and in the floor's.

A turn is an API Gateway event through the handler, with one tool call and a model that takes no time. Ours and the
floor alternate, each in a separate process. A figure is the median of all turns.
"""

import argparse
import asyncio
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any, Final, TextIO
from uuid import UUID, uuid4

import psycopg

from bench import distance, parts, tasks
from bench.parts import Parts, Worker
from dev.tokens import Issuer
from testing import tasks as stored
from testing.callers import Caller, identity
from testing.gateway import invoke

WARM_UP: Final = 10
"""Turns that are not counted. They build what is built at first use."""

SUBJECTS: Final = {"ours": "chat.app", "floor": "bench.floor"}


@dataclass(frozen=True)
class History:
    """The content of a conversation before the turn."""

    name: str
    messages: int = 0
    has_calls: bool = False
    subjects: tuple[str, ...] = ("ours", "floor")


NEW: Final = History("new conversation")
LONG: Final = History("100 messages", 100)
WITH_CALLS: Final = History("100 messages, 50 calls", 100, has_calls=True, subjects=("ours",))
ENDLESS: Final = History("10,000 messages", 10_000)
HISTORIES: Final = (
    NEW,
    History("20 messages", 20),
    History("50 messages", 50),
    LONG,
    WITH_CALLS,
    History("1,000 messages", 1_000),
    ENDLESS,
)


class Person:
    """A user with one conversation, which is restored after each turn."""

    def __init__(self, history: History, issuer: Issuer, database: psycopg.Connection[Any]) -> None:
        """Store the conversation. The model reads its latest 100 messages, the longest history."""
        self.id, self._issuer, self._database = uuid4().hex, issuer, database
        self._messages, self._conversation = history.messages, uuid4() if history.messages else None
        if self._conversation:
            self._store(self._conversation, has_calls=history.has_calls)

    def _store(self, conversation_id: UUID, *, has_calls: bool) -> None:
        here = {"user": self.id, "id": conversation_id, "n": self._messages, "start": max(0, self._messages - 100)}
        self._database.execute(
            "insert into conversation (user_id, id, title, next_position, history_start)"
            " values (%(user)s, %(id)s, 'bench', %(n)s, %(start)s)",
            here,
        )
        self._database.execute(
            "insert into message (user_id, conversation_id, position, turn_id, role, content, request_hash)"
            " select %(user)s, %(id)s, n, md5((n / 2)::text || %(user)s)::uuid,"
            f" case n %% 2 when 0 then 'user' else 'assistant' end, {tasks.TEXT}, ''"
            " from generate_series(0, %(n)s - 1) n",
            here,
        )
        if has_calls:
            self._database.execute(
                "insert into tool_call (user_id, turn_id, call_id, position, conversation_id, door, tool, arguments,"
                " outcome, result, duration_ms) select user_id, turn_id, 'call_' || turn_id, 0, conversation_id,"
                f" 'chat', {stored.CALL}, 1 from message where user_id = %s and role = 'user'",
                [self.id],
            )

    def request(self) -> dict[str, Any]:
        """Return the event of the user's next message."""
        body = {"message": tasks.ADD, "conversation_id": self._conversation and str(self._conversation)}
        return Caller(self.id, self._issuer).request(body)

    def take_back(self) -> None:
        """Delete the turn."""
        here = [self.id, self._messages]
        self._database.execute(
            "delete from tool_call where user_id = %s and turn_id in"
            " (select turn_id from message where user_id = %s and position >= %s)",
            [self.id, *here],
        )
        self._database.execute("delete from message where user_id = %s and position >= %s", here)
        self._database.execute(
            "update conversation set next_position = %s, history_start = greatest(0, %s - 100) where user_id = %s",
            [self._messages, self._messages, self.id],
        )


def prepare(subject: str) -> tuple[Callable[..., Any], Issuer, TextIO]:
    """Make this process the environment of ours or of the floor. Return its handler, its issuer and its real stdout.

    Discard the log lines of the turns.
    """
    issuer = Issuer.new()
    os.environ.update(identity(issuer))
    asyncio.set_event_loop(asyncio.new_event_loop())
    answers, sys.stdout = sys.stdout, open(os.devnull, "w")
    return importlib.import_module(SUBJECTS[subject]).handler, issuer, answers


def take(handler: Callable[..., Any], request: dict[str, Any]) -> None:
    """Run one turn, which must succeed."""
    response = invoke(handler, request)
    assert response.status == 200, response.body
    assert response.json["tool_calls"]


def _turns(handler: Callable[..., Any], person: Person, number: int) -> Iterator[tuple[float, float]]:
    """Yield the CPU and wall milliseconds of each turn."""
    for _ in range(number):
        request = person.request()
        started, cpu = time.perf_counter(), time.process_time()
        take(handler, request)
        yield (time.process_time() - cpu) * 1000, (time.perf_counter() - started) * 1000
        person.take_back()


def _work(subject: str) -> None:
    """Serve as the measured process: read the number of a history and of turns; print the milliseconds of each turn."""
    handler, issuer, answers = prepare(subject)
    with psycopg.connect(os.environ["SUPERUSER_URL"], autocommit=True) as database:
        people: dict[int, Person] = {}
        for line in sys.stdin:
            history, number = json.loads(line)
            if history not in people:
                people[history] = Person(HISTORIES[history], issuer, database)
                database.execute("vacuum analyze")
            print(json.dumps(list(_turns(handler, people[history], number))), file=answers, flush=True)


@dataclass(frozen=True)
class Cost:
    """The medians of a turn, in milliseconds."""

    cpu: float
    wall: float


Costs = dict[tuple[History, str], Cost]
"""Costs by history, and by subject: ours or the floor."""


def measure(
    running: Parts, turns: int, rounds: int, histories: Sequence[History] = HISTORIES, *, is_away: bool = False
) -> Costs:
    """Run `turns` turns of each kind, alternating ours and the floor. `is_away` adds a roundtrip to the database."""
    found: dict[tuple[History, str], list[tuple[float, float]]] = {}
    places = [(HISTORIES.index(history), history, name) for history in histories for name in history.subjects]
    with ExitStack() as stack:
        environment = os.environ | running.environment
        for name in ("DATABASE_URL", "FLOOR_URL") if is_away else ():
            environment[name] = stack.enter_context(distance.away(environment[name]))
        workers = {name: Worker("bench.turn", "--worker", name, environment=environment) for name in SUBJECTS}
        for number, _, name in places:
            workers[name].ask([number, WARM_UP])
        for _ in range(rounds):
            for number, history, name in places:
                found.setdefault((history, name), []).extend(workers[name].ask([number, turns // rounds]))
        for worker in workers.values():
            worker.stop()
    return {place: Cost(*map(median, zip(*of, strict=True))) for place, of in found.items()}


def main() -> None:
    """Measure and print one line for each history."""
    parser = argparse.ArgumentParser(prog="python -m bench.turn", description=__doc__)
    parser.add_argument("--turns", type=int, default=120, help="counted turns of each kind")
    parser.add_argument("--rounds", type=int, default=3, help="rounds in which ours and the floor alternate")
    parser.add_argument("--worker", choices=SUBJECTS)
    options = parser.parse_args()
    if options.worker:
        return _work(options.worker)
    with parts.running() as running:
        found = measure(running, options.turns, options.rounds)
    print(f"{'one turn, one tool call':26}{'ours: CPU ms':>14}{'wall ms':>10}{'floor: CPU ms':>16}{'wall ms':>10}")
    for history in HISTORIES:
        costs = [(found.get((history, name)), width) for name, width in (("ours", 14), ("floor", 16))]
        cells = [f"{cost.cpu:{width}.1f}{cost.wall:10.1f}" if cost else "" for cost, width in costs]
        print(f"{history.name:26}" + "".join(cells))
    return None


if __name__ == "__main__":
    main()
