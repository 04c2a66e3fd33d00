"""A pooler that is restarted again and again in the middle of 50 turns.

Promises: through PgBouncer with 5 server connections, each request is answered with 200, or with 503 or 409 and a time
to come back; with its key it ends with 200, its effects once and each call on record with its line in the log. No
conversation is busy for longer than a lease may last.
"""

import json
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from queue import SimpleQueue

import pytest

from dev import pgbouncer, processes
from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from taskchat.conversations.lease import LEASE_GRACE
from taskchat.http.gateway import MAX_SECONDS
from testing.callers import Caller
from testing.gateway import Response
from tests import db_assertions as truth
from tests.conftest import variables
from tests.db_assertions import Rows
from tests.environments import Environment, Fleet, Zygote

TURNS, ENVIRONMENTS, SERVER_CONNECTIONS, RESTARTS = 50, 12, 5, 6
ENOUGH = 60
"""Seconds in which every turn must have its answer."""
MESSAGE = "Add buy milk and call mum, then finish the milk"
EFFECTS = ["insert buy milk", "insert call mum", "update buy milk"]


@pytest.fixture(scope="module")
def own_pooler(server: Postgres, pooler: PgBouncer) -> Iterator[PgBouncer]:
    """A pooler of this module's. The other one is asked for because it knows when there can't be any."""
    with pgbouncer.running(server, pool_size=SERVER_CONNECTIONS) as running:
        yield running


@dataclass
class Turns:
    """Fifty people, each of whom says one thing, through environments that serve one request at a time."""

    rows: Rows
    clients: list[Caller]
    idle: "SimpleQueue[Environment]"
    first: Counter[int] = field(default_factory=Counter)
    again: Counter[int] = field(default_factory=Counter)

    def take(self, client: Caller) -> Response:
        """Ask until there is an answer."""
        request = client.request({"message": MESSAGE}, "key")
        for attempt, _ in enumerate(processes.attempts(ENOUGH)):
            environment = self.idle.get()
            answer = environment.ask(request).answer
            self.idle.put(environment)
            (self.again if attempt else self.first)[answer.status] += 1
            if answer.status == 200:
                return answer
            self._come_back(client, answer)
        raise AssertionError("never answered")

    def _come_back(self, client: Caller, answer: Response) -> None:
        """Check that the refusal is an honest one, and have the time pass for which a lease is left behind."""
        assert answer.status in (409, 503), answer.body
        assert int(answer.headers["retry-after"]) >= 1
        held = self.rows.execute(
            "select extract(epoch from lease_until - clock_timestamp())::float as left from conversation"
            " where user_id = %s",
            [client.id],
        ).fetchone()
        assert held is None or (held["left"] or 0) <= MAX_SECONDS + LEASE_GRACE
        truth.let_leases_run_out(self.rows, client.id)


@pytest.fixture
def turns(
    warm_zygote: Zygote, server: Postgres, own_pooler: PgBouncer, standin: StandIn, issuer: Issuer, rows: Rows
) -> Iterator[Turns]:
    """Turns that are to be taken."""
    fleet, idle = Fleet(warm_zygote, variables(own_pooler.url(server.app_url), standin, issuer)), SimpleQueue()
    for _ in range(ENVIRONMENTS):
        idle.put(fleet.start())
    with truth.watched(rows):
        yield Turns(rows, [Caller.new(issuer) for _ in range(TURNS)], idle)
    fleet.stop()


def _restart(number: signal.Signals) -> Callable[[PgBouncer], None]:
    return lambda pooler: pooler.restart(number)


def _reconnect(pooler: PgBouncer) -> None:
    with pooler.console() as console:
        console.execute("RECONNECT")


@pytest.mark.parametrize(
    "disturb",
    [
        pytest.param(_restart(signal.SIGTERM), id="ended at once"),
        pytest.param(_restart(signal.SIGKILL), id="killed"),
        pytest.param(_restart(signal.SIGINT), id="ended after transactions"),
        pytest.param(_reconnect, id="told to reconnect"),
    ],
)
def test_every_turn_is_done_once(
    disturb: Callable[[PgBouncer], None],
    turns: Turns,
    own_pooler: PgBouncer,
    warm_zygote: Zygote,
    rows: Rows,
    tell: Callable[[str], None],
    request: pytest.FixtureRequest,
) -> None:
    """The pooler is disturbed each time that a few of them have ended."""
    logged_before = warm_zygote.log_size()  # what environments were killed at, in other tests, may be half a line
    with ThreadPoolExecutor(ENVIRONMENTS) as pool:
        asked = {pool.submit(turns.take, client): client for client in turns.clients}
        for number in range(RESTARTS):
            _wait_for(set(asked), number * TURNS // (RESTARTS + 2))
            disturb(own_pooler)
        answers = {client: done.result() for done, client in asked.items()}
    for client, answer in answers.items():
        truth.check_turn(rows, client.id, MESSAGE, answer)
        # A call whose commit did not reach the server is made once more, behind the calls that were asked for with it.
        assert sorted(truth.effects(rows, client.id)) == EFFECTS
    assert calls_without_line(warm_zygote.logged(since=logged_before), answers) == set()
    told = f"first answers {dict(turns.first)}, later ones {dict(turns.again)}"
    tell(f"{TURNS} turns, pooler disturbed {RESTARTS} times ({request.node.callspec.id}): {told}")


def _wait_for(asked: set[Future[Response]], number: int) -> None:
    """Return once so many have their answer."""
    while sum(future.done() for future in asked) < number:
        wait([future for future in asked if not future.done()], return_when=FIRST_COMPLETED)


def calls_without_line(logged: str, answers: dict[Caller, Response]) -> set[tuple[str, str, str]]:
    """Return the calls on record that have no audit line: person, turn and id of each."""
    # A line break is a write of its own, and several environments share the file.
    records = [record for record in re.split(r"\s*\n|(?<=\})(?=\{)", logged) if '"taskchat.audit/1"' in record]
    told = {(line["actor"], line["turn_id"], line["call_id"]) for line in map(json.loads, records)}
    kept = {
        (client.id, answer.json["turn_id"], call["call_id"])
        for client, answer in answers.items()
        for call in answer.json["tool_calls"]
    }
    return kept - told
