"""`python -m bench.scaling`: test the calculation of docs/scaling.md with many environments at one pooler.

First it measures what a real turn takes of the pooler and of Postgres. Then more than a thousand environments, each
with one connection to a real PgBouncer, run transactions of that shape with model time in between: once with spare
connections, and once with transactions so long, as from another continent, that the pool is used up.
"""

import asyncio
import contextlib
import os
import random
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from statistics import mean
from typing import Any, Final

import psycopg

from bench import parts, tasks
from bench.parts import Parts, Worker
from dev import pgbouncer
from dev.pgbouncer import PgBouncer
from dev.postgres import APP, DATABASE, Postgres
from testing import capacity, people

ENVIRONMENTS: Final = 1_200
"""Simulated environments: as many as two cores can run."""

POOL: Final = 20
"""Server connections of the pooler."""

THINKING: Final = 8.0
"""Average seconds of model time in a turn: long enough for two cores to run so many environments."""

NEAR: Final = 0.001
"""Seconds of a roundtrip between function and pooler in one region."""

FAR: Final = 0.05
"""Seconds of a roundtrip from another continent. With it, the pool is too small."""

SETTLING: Final = 6.0
"""Seconds until the queue is stable."""

MEASURING: Final = 10.0
"""Seconds of measurement."""

WEIGHED: Final = 60
"""Real turns that are measured."""

CONNECTING: Final = 20
"""Connections that are opened at once."""

SAMPLE: Final = 0.05
"""Seconds between two samples of the pool."""


@dataclass(frozen=True)
class Weight:
    """The database load of one real turn with one tool call."""

    transactions: float
    holding_ms: float
    """Time for which it holds a server connection, on this machine and without a network."""
    database_cpu_ms: float


@dataclass(frozen=True)
class Load:
    """The load of many environments at the pooler, calculated or measured."""

    holding_ms: float
    """Time for which one turn holds a server connection. The calculated one is measured with no other client."""
    turns_per_second: float
    servers_busy: float
    """Average number."""
    clients_waiting: float
    """Average number that waits for a server connection."""

    @classmethod
    def calculated(cls, holding: float) -> "Load":
        """Return the calculated load, if a turn holds a server connection for `holding` seconds."""
        rate = capacity.throughput(ENVIRONMENTS, THINKING, holding, POOL)
        waiting = capacity.waiting(ENVIRONMENTS, THINKING, holding, POOL)
        return cls(holding * 1000, rate, capacity.busy(rate, holding), waiting)


@dataclass(frozen=True)
class Trial:
    """One test of the calculation."""

    calculated: Load
    measured: Load


@dataclass(frozen=True)
class Scaling:
    """All measured values."""

    weight: Weight
    clients: int
    servers: int
    roomy: Trial
    exhausted: Trial
    seconds: float


def measure() -> Scaling:
    """Measure a turn and test the calculation. Takes about a minute. Raises StartupError."""
    began = time.perf_counter()
    _allow_files()
    with parts.running() as running:
        _say("measuring a turn")
        people.store(running.postgres.superuser_url, 1, ENVIRONMENTS + 1)
        weight = _weigh(running)
        with pgbouncer.running(running.postgres, pool_size=POOL, tls=False) as pooler:
            with asyncio.Runner() as runner:
                roomy, exhausted = runner.run(_try_both(running.postgres, pooler))
    _say("")
    return Scaling(weight, ENVIRONMENTS, POOL, roomy, exhausted, time.perf_counter() - began)


def _allow_files() -> None:
    """Raise the limit of open files: each connection is one here and two in the pooler, which inherits the limit."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _weigh(running: Parts) -> Weight:
    worker = Worker("bench.growth", "--worker", environment=os.environ | running.environment)
    worker.ask(["turns", [1] * 10])
    before, cpu = _served(running.pooler), _cpu_seconds(running.postgres)
    worker.ask(["turns", list(range(1, WEIGHED + 1))])
    after, cpu = _served(running.pooler), _cpu_seconds(running.postgres) - cpu
    worker.stop()
    return Weight(
        transactions=(after["total_xact_count"] - before["total_xact_count"]) / WEIGHED,
        holding_ms=(_held(after) - _held(before)) / 1000 / WEIGHED,
        database_cpu_ms=cpu * 1000 / WEIGHED,
    )


def _served(pooler: PgBouncer) -> dict[str, int]:
    """Return the pooler's counters since its start. Times are in microseconds."""
    return _of_program(pooler.show("stats"))


def _of_program(rows: list[dict[str, Any]]) -> dict[str, int]:
    (row,) = [row for row in rows if row["database"] == DATABASE and row.get("user", APP) == APP]
    return {name: int(value) for name, value in row.items() if isinstance(value, int | Decimal)}


def _cpu_seconds(postgres: Postgres) -> float:
    """Return the CPU seconds of the server's live processes."""
    spent = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the process has ended
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == postgres.process.pid:
                spent += int(fields[11]) + int(fields[12])
    return spent / os.sysconf("SC_CLK_TCK")


@dataclass
class Environment:
    """A simulated execution environment: one connection to the pooler, one turn at a time."""

    number: int
    connection: psycopg.AsyncConnection[Any]
    turns: int = 0

    async def run(self, roundtrip: float, stop: asyncio.Event) -> None:
        """Run turns until `stop` is set. The model thinks before and after the tool call. Begin within a turn."""
        await self._transact(roundtrip, _BEGIN)
        half = random.choice(("first", "second"))  # noqa: S311
        while not stop.is_set():
            await _pause(random.expovariate(2 / THINKING), stop)
            if half == "first":
                await self._transact(roundtrip, _CALL)
                half = "second"
            else:
                await self._transact(roundtrip, _FINISH)
                self.turns += 1
                await self._transact(roundtrip, _BEGIN)
                half = "first"

    async def turn(self, roundtrip: float) -> None:
        """Run one turn with a model that takes no time."""
        for exchanges in (_BEGIN, _CALL, _FINISH):
            await self._transact(roundtrip, exchanges)

    async def _transact(self, roundtrip: float, exchanges: tuple[str, str]) -> None:
        here = {"user": people.user_id(self.number), "id": people.conversation_id(self.number)}
        first, second = (exchange.format(**here) for exchange in exchanges)
        await self.connection.execute(first.encode())
        await asyncio.sleep(roundtrip)  # the network's roundtrip
        await self.connection.execute(second.encode())


