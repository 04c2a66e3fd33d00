"""`python -m bench.reading`: measure the routes on which a person reads their own data, and an export of all of it.

A separate process is the function. The person has ten thousand of the domain's rows, a thousand conversations and an
export of a hundred thousand rows.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import md5
from statistics import median
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg

from bench import parts, tasks
from bench.figures import table
from bench.parts import Parts, Worker
from bench.turn import prepare
from dev import pgbouncer
from testing import counting_proxy
from testing import tasks as stored
from testing.callers import Caller
from testing.gateway import invoke

ROWS: Final = 10_000
CONVERSATIONS: Final = 1_000
TURNS: Final = 30_000
"""In all conversations together. With two messages and a call each, and the rows, an export has a hundred thousand."""
TIMES: Final = 40
WARM_UP: Final = 5

_STORE: Final = (
    "insert into conversation (user_id, id, title, next_position, updated_at)"
    " select %(user)s, md5(%(user)s || c)::uuid, 'Conversation ' || c, 2 * %(per)s, now() - c * interval '1 hour'"
    " from generate_series(0, %(conversations)s - 1) c",
    "insert into message (user_id, conversation_id, position, turn_id, role, content, request_hash)"
    " select %(user)s, md5(%(user)s || t / %(per)s)::uuid, 2 * (t %% %(per)s) + r, md5(%(user)s || 'turn' || t)::uuid,"
    f" (array['user', 'assistant'])[r + 1], (select {tasks.TEXT} from (select t as n) numbered), ''"
    " from generate_series(0, %(turns)s - 1) t, generate_series(0, 1) r",
    "insert into tool_call (user_id, turn_id, call_id, position, conversation_id, door, tool, arguments, outcome,"
    " result, duration_ms) select %(user)s, md5(%(user)s || 'turn' || t)::uuid, 'call_' || t, 0,"
    f" md5(%(user)s || t / %(per)s)::uuid, 'chat', {stored.CALL}, 1 from generate_series(0, %(turns)s - 1) t",
    tasks.DUE_ROWS,
    "analyze",
)


@dataclass(frozen=True)
class Read:
    """The cost of one request: medians."""

    wall: float
    """Milliseconds, as `cpu`."""
    cpu: float
    roundtrips: int


@dataclass(frozen=True)
class Export:
    """The cost of an export of everything, page by page."""

    rows: int
    pages: int
    seconds: float
    largest_page_mb: float
    peak_mb: float
    """Peak memory of the process after the export."""
    peak_before_mb: float
    roundtrips_of_a_page: float


@dataclass(frozen=True)
class Reading:
    """The figures of all routes."""

    reads: dict[str, Read]
    export: Export


def measure(running: Parts, times: int = TIMES) -> Reading:
    """Store one person's data and measure each route. Raises StartupError."""
    user_id = uuid4().hex
    with psycopg.connect(running.environment["SUPERUSER_URL"], autocommit=True) as database:
        here = {
            "user": user_id,
            "conversations": CONVERSATIONS,
            "turns": TURNS,
            "per": TURNS // CONVERSATIONS,
            "rows": ROWS,
        }
        for statement in _STORE:
            database.execute(statement.encode(), here if "%(" in statement else None)
    environment = os.environ | running.environment | {"DATA_BURST": "0"}
    worker = Worker("bench.reading", "--worker", environment=environment)
    for name in _READS:
        worker.ask([user_id, name, WARM_UP])
    costs = {name: worker.ask([user_id, name, times]) for name in _READS}
    export = worker.ask([user_id, _EXPORT, 1])
    worker.stop()
    trips = _count_roundtrips(running, environment, user_id)
    reads = {name: Read(*_medians(found), trips[name]) for name, found in costs.items()}
    return Reading(reads, Export(**export, roundtrips_of_a_page=trips[_EXPORT] / export["pages"]))


def _medians(found: list[tuple[float, float]]) -> tuple[float, float]:
    return median(wall for wall, _ in found), median(cpu for _, cpu in found)


