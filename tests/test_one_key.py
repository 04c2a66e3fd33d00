"""Send one Idempotency-Key twice at once, and begin one turn twice in one process.

Promises: of two different requests with one key, one is done and the other gets 422, as if they had come in sequence. A
process takes over its own lease and no other, even one with the same turn and the same number.
"""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from uuid import UUID, uuid4

import pytest

from dev import processes
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from taskchat.conversations import turns as conversations
from taskchat.conversations.lease import Lease, LeaseLost
from taskchat.conversations.turns import Begun, Request
from taskchat.database.transaction import Database
from taskchat.errors import KeyReused, TurnInProgress
from testing.callers import Caller
from testing.gateway import Response
from tests import db_assertions
from tests.conftest import variables
from tests.db_assertions import Rows
from tests.domain import example
from tests.environments import Environment, Fleet, ForkServer

Report = Callable[[str], None]
ROUNDS = 100 if "THOROUGH" in os.environ else 15
UNLIMITED = {"TURN_BURST": "0", "TURNS_PER_MINUTE": "0", "DAILY_MODEL_TOKENS": "0"}
BUDGET = 6_000
"""Tokens of history."""


class TestTwoRequestsAtOnce:
    """Two processes take different requests with one key, in many rounds."""

    @pytest.fixture(params=[UNLIMITED, {}], ids=["without limits", "with limits"])
    def pair(
        self,
        request: pytest.FixtureRequest,
        warm_fork_server: ForkServer,
        server: Postgres,
        standin: StandIn,
        issuer: Issuer,
        rows: Rows,
    ) -> Iterator[list[Environment]]:
        """Give two environments of one deployment. Without limits, no other row makes a user's requests wait."""
        fleet = Fleet(warm_fork_server, variables(server.app_url, standin, issuer) | request.param)
        with db_assertions.watched(rows):
            yield [fleet.start(), fleet.start()]
        fleet.stop()

    @pytest.fixture
    def client(self, issuer: Issuer) -> Caller:
        """Return a user that the service does not know yet."""
        return Caller.new(issuer)

    @pytest.fixture
    def places(self, pair: list[Environment], client: Caller) -> list[str]:
        """Begin two conversations of this user."""
        begun = [environment.ask(client.request({"message": example.show()})).answer for environment in pair]
        return [answer.json["conversation_id"] for answer in begun]

    def race(self, pair: list[Environment], client: Caller, bodies: list[dict[str, str | None]]) -> list[Response]:
        """Send both with one new key, and wait for both."""
        key = f"key-{uuid4()}"
        for environment, body in zip(pair, bodies, strict=True):
            environment.send(client.request(body, key))
        return [environment.outcome().answer for environment in pair]

    def check(self, rows: Rows, client: Caller, answers: list[Response], effects: int) -> None:
        """Check that one is done once, and that the other gets 422."""
        assert sorted(answer.status for answer in answers) == [200, 422], [answer.body for answer in answers]
        (refused,) = [answer.json for answer in answers if answer.status == 422]
        assert refused["type"] == "urn:taskchat:problem:idempotency-key-reused"
        assert len(db_assertions.effects(rows, client.id)) == effects

    def test_one_of_two_conversations_wins(
        self, pair: list[Environment], client: Caller, places: list[str], rows: Rows, report: Report
    ) -> None:
        """Both requests have the same message."""
        winners = Counter[int]()
        for number in range(ROUNDS):
            bodies = [{"message": example.add(f"n{number}"), "conversation_id": place} for place in places]
            answers = self.race(pair, client, bodies)
            self.check(rows, client, answers, number + 1)
            winners[[answer.status for answer in answers].index(200)] += 1
        report(f"One key in two conversations at once: {ROUNDS} rounds, won by {dict(winners)}")

    def test_a_new_or_an_old_conversation_wins(
        self, pair: list[Environment], client: Caller, places: list[str], rows: Rows
    ) -> None:
        """The refused request leaves no conversation behind."""
        begun = 0
        for number in range(ROUNDS):
            bodies = [{"message": example.add(f"n{number}"), "conversation_id": place} for place in (None, places[1])]
            answers = self.race(pair, client, bodies)
            self.check(rows, client, answers, number + 1)
            begun += answers[0].status == 200
        there = rows.execute("select id from conversation where user_id = %s", [client.id]).fetchall()
        assert len(there) == len(places) + begun

    def test_one_of_two_messages_wins(
        self, pair: list[Environment], client: Caller, places: list[str], rows: Rows
    ) -> None:
        """Both are for the same conversation, and the first one is done."""
        for number in range(ROUNDS):
            bodies = [{"message": example.add(f"{word}{number}"), "conversation_id": places[0]} for word in "ab"]
            answers = self.race(pair, client, bodies)
            self.check(rows, client, answers, number + 1)
            won = [answer.status for answer in answers].index(200)
            (made,) = answers[won].json["tool_calls"]
            assert made["result"][example.text] == f"{'ab'[won]}{number}"


