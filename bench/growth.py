"""`python -m bench.growth`: compare the database with ten thousand messages and with five million.

A separate process runs turns through both entry points, and auto_explain reports each statement. Each must use its
index, read about as many pages and take about as long at both sizes. So must each page of a list of ten thousand rows.
"""

import asyncio
import importlib
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any, Final
from uuid import uuid4

import psycopg
from sqlmodel import SQLModel

from bench import parts, tasks
from bench.parts import Parts, Worker
from dev.tokens import Issuer
from testing import people, plans
from testing.callers import Caller, identity
from testing.gateway import event, invoke
from testing.plans import Plan, Recorder

SIZES: Final = (201, 100_000)
"""Numbers of users, with the busy one: ten thousand messages of ordinary users, and five million."""

SAMPLES: Final = 20
"""Users who do two rounds at each size; also how often each page is listed."""

FLAT: Final = 1.5
"""A median may be longer by this factor and still count as equal: two busy cores allow no better."""

NOISE_MS: Final = 0.05
"""Medians that differ by less count as equal: auto_explain itself takes this long."""

PLACES: Final = {"first": 0, "middle": 0.5, "last": 1}


@dataclass(frozen=True)
class Cost:
    """The cost of one statement: medians of its executions."""

    milliseconds: float
    pages: float
    times: int

    @classmethod
    def of(cls, executions: list[Plan]) -> "Cost":
        """Return the cost of a statement that was executed at least once."""
        milliseconds = median(plan.milliseconds for plan in executions)
        return cls(milliseconds, median(plan.pages for plan in executions), len(executions))

    def is_flat(self, before: "Cost") -> bool:
        """Return True if the time is not longer than before, apart from noise."""
        return self.milliseconds <= max(FLAT * before.milliseconds, before.milliseconds + NOISE_MS)


@dataclass(frozen=True)
class Measured:
    """The database at one size."""

    rows: dict[str, int]
    statements: dict[str, Cost]
    """Cost by name, in the second rounds. The lookups of all foreign keys count as one statement."""
    lists: dict[str, Cost]
    """Cost of a page of the busy user's rows, by state and by place in the list."""
    first_round_ms: float
    """Time that the database spends on the `_round` of a user who was away, whose rows it must read into memory: the
    median of each statement, times the number of its executions."""
    round_ms: float
    """The same for the next round of these users."""
    faults: frozenset[str]
    """Faults that make a statement slower as the tables grow."""


@dataclass(frozen=True)
class Growth:
    """The database at two sizes."""

    small: Measured
    large: Measured
    seconds: float
    """Duration of the measurement."""

    @property
    def slower(self) -> list[str]:
        """Return the statements that take longer in the large database."""
        before, after = self.small.statements, self.large.statements
        return [name for name in before if not after[name].is_flat(before[name])]

    @property
    def uneven(self) -> list[str]:
        """Return the pages of the long list that take longer than the first of their state."""
        lists = self.large.lists
        return [name for name in lists if not lists[name].is_flat(lists[f"{name.split()[0]} first"])]

    @property
    def faults(self) -> list[str]:
        """Return the faults of the plans, at either size."""
        return sorted(self.small.faults | self.large.faults)


def measure() -> Growth:
    """Fill a database and measure it at both sizes. Takes minutes, and three gigabytes of the temporary directory."""
    began = time.perf_counter()
    with parts.running() as running:
        recorder = Recorder(running.postgres)
        worker = Worker("bench.growth", "--worker", environment=os.environ | running.environment)
        sizes = zip((people.BUSY, SIZES[0]), SIZES, strict=True)
        small, large = (_measure(running, recorder, worker, first, last) for first, last in sizes)
        worker.stop()
    _say("")
    return Growth(small, large, time.perf_counter() - began)