def _count_roundtrips(running: Parts, environment: dict[str, str], user_id: str) -> dict[str, int]:
    """Count the roundtrips of each request, on a connection that is open."""
    found = {}
    with pgbouncer.running(running.postgres, tls=False) as plain:  # so that the proxy can read the messages
        url = plain.url(running.postgres.app_url)
        with counting_proxy.running(url) as between:
            worker = Worker("bench.reading", "--worker", environment=environment | {"DATABASE_URL": between.url(url)})
            worker.ask([user_id, next(iter(_READS)), WARM_UP])
            for name in (*_READS, _EXPORT):
                between.reset()
                worker.ask([user_id, name, 1])
                found[name] = between.roundtrips
            worker.stop()
    return found


def _conversation(caller: Caller) -> dict[str, Any]:
    newest = UUID(md5(f"{caller.id}0".encode(), usedforsecurity=False).hexdigest())
    return caller.own("GET", f"/conversations/{newest}", query={"limit": 20})


def _list(query: dict[str, Any]) -> Callable[[Caller], dict[str, Any]]:
    return lambda caller: caller.own("GET", f"/{tasks.THINGS}", query=query)


_READS: Final = {
    f"first 50 {tasks.THINGS}": _list({}),
    **{f"{tasks.THINGS}, {name}": _list(query) for name, query in tasks.DUE.items()},
    "50 of 1,000 conversations": lambda caller: caller.own("GET", "/conversations"),
    "20 turns of a conversation": _conversation,
}
"""A request for each figure."""

_EXPORT: Final = "export"


def _work() -> None:
    """Serve as the measured process: read a user, a route and a number; print the milliseconds of each request."""
    handler, issuer, answers = prepare("ours")
    for line in sys.stdin:
        user_id, name, times = json.loads(line)
        caller = Caller(user_id, issuer)
        found = _export(caller, handler) if name == _EXPORT else list(_requests(caller, handler, name, times))
        print(json.dumps(found), file=answers, flush=True)


def _requests(caller: Caller, handler: Any, name: str, times: int) -> Iterator[tuple[float, float]]:
    request = _READS[name](caller)
    for _ in range(times):
        started, cpu = time.perf_counter(), time.process_time()
        response = invoke(handler, request)
        yield (time.perf_counter() - started) * 1000, (time.process_time() - cpu) * 1000
        assert response.status == 200, response.body[:500]


def _export(caller: Caller, handler: Any) -> dict[str, Any]:
    before, started = _peak(), time.perf_counter()
    cursor, pages, rows, largest = "", 0, 0, 0
    while pages == 0 or cursor:
        response = invoke(handler, caller.own("GET", "/export", query={"cursor": cursor} if cursor else {}))
        assert response.status == 200, response.body[:500]
        cursor, pages = response.json["next_cursor"], pages + 1
        rows += sum(map(len, response.json["tables"].values()))
        largest = max(largest, len(response.body))
    return {
        "rows": rows,
        "pages": pages,
        "seconds": time.perf_counter() - started,
        "largest_page_mb": largest / 2**20,
        "peak_mb": _peak(),
        "peak_before_mb": before,
    }


def _peak() -> float:
    """Return the peak memory of this process in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(reading: Reading) -> Iterator[str]:
    """Yield the figures as Markdown, line by line."""
    rows = [(name, f"{of.wall:.1f}", f"{of.cpu:.1f}", str(of.roundtrips)) for name, of in reading.reads.items()]
    yield from table(rows, ("request", "wall ms", "CPU ms", "roundtrips"))
    export = reading.export
    yield ""
    yield (
        f"An export of {export.rows:,} rows took {export.seconds:.1f} s in {export.pages} pages of at most"
        f" {export.largest_page_mb:.1f} MB, with {export.roundtrips_of_a_page:.0f} roundtrips each. The process's peak"
        f" memory was {export.peak_before_mb:.0f} MB before it and {export.peak_mb:.0f} MB after it."
    )


def main() -> None:
    """Measure and print the figures. With --worker, serve as the measured process."""
    if sys.argv[1:] == ["--worker"]:
        return _work()
    with parts.running() as running:
        print(*report(measure(running)), sep="\n")
    return None


if __name__ == "__main__":
    main()
