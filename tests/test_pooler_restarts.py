"""A pooler restarts again and again in the middle of 50 turns.

Promises: PgBouncer has 5 server connections. Each request gets a 200, or a 503 or 409 with Retry-After. With its key it
ends with a 200, its effects happen once, and each recorded call has its audit line. No conversation is busy for longer
than the maximum lease.
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
from taskchat.conversations.lease import LEASE_SECONDS
from testing.callers import Caller
from testing.gateway import Response
from tests import db_assertions
from tests.conftest import variables
from tests.db_assertions import Rows
from tests.domain import example
from tests.environments import Environment, Fleet, ForkServer

TURNS, ENVIRONMENTS, SERVER_CONNECTIONS, RESTARTS = 50, 12, 5, 6
ENOUGH = 60
"""Seconds within which every turn must have its answer."""
MESSAGE = example.add("buy milk", "call mum").then(example.change("buy milk"))


@pytest.fixture(scope="module")
def own_pooler(server: Postgres, pooler: PgBouncer) -> Iterator[PgBouncer]:
    """Run a pooler of this module's own. The fixture `pooler` skips the test where PgBouncer is not installed."""
    with pgbouncer.running(server, pool_size=SERVER_CONNECTIONS) as running:
        yield running


@dataclass
class Turns:
    """Send one message for each of fifty users, through environments that serve one request at a time."""

    rows: Rows
    clients: list[Caller]
    idle: "SimpleQueue[Environment]"
    first: Counter[int] = field(default_factory=Counter)
    again: Counter[int] = field(default_factory=Counter)

    def take(self, client: Caller) -> Response:
        """Send the user's message until it gets a 200."""
        request = client.request({"message": MESSAGE}, "key")
        for attempt, _ in enumerate(processes.attempts(ENOUGH)):
            environment = self.idle.get()
            answer = environment.ask(request).answer
            self.idle.put(environment)
            (self.again if attempt else self.first)[answer.status] += 1
            if answer.status == 200:
                return answer
            self._check_refusal(client, answer)
        raise AssertionError("never answered")

    def _check_refusal(self, client: Caller, answer: Response) -> None:
        """Check the refusal's status, Retry-After and lease, and then end the lease as if its time had passed."""
        assert answer.status in (409, 503), answer.body
        assert int(answer.headers["retry-after"]) >= 1
        held = self.rows.execute(
            "select extract(epoch from lease_until - clock_timestamp())::float as left from conversation"
            " where user_id = %s",
            [client.id],
        ).fetchone()
        assert held is None or (held["left"] or 0) <= LEASE_SECONDS
        db_assertions.let_leases_run_out(self.rows, client.id)


@pytest.fixture
def turns(
    warm_fork_server: ForkServer, server: Postgres, own_pooler: PgBouncer, standin: StandIn, issuer: Issuer, rows: Rows
) -> Iterator[Turns]:
    """Prepare the users and the environments."""
    fleet, idle = Fleet(warm_fork_server, variables(own_pooler.url(server.app_url), standin, issuer)), SimpleQueue()
    for _ in range(ENVIRONMENTS):
        idle.put(fleet.start())
    with db_assertions.watched(rows):
        yield Turns(rows, [Caller.new(issuer) for _ in range(TURNS)], idle)
    fleet.stop()


def _restart(number: signal.Signals) -> Callable[[PgBouncer], None]:
    return lambda pooler: pooler.restart(number)


def _reconnect(pooler: PgBouncer) -> None:
    with pooler.console() as console:
        console.execute("RECONNECT")


@pytest.mark.parametrize(
    "disrupt",
    [
        pytest.param(_restart(signal.SIGTERM), id="ended at once"),
        pytest.param(_restart(signal.SIGKILL), id="killed"),
        pytest.param(_restart(signal.SIGINT), id="ended after transactions"),
        pytest.param(_reconnect, id="RECONNECT"),
    ],
)
def test_every_turn_happens_once(
    disrupt: Callable[[PgBouncer], None],
    turns: Turns,
    own_pooler: PgBouncer,
    warm_fork_server: ForkServer,
    rows: Rows,
    report: Callable[[str], None],
    request: pytest.FixtureRequest,
) -> None:
    """The pooler is disrupted each time that some more turns have ended."""
    logged_before = warm_fork_server.log_size()  # a killed environment of an earlier test may leave half a line
    with ThreadPoolExecutor(ENVIRONMENTS) as pool:
        asked = {pool.submit(turns.take, client): client for client in turns.clients}
        for number in range(RESTARTS):
            _wait_for(set(asked), number * TURNS // (RESTARTS + 2))
            disrupt(own_pooler)
        answers = {client: done.result() for done, client in asked.items()}
    for client, answer in answers.items():
        db_assertions.check_turn(rows, client.id, MESSAGE, answer)
        # A call whose commit did not arrive is repeated, after the other calls of the same model answer.
        assert sorted(db_assertions.effects(rows, client.id)) == MESSAGE.effects
    assert calls_without_line(warm_fork_server.logged(since=logged_before), answers) == set()
    statuses = f"first answers {dict(turns.first)}, later ones {dict(turns.again)}"
    report(f"{TURNS} turns, pooler disrupted {RESTARTS} times ({request.node.callspec.id}): {statuses}")


def _wait_for(asked: set[Future[Response]], number: int) -> None:
    """Return when so many turns have their answer."""
    while sum(future.done() for future in asked) < number:
        wait([future for future in asked if not future.done()], return_when=FIRST_COMPLETED)


def calls_without_line(logged: str, answers: dict[Caller, Response]) -> set[tuple[str, str, str]]:
    """Return the recorded calls without an audit line: user, turn and id of each."""
    # A process writes a line and its line break separately, and several processes share the file.
    records = [record for record in re.split(r"\s*\n|(?<=\})(?=\{)", logged) if '"taskchat.audit/1"' in record]
    logged = {(line["actor"], line["turn_id"], line["call_id"]) for line in map(json.loads, records)}
    recorded = {
        (client.id, answer.json["turn_id"], call["call_id"])
        for client, answer in answers.items()
        for call in answer.json["tool_calls"]
    }
    return recorded - logged