def _measure(running: Parts, recorder: Recorder, worker: Worker, first: int, last: int) -> Measured:
    url = running.postgres.superuser_url
    people.store(url, first, last, _say)
    _say(f"{last:,} users are stored: measuring")
    worker.ask(["rounds", [people.BUSY]])
    busy = recorder.read()
    who = [1 + n * (last - 2) // SAMPLES for n in range(SAMPLES)]
    worker.ask(["rounds", who])
    away = recorder.read()
    names = worker.ask(["rounds", who])
    usual = recorder.read()
    lists = {name: _list(recorder, worker, *place) for name, place in _places(url).items()}
    executed = [*busy, *away, *usual, *(plan for listed in lists.values() for plan in listed)]
    return Measured(
        rows=_count(url),
        statements=_costs(usual, names),
        lists={name: Cost.of(listed) for name, listed in lists.items()},
        first_round_ms=_round_ms(_costs(away, names)),
        round_ms=_round_ms(_costs(usual, names)),
        faults=frozenset(
            f"{names.get(plan.text, plan.text)} of {last:,} users: {fault}"
            for plan in executed
            for fault in plan.faults(recorder.first_columns)
        ),
    )


def _costs(executed: list[Plan], names: dict[str, str]) -> dict[str, Cost]:
    found: dict[str, list[Plan]] = defaultdict(list)
    for plan in executed:
        found[names.get(plan.text, "foreign keys")].append(plan)
    return {name: Cost.of(executions) for name, executions in sorted(found.items())}


def _round_ms(costs: dict[str, Cost]) -> float:
    return sum(cost.milliseconds * cost.times for cost in costs.values()) / SAMPLES


def _places(url: str) -> dict[str, tuple[str, int | None]]:
    """Return the state and the cursor at which each page of the busy user's list begins."""
    found: dict[str, tuple[str, int | None]] = {}
    with psycopg.connect(url) as database:
        for state, query in tasks.STATES.items():
            ids = [id for (id,) in database.execute(query.encode(), [people.user_id(people.BUSY)])]
            for place, part in PLACES.items():
                after = int((len(ids) - 20) * part)
                found[f"{state} {place}"] = state, ids[after] if after else None
    return found


def _list(recorder: Recorder, worker: Worker, state: str, cursor: int | None) -> list[Plan]:
    recorder.skip()
    names = worker.ask(["list", tasks.page(state, cursor)])
    return [plan for plan in recorder.read() if names.get(plan.text, "").startswith(tasks.LIST_STATEMENTS)]


def _count(url: str) -> dict[str, int]:
    with psycopg.connect(url) as database:
        queries = {table: f"select count(*) from {table}" for table in sorted(SQLModel.metadata.tables)}
        return {table: database.execute(query.encode()).fetchall()[0][0] for table, query in queries.items()}


def _say(text: str) -> None:
    print(f"\r{text:60}", end="", file=sys.stderr, flush=True)


class Client:
    """Sends a user's requests to both entry points."""

    def __init__(self) -> None:
        """Make this process the execution environment of both functions."""
        self._issuer = Issuer.new()
        os.environ.update(identity(self._issuer))
        os.environ.update(
            TURN_BURST="999999", MCP_BURST="999999", DATA_BURST="999999"
        )  # the limits are on, but never reached
        self._chat: Callable[..., Any] = importlib.import_module("chat.app").handler
        self._mcp: Callable[..., Any] = importlib.import_module("mcp_tools.app").handler

    def say(self, user_id: str, message: str, conversation_id: str | None, key: str) -> Any:
        """Send one message and return the answer."""
        body = {"message": message, "conversation_id": conversation_id}
        response = invoke(self._chat, Caller(user_id, self._issuer).request(body, key))
        assert response.status == 200, response.body[:500]
        return response.json

    def read(self, user_id: str, rest: str, **query: str) -> None:
        """Read a list of the user's own data."""
        response = invoke(self._chat, Caller(user_id, self._issuer).own("GET", rest, query=query))
        assert response.status == 200, response.body[:500]

    def call(self, user_id: str, tool: str, **arguments: Any) -> Any:
        """Make one tool call as an MCP client and return the result."""
        token = Caller(user_id, self._issuer).mcp_token
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        headers |= {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-11-25"}
        params = {"name": tool, "arguments": arguments}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
        response = invoke(self._mcp, event("POST", "/mcp", headers=headers, body=body))
        result = response.json["result"]
        assert not result.get("isError"), result["content"]
        return result["structuredContent"]


def _round(client: Client, person: int) -> None:
    """Use every tool in a conversation, begin another, send a message twice, call MCP tools, and read each list."""
    who, here = people.user_id(person), str(people.conversation_id(person))
    row = client.say(who, tasks.ADD, here, uuid4().hex)["tool_calls"][0]["result"]["id"]
    for message in tasks.changes(row):
        assert client.say(who, message, here, uuid4().hex)["tool_calls"][0]["outcome"] == "ok"
    key = uuid4().hex
    assert client.say(who, tasks.ADD, None, key) == client.say(who, tasks.ADD, None, key)
    client.call(who, **tasks.ADD_CALL)
    client.call(who, tasks.LIST)
    for rest in (f"/{tasks.THINGS}", "/conversations", f"/conversations/{here}"):
        client.read(who, rest)
    client.read(who, "/export", limit="50")
    for query in tasks.DUE.values():
        client.read(who, f"/{tasks.THINGS}", **query)


def _turn(client: Client, person: int) -> None:
    """Run one turn with one tool call in an old conversation."""
    client.say(people.user_id(person), tasks.ADD, str(people.conversation_id(person)), uuid4().hex)


def _each(act: Callable[[Client, int], None]) -> Callable[[Client, Any], None]:
    def act_for_each(client: Client, numbers: list[int]) -> None:
        for person in numbers:
            act(client, person)

    return act_for_each


def _list_often(client: Client, arguments: dict[str, Any]) -> None:
    for _ in range(SAMPLES):
        client.call(people.user_id(people.BUSY), tasks.LIST, **arguments)


_ANSWERS: Final = {"rounds": _each(_round), "turns": _each(_turn), "list": _list_often}


def _work() -> None:
    """Serve as the measured process: read a request from each line, and print the names of the executed statements."""
    asyncio.set_event_loop(asyncio.new_event_loop())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the log lines of the turns go nowhere
    client = Client()
    for line in sys.stdin:
        what, value = json.loads(line)
        with plans.naming() as names:
            _ANSWERS[what](client, value)
        print(json.dumps(names), file=answers, flush=True)


def report(growth: Growth) -> Iterator[str]:
    """Yield the figures, line by line."""
    small, large = growth.small, growth.large
    for table, rows in small.rows.items():
        yield f"{table + ', rows':32}{rows:>12,}{'':6}{large.rows[table]:>12,}"
    yield f"{'':32}{'ms':>12}{'pages':>6}{'ms':>12}{'pages':>6}"
    pairs = [(name, cost, large.statements[name]) for name, cost in small.statements.items()]
    pairs += [(f"page of {tasks.THINGS}: {name}", cost, large.lists[name]) for name, cost in small.lists.items()]
    for name, *costs in pairs:
        yield f"{name:32}" + "".join(f"{cost.milliseconds:12.3f}{cost.pages:6.0f}" for cost in costs)
    yield f"{'a round of a user who was away':32}{small.first_round_ms:12.2f}{'':6}{large.first_round_ms:12.2f}"
    yield f"{'their next round':32}{small.round_ms:12.2f}{'':6}{large.round_ms:12.2f}"
    for what, names in (("plans", growth.faults), ("slower", growth.slower), ("uneven", growth.uneven)):
        yield f"{what}: {'; '.join(names) or 'none'}"
    yield f"{growth.seconds:.0f} s"


def main() -> None:
    """Measure and print the figures. With --worker, serve as the measured process."""
    if sys.argv[1:] == ["--worker"]:
        return _work()
    print(*report(measure()), sep="\n")
    return None


if __name__ == "__main__":
    main()