async def _pause(seconds: float, stop: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()


_FOR: Final = "begin; select set_config('app.user_id', '{user}', true);"
_HERE: Final = "user_id = '{user}' and id = '{id}'"
_BEGIN: Final = (
    f"{_FOR} update conversation set fence = fence + 1, next_position = next_position + 2 where {_HERE}",
    "select * from message where user_id = '{user}' and conversation_id = '{id}' order by position;"
    " insert into message (user_id, conversation_id, position, turn_id, role, content) select user_id, id,"
    f" next_position - 2, gen_random_uuid(), 'user', '{tasks.ADD}' from conversation where {_HERE}; commit",
)
_CALL: Final = (
    f"{_FOR} select fence from conversation where {_HERE} for share",
    f"{tasks.INSERT}; commit",
)
_FINISH: Final = (
    f"{_FOR} update conversation set updated_at = clock_timestamp() where {_HERE}",
    "insert into message (user_id, conversation_id, position, turn_id, role, content) select user_id, id,"
    f" next_position - 1, gen_random_uuid(), 'assistant', 'Added.' from conversation where {_HERE}; commit",
)


async def _try_both(postgres: Postgres, pooler: PgBouncer) -> tuple[Trial, Trial]:
    url, gate = pooler.url(postgres.app_url), asyncio.Semaphore(CONNECTING)

    async def connect(number: int) -> Environment:
        async with gate:
            opened = await psycopg.AsyncConnection.connect(url, autocommit=True, prepare_threshold=None)
            return Environment(number, opened)

    _say(f"connecting {ENVIRONMENTS:,} environments")
    environments = await asyncio.gather(*(connect(number) for number in range(1, ENVIRONMENTS + 1)))
    roomy, exhausted = [await _try(pooler, environments, roundtrip) for roundtrip in (NEAR, FAR)]
    for environment in environments:
        await environment.connection.close()
    return roomy, exhausted


async def _try(pooler: PgBouncer, environments: list[Environment], roundtrip: float) -> Trial:
    _say(f"{len(environments):,} environments, a roundtrip of {roundtrip * 1000:g} ms away")
    holding = await _alone(pooler, environments[0], roundtrip)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as running:
        for environment in environments:
            running.create_task(environment.run(roundtrip, stop))
        await asyncio.sleep(SETTLING)
        measured = await _watch(pooler, environments)
        stop.set()
    return Trial(Load.calculated(holding), measured)


async def _alone(pooler: PgBouncer, environment: Environment, roundtrip: float) -> float:
    """Return the seconds for which a turn holds a server connection while no other client uses the pooler."""
    before = _served(pooler)
    for _ in range(WEIGHED):
        await environment.turn(roundtrip)
    return (_held(_served(pooler)) - _held(before)) / 1e6 / WEIGHED


async def _watch(pooler: PgBouncer, environments: list[Environment]) -> Load:
    before, done = _served(pooler), sum(environment.turns for environment in environments)
    servers, clients, seconds = await asyncio.to_thread(_sample, pooler)
    done = sum(environment.turns for environment in environments) - done
    held = _held(_served(pooler)) - _held(before)
    return Load(held / 1000 / done, done / seconds, servers, clients)


def _held(counters: dict[str, int]) -> int:
    """Return the microseconds for which transactions held a server. The pooler's total includes their waiting."""
    return counters["total_xact_time"] - counters["total_wait_time"]


def _sample(pooler: PgBouncer) -> tuple[float, float, float]:
    """Return the average numbers of busy servers and waiting clients, and the seconds of the measurement."""
    pools, began = [], time.perf_counter()
    with pooler.console() as console:
        while time.perf_counter() < began + MEASURING:
            pools.append(_of_program(console.execute("SHOW POOLS").fetchall()))
            time.sleep(SAMPLE)
    seconds = time.perf_counter() - began
    return mean(pool["sv_active"] for pool in pools), mean(pool["cl_waiting"] for pool in pools), seconds


def _say(text: str) -> None:
    print(f"\r{text:60}", end="", file=sys.stderr, flush=True)


def report(found: Scaling) -> Iterator[str]:
    """Yield the figures, line by line."""
    weight = found.weight
    yield f"a real turn: {weight.transactions:.1f} transactions that hold a server for {weight.holding_ms:.1f} ms"
    yield f"a real turn: {weight.database_cpu_ms:.1f} ms of Postgres's CPU"
    yield f"{found.clients:,} clients on {found.servers} server connections, {THINKING:g} s of model time in a turn"
    for name, trial in (("spare connections", found.roomy), ("pool used up", found.exhausted)):
        yield f"{name:44}{'calculated':>12}{'measured':>12}"
        for what, calculated in vars(trial.calculated).items():
            measured = getattr(trial.measured, what)
            yield f"  {what.replace('_', ' '):42}{calculated:12.1f}{measured:12.1f}"
    yield f"{found.seconds:.0f} s"


def main() -> None:
    """Measure, and print the calculated values beside the measured ones."""
    print(*report(measure()), sep="\n")


if __name__ == "__main__":
    main()
