"""Many requests arrive at once, each message twice, through few connections.

Promises: 200 requests arrive over 10 conversations, half of them duplicates, through PgBouncer with 5 server
connections. Every accepted turn runs once, and none is lost. The messages of a conversation have one order, with each
answer after its question. Duplicates get the same bytes. No user gets another user's data.
"""

import os
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from uuid import uuid4

import pytest

from dev import processes
from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from testing.callers import Caller
from testing.gateway import Response
from tests import db_assertions
from tests.conftest import variables
from tests.db_assertions import Rows
from tests.domain import example
from tests.environments import Environment, Fleet, ForkServer
from tests.example_domain import Sentence
from tests.tally import report_at_end

ENVIRONMENTS = 16
"""Processes, each of which serves one request at a time: more than the pooler has connections."""
PEOPLE, CONVERSATIONS, TURNS, COPIES = 5, 10, 100, 2
SERVER_CONNECTIONS = 5
SEED = int(os.environ.get("LOAD_SEED") or random.SystemRandom().randrange(10**6))
PATIENCE = 120
"""Seconds for which the test retries a refused request. It needs far less."""


@dataclass
class Job:
    """Hold a message that must be done once, and the answers to its copies."""

    client: Caller
    conversation_id: str
    mark: str
    key: str = field(default_factory=lambda: f"key-{uuid4()}")
    answers: list[Response] = field(default_factory=list)

    @property
    def message(self) -> Sentence:
        """Return a message that lists all rows, so that another user's row would show."""
        return example.add(self.mark).then(example.show())


class Load:
    """Send all messages, and count the answers."""

    def __init__(self, fleet: Fleet, rows: Rows, issuer: Issuer) -> None:
        self.fleet, self.rows = fleet, rows
        self.statuses: Counter[str] = Counter()
        self.clients = [Caller.new(issuer) for _ in range(PEOPLE)]
        self.conversations: list[tuple[Caller, str]] = []
        with fleet.cold() as environment:
            for number in range(CONVERSATIONS):
                client = self.clients[number % PEOPLE]
                begun = environment.ask(
                    client.request({"message": example.add(f"{_mark(client)}begin{number}")})
                ).answer.json
                self.conversations.append((client, begun["conversation_id"]))
        self.jobs = [
            Job(client, conversation_id, f"{_mark(client)}n{number}")
            for number in range(TURNS)
            for client, conversation_id in [self.conversations[number % CONVERSATIONS]]
        ]

    def run(self) -> None:
        """Send every message as often as it has copies, in random order, from all environments at once."""
        copies = self.jobs * COPIES
        random.Random(SEED).shuffle(copies)  # noqa: S311
        queue: SimpleQueue[Job] = SimpleQueue()
        for job in copies:
            queue.put(job)
        environments = [self.fleet.start() for _ in range(ENVIRONMENTS)]
        with ThreadPoolExecutor(ENVIRONMENTS) as pool:
            for done in [pool.submit(self._serve, environment, queue) for environment in environments]:
                done.result()

    def _serve(self, environment: Environment, queue: "SimpleQueue[Job]") -> None:
        while not queue.empty():
            job = queue.get()
            job.answers.append(self._send(environment, job))

    def _send(self, environment: Environment, job: Job) -> Response:
        """Send one copy until it gets a 200. After a refusal, wait until the conversation is free."""
        request = job.client.request({"message": job.message, "conversation_id": job.conversation_id}, job.key)
        for _ in processes.attempts(PATIENCE):
            response = environment.ask(request).answer
            if response.status == 200:
                self.statuses["replayed" if "idempotent-replayed" in response.headers else "ran"] += 1
                return response
            self.statuses[f"refused with {response.status}"] += 1
            assert response.status == 409, response.body
            assert int(response.headers["retry-after"]) >= 1
            self._wait_until_free(job)
        raise AssertionError("never answered")

    def _wait_until_free(self, job: Job) -> None:
        for _ in processes.attempts(PATIENCE):
            if db_assertions.lease(self.rows, job.client.id, job.conversation_id) is None:
                return


def _mark(client: Caller) -> str:
    """Return the beginning of all texts of this user. No other user's text contains it."""
    return f"x{client.id[:10]}x"


@pytest.fixture(scope="module")
def load(
    warm_fork_server: ForkServer,
    server: Postgres,
    pooler: PgBouncer,
    running_model: StandIn,
    issuer: Issuer,
    rows: Rows,
    request: pytest.FixtureRequest,
) -> Iterator[Load]:
    """Run the load."""
    fleet = Fleet(warm_fork_server, variables(pooler.url(server.app_url), running_model, issuer))
    with db_assertions.watched(rows):
        load = Load(fleet, rows, issuer)
        load.run()
        counts = ", ".join(f"{number} {status}" for status, number in sorted(load.statuses.items()))
        report_at_end(
            request.config,
            f"{TURNS * COPIES} requests, {CONVERSATIONS} conversations, {PEOPLE} people, {ENVIRONMENTS} processes,"
            f" {SERVER_CONNECTIONS} server connections: {counts} (LOAD_SEED={SEED})",
        )
        yield load
        fleet.stop()


def test_every_accepted_turn_ran_once(load: Load) -> None:
    """Each message ran once, and its other copies got a replay."""
    assert (load.statuses["ran"], load.statuses["replayed"]) == (TURNS, TURNS * (COPIES - 1))


def test_no_turn_is_lost(load: Load) -> None:
    """Each message is stored once, with its answer, its calls and its effect."""
    for job in load.jobs:
        db_assertions.check_turn(load.rows, job.client.id, job.message, job.answers[0])
        assert [call["tool"] for call in job.answers[0].json["tool_calls"]] == job.message.tools
    for client in load.clients:
        wanted = [f"insert {job.mark}" for job in load.jobs if job.client is client]
        begun = [effect for effect in db_assertions.effects(load.rows, client.id) if "begin" in effect]
        assert sorted(db_assertions.effects(load.rows, client.id)) == sorted(wanted + begun)
        assert len(begun) == CONVERSATIONS // PEOPLE


def test_duplicates_get_the_same_bytes(load: Load) -> None:
    """Each copy gets the same body from any process."""
    for job in load.jobs:
        assert len(job.answers) == COPIES
        assert len({answer.body for answer in job.answers}) == 1


def test_each_conversation_is_one_sequence(load: Load) -> None:
    """Positions have no gap, and each question is followed by its own answer."""
    for client, conversation_id in load.conversations:
        found = load.rows.execute(
            "select position, turn_id, role from message where user_id = %s and conversation_id = %s order by position",
            [client.id, conversation_id],
        ).fetchall()
        assert [row["position"] for row in found] == list(range(2 * (TURNS // CONVERSATIONS + 1)))
        assert [row["role"] for row in found] == ["user", "assistant"] * (len(found) // 2)
        assert [row["turn_id"] for row in found[::2]] == [row["turn_id"] for row in found[1::2]]


def test_no_user_gets_another_users_data(load: Load) -> None:
    """Every answer lists the user's own rows, and contains no other user's mark."""
    for job in load.jobs:
        body = job.answers[0].body
        assert job.mark in body
        assert [client for client in load.clients if _mark(client) in body] == [job.client]


def test_the_load_used_few_server_connections(load: Load, pooler: PgBouncer) -> None:
    """All requests went through at most five."""
    used = [server for server in pooler.show("servers") if server["user"] == "taskchat_app"]
    assert 1 <= len(used) <= SERVER_CONNECTIONS