class TestATurnThatBeginsAgain:
    """A process that does not know if its begin was committed begins again, with its own lease."""

    @pytest.fixture
    def database(self, server: Postgres) -> Iterator[Database]:
        """Give this process's database."""
        with closing(Database(lambda: server.app_url)) as database:
            yield database

    @pytest.fixture
    def other(self, server: Postgres) -> Iterator[Database]:
        """Give another process's database."""
        with closing(Database(lambda: server.app_url)) as database:
            yield database

    @pytest.fixture
    def conversation_id(self, database: Database) -> UUID:
        """Store a conversation of Alice with one finished turn."""
        with database.transaction("alice") as session:
            begun = conversations.begin(session, "alice", uuid4(), Request("hello"), BUDGET)
            assert isinstance(begun, Begun)
            conversations.finish(session, begun.lease, begun.turn, "Hello.", {})
        return begun.lease.conversation_id

    def begin(self, database: Database, turn_id: UUID, request: Request, *own: Lease) -> Begun:
        """Begin Alice's turn in its own transaction."""
        with database.transaction("alice") as session:
            begun = conversations.begin(session, "alice", turn_id, request, BUDGET, own)
        assert isinstance(begun, Begun)
        return begun

    def test_it_takes_over_its_own_lease(self, database: Database, conversation_id: UUID) -> None:
        """It does not wait, and the older lease writes nothing after that."""
        turn_id, request = uuid4(), Request("again", conversation_id)
        first = self.begin(database, turn_id, request)
        again = self.begin(database, turn_id, request, first.lease)
        assert (again.lease.fence, again.turn) == (first.lease.fence + 1, first.turn)
        with pytest.raises(LeaseLost), database.transaction("alice") as session:
            first.lease.check(session)

    def test_it_takes_over_either_of_two_leases(self, database: Database, conversation_id: UUID) -> None:
        """The second begin may be as uncertain as the first."""
        turn_id, request = uuid4(), Request("again", conversation_id)
        first = self.begin(database, turn_id, request)
        with database.transaction("alice") as session:
            lost = conversations.begin(session, "alice", turn_id, request, BUDGET, [first.lease])
            assert isinstance(lost, Begun)
            session.rollback()
        assert self.begin(database, turn_id, request, first.lease, lost.lease).lease.fence == lost.lease.fence

    def test_it_takes_over_no_lease_of_another_process(
        self, database: Database, other: Database, conversation_id: UUID
    ) -> None:
        """The other lease has the same turn and the same number, which a rolled-back begin has freed."""
        turn_id, request = uuid4(), Request("again", conversation_id)
        with database.transaction("alice") as session:
            lost = conversations.begin(session, "alice", turn_id, request, BUDGET)
            assert isinstance(lost, Begun)
            session.rollback()
        held = self.begin(other, turn_id, request)
        assert held.lease.fence == lost.lease.fence
        with pytest.raises(TurnInProgress):
            self.begin(database, turn_id, request, lost.lease)
        with other.transaction("alice") as session:
            held.lease.check(session)

    def test_it_waits_for_a_running_commit(
        self, database: Database, other: Database, conversation_id: UUID, rows: Rows
    ) -> None:
        """It reads the committed turn, and does not store the message at a second position."""
        turn_id, request = uuid4(), Request("again", conversation_id)
        found: list[Begun] = []
        with other.transaction("alice") as session:
            first = conversations.begin(session, "alice", turn_id, request, BUDGET)
            assert isinstance(first, Begun)
            waiting = threading.Thread(target=lambda: found.append(self.begin(database, turn_id, request, first.lease)))
            waiting.start()
            self._await_a_lock(rows)
        waiting.join()
        assert [begun.turn for begun in found] == [first.turn]
        with database.transaction("alice") as session:
            found[0].lease.release(session)
        after = self.begin(database, uuid4(), Request("next", conversation_id))
        assert after.turn.position == first.turn.position + 2

    def test_it_refuses_a_key_that_was_used_meanwhile(
        self, database: Database, other: Database, conversation_id: UUID, rows: Rows
    ) -> None:
        """Another conversation's transaction commits the key while this one waits for it."""
        turn_id = uuid4()
        refused: list[Exception] = []

        def begin_here() -> None:
            try:
                self.begin(database, turn_id, Request("again", conversation_id))
            except KeyReused as error:
                refused.append(error)

        with other.transaction("alice") as session:
            conversations.begin(session, "alice", turn_id, Request("again"), BUDGET)
            waiting = threading.Thread(target=begin_here)
            waiting.start()
            self._await_a_lock(rows)
        waiting.join()
        assert len(refused) == 1
        assert db_assertions.lease(rows, "alice", str(conversation_id)) is None

    def _await_a_lock(self, rows: Rows) -> None:
        """Return when a backend waits for another one's transaction."""
        for _ in processes.attempts(5):
            if rows.execute("select from pg_stat_activity where wait_event_type = 'Lock'").fetchall():
                return
        raise AssertionError("no backend waits")
