"""Many at once, half of them twice, through few connections.

Promises: of 200 concurrent requests over 10 conversations, half of them duplicates, through PgBouncer with 5 server
connections, every accepted turn ran once and none was lost; the messages of a conversation are in one order, question
and answer together; duplicates got the same bytes; nobody got anything of another's.
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
from tests import db_assertions as truth
from tests.conftest import variables
from tests.db_assertions import Rows
from tests.environments import Environment, Fleet, Zygote
from tests.tally import tell_at_the_end

ENVIRONMENTS = 16
"""Processes that serve at once, each one request at a time. More than the pooler has connections."""
PEOPLE, CONVERSATIONS, TURNS, COPIES = 5, 10, 100, 2
SERVER_CONNECTIONS = 5
SEED = int(os.environ.get("LOAD_SEED") or random.SystemRandom().randrange(10**6))
PATIENCE = 120
"""Seconds until a request that is told to come back is given up by the test: never reached."""


@dataclass
class Asked:
    """A message that must be done once, and the answers that its copies got."""

    client: Caller
    conversation_id: str
    mark: str
    key: str = field(default_factory=lambda: f"key-{uuid4()}")
    answers: list[Response] = field(default_factory=list)

    @property
    def message(self) -> str:
        """It asks for the whole list, so that anything of another's would show."""
        return f"Add {self.mark}, then show all tasks"


class Load:
    """Everything that is asked, and what came of it."""

    def __init__(self, fleet: Fleet, rows: Rows, issuer: Issuer) -> None:
        self.fleet, self.rows = fleet, rows
        self.statuses: Counter[str] = Counter()
        self.clients = [Caller.new(issuer) for _ in range(PEOPLE)]
        self.conversations: list[tuple[Caller, str]] = []
        with fleet.cold() as environment:
            for number in range(CONVERSATIONS):
                client = self.clients[number % PEOPLE]
                begun = environment.ask(client.request({"message": f"Add {_mark(client)}begin{number}"})).answer.json
                self.conversations.append((client, begun["conversation_id"]))
        self.asked = [
            Asked(client, conversation_id, f"{_mark(client)}n{number}")
            for number in range(TURNS)
            for client, conversation_id in [self.conversations[number % CONVERSATIONS]]
        ]

    def run(self) -> None:
        """Send every message, each as often as it has copies, in some order, from all environments at once."""
        copies = self.asked * COPIES
        random.Random(SEED).shuffle(copies)  # noqa: S311
        queue: SimpleQueue[Asked] = SimpleQueue()
        for asked in copies:
            queue.put(asked)
        environments = [self.fleet.start() for _ in range(ENVIRONMENTS)]
        with ThreadPoolExecutor(ENVIRONMENTS) as pool:
            for done in [pool.submit(self._serve, environment, queue) for environment in environments]:
                done.result()

    def _serve(self, environment: Environment, queue: "SimpleQueue[Asked]") -> None:
        while not queue.empty():
            asked = queue.get()
            asked.answers.append(self._send(environment, asked))

    def _send(self, environment: Environment, asked: Asked) -> Response:
        """Send one copy until it is answered; a refused one again as soon as its conversation is free."""
        request = asked.client.request({"message": asked.message, "conversation_id": asked.conversation_id}, asked.key)
        for _ in processes.attempts(PATIENCE):
            response = environment.ask(request).answer
            if response.status == 200:
                self.statuses["replayed" if "idempotent-replayed" in response.headers else "ran"] += 1
                return response
            self.statuses[f"refused with {response.status}"] += 1
            assert response.status == 409, response.body
            assert int(response.headers["retry-after"]) >= 1
            self._wait_until_free(asked)
        raise AssertionError("never answered")

    def _wait_until_free(self, asked: Asked) -> None:
        for _ in processes.attempts(PATIENCE):
            if truth.lease(self.rows, asked.client.id, asked.conversation_id) is None:
                return


def _mark(client: Caller) -> str:
    """What every word of a person's begins with, and nobody else's contains."""
    return f"x{client.id[:10]}x"


@pytest.fixture(scope="module")
def load(
    warm_zygote: Zygote,
    server: Postgres,
    pooler: PgBouncer,
    running_model: StandIn,
    issuer: Issuer,
    rows: Rows,
    request: pytest.FixtureRequest,
) -> Iterator[Load]:
    """The load, once all of it is answered."""
    fleet = Fleet(warm_zygote, variables(pooler.url(server.app_url), running_model, issuer))
    with truth.watched(rows):
        load = Load(fleet, rows, issuer)
        load.run()
        counts = ", ".join(f"{number} {status}" for status, number in sorted(load.statuses.items()))
        tell_at_the_end(
            request.config,
            f"{TURNS * COPIES} requests, {CONVERSATIONS} conversations, {PEOPLE} people, {ENVIRONMENTS} processes,"
            f" {SERVER_CONNECTIONS} server connections: {counts} (LOAD_SEED={SEED})",
        )
        yield load
        fleet.stop()


def test_every_accepted_turn_ran_once(load: Load) -> None:
    """Each message has one answer that was worked for; its other copies got that one again."""
    assert (load.statuses["ran"], load.statuses["replayed"]) == (TURNS, TURNS * (COPIES - 1))


def test_none_was_lost(load: Load) -> None:
    """Each message is stored with its answer, its calls and its effect, once."""
    for asked in load.asked:
        truth.check_turn(load.rows, asked.client.id, asked.message, asked.answers[0])
        assert [call["tool"] for call in asked.answers[0].json["tool_calls"]] == ["add_task", "list_tasks"]
    for client in load.clients:
        wanted = [f"insert {asked.mark}" for asked in load.asked if asked.client is client]
        begun = [effect for effect in truth.effects(load.rows, client.id) if "begin" in effect]
        assert sorted(truth.effects(load.rows, client.id)) == sorted(wanted + begun)
        assert len(begun) == CONVERSATIONS // PEOPLE


def test_duplicates_got_the_same_bytes(load: Load) -> None:
    """Whoever asked, and whichever process answered."""
    for asked in load.asked:
        assert len(asked.answers) == COPIES
        assert len({answer.body for answer in asked.answers}) == 1


def test_each_conversation_is_one_sequence(load: Load) -> None:
    """Positions are counted without a gap, and each question is followed by its own answer."""
    for client, conversation_id in load.conversations:
        found = load.rows.execute(
            "select position, turn_id, role from message where user_id = %s and conversation_id = %s order by position",
            [client.id, conversation_id],
        ).fetchall()
        assert [row["position"] for row in found] == list(range(2 * (TURNS // CONVERSATIONS + 1)))
        assert [row["role"] for row in found] == ["user", "assistant"] * (len(found) // 2)
        assert [row["turn_id"] for row in found[::2]] == [row["turn_id"] for row in found[1::2]]


def test_nobody_got_anything_of_another_s(load: Load) -> None:
    """Every answer lists the person's own tasks, and no mark of anybody else's is in it."""
    for asked in load.asked:
        told = asked.answers[0].body
        assert asked.mark in told
        assert [client for client in load.clients if _mark(client) in told] == [asked.client]


def test_the_pooler_had_few_connections(load: Load, pooler: PgBouncer) -> None:
    """All of that went through no more than five."""
    used = [server for server in pooler.show("servers") if server["user"] == "taskchat_app"]
    assert 1 <= len(used) <= SERVER_CONNECTIONS
