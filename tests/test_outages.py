"""A database that is down, goes away, comes back, or sleeps: what the person gets, and that nothing is done twice."""

import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import event

from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from tests import proxy
from tests.conftest import Person, forget
from tests.proxy import Proxy

Rows = psycopg.Connection[dict[str, Any]]
DO = "add buy milk and call mum, then finish the milk"


def check_done_once(person: Person, rows: Rows, answer: Any) -> None:
    """One message, one reply, two tasks of which one is finished, and every call of the answer on record once."""
    said = rows.execute("select role from message where user_id = %s order by position", [person.id]).fetchall()
    tasks = rows.execute("select title, completed from task where user_id = %s order by id", [person.id]).fetchall()
    calls = rows.execute("select call_id from tool_call where user_id = %s order by position", [person.id]).fetchall()
    assert [row["role"] for row in said] == ["user", "assistant"]
    assert [(row["title"], row["completed"]) for row in tasks] == [("buy milk", True), ("call mum", False)]
    assert [row["call_id"] for row in calls] == [call["call_id"] for call in answer["tool_calls"]]


def let_leases_run_out(rows: Rows, person: Person) -> None:
    """As if the time had passed."""
    rows.execute("update conversation set lease_until = now() where user_id = %s and lease_until > now()", [person.id])


class TestThroughTheWire:
    """With a wire that can be cut between program and Postgres."""

    @pytest.fixture(scope="class")
    @classmethod
    def wire(cls, server: Postgres) -> Iterator[Proxy]:
        """The wire."""
        with proxy.running(server.app_url) as running:
            yield running

    @pytest.fixture(scope="class")
    @classmethod
    def database_url(cls, wire: Proxy, server: Postgres) -> str:
        """The runtime role's URL through it."""
        return wire.url(server.app_url)

    @pytest.mark.parametrize("nth", range(1, 7))
    def test_the_answer_to_a_commit_is_lost(self, alice: Person, wire: Proxy, rows: Rows, nth: int) -> None:
        """Whichever commit of the turn it is, the person is told to come back, and then finds all of it done once."""
        from chat.app import process

        commits = 0

        def count(_connection: Any) -> None:
            nonlocal commits
            commits += 1
            if commits == nth:
                wire.lose_answer_to = b"commit"

        event.listen(process.database.engine, "commit", count)
        first = alice.say(DO, key="k")
        assert (wire.lost, first.status) == (1, 503)
        wire.lost = 0
        assert first.headers["retry-after"]
        rows.execute(
            "update conversation set lease_until = now() where user_id = %s and lease_until > now()", [alice.id]
        )
        check_done_once(alice, rows, alice.say(DO, key="k").json)

    def test_a_database_that_sleeps_is_waited_for(self, alice: Person, wire: Proxy) -> None:
        """Connecting takes a while; the person sees an ordinary answer."""
        wire.connect_delay = 1.5
        try:
            assert alice.say("add buy milk").status == 200
        finally:
            wire.connect_delay = 0

    @pytest.mark.parametrize("delay", [0.7, 1.5, 4.0])
    def test_a_database_that_dawdles_does_not_hold_the_answer_up(
        self, alice: Person, wire: Proxy, rows: Rows, delay: float
    ) -> None:
        """However slowly it answers, the person is answered before Lambda's time is up; later all is done once."""
        budget = 8.0
        assert alice.say("what is left?").status == 200
        wire.answer_delay = delay
        try:
            began = time.monotonic()
            answer = alice.say(DO, key="k", seconds=budget)
            took = time.monotonic() - began
        finally:
            wire.answer_delay = 0
        assert answer.status in (503, 504)
        assert took < budget
        let_leases_run_out(rows, alice)
        assert alice.say(DO, key="k").status == 200
        done = rows.execute("select title, completed from task where user_id = %s order by id", [alice.id]).fetchall()
        assert [(row["title"], row["completed"]) for row in done] == [("buy milk", True), ("call mum", False)]


class TestThroughThePooler:
    """Behind PgBouncer."""

    @pytest.fixture(scope="class")
    @classmethod
    def database_url(cls, pooler: PgBouncer, server: Postgres) -> str:
        """The runtime role's URL through it."""
        return pooler.url(server.app_url)

    def test_down_when_the_request_comes(self, alice: Person, pooler: PgBouncer, rows: Rows) -> None:
        """503 with a time to come back, and nothing is stored; afterwards all is well."""
        pooler.stop()
        try:
            answer = alice.say("add buy milk", key="k")
        finally:
            pooler.restart()
        assert (answer.status, answer.json["type"]) == (503, "urn:taskchat:problem:database-unavailable")
        assert answer.headers["retry-after"]
        assert rows.execute("select from message where user_id = %s", [alice.id]).fetchall() == []
        assert alice.say("add buy milk", key="k").status == 200

    def test_a_pooler_that_restarts_between_two_turns_is_not_noticed(self, alice: Person, pooler: PgBouncer) -> None:
        """The connection of the warm environment is dead; the second turn is an ordinary one."""
        first = alice.say("add buy milk").json
        pooler.restart()
        assert alice.say("what is left?", first["conversation_id"]).status == 200

    def test_a_pooler_that_restarts_while_the_model_thinks_is_not_noticed(
        self, alice: Person, pooler: PgBouncer, rows: Rows
    ) -> None:
        """Between two steps of a turn no connection is held, so there is none to lose."""
        from chat.model import ModelClient

        real = ModelClient.ask

        async def restart_first(client: ModelClient, *arguments: Any) -> Any:
            pooler.restart()
            return await real(client, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ModelClient, "ask", restart_first)
            answer = alice.say(DO)
        assert answer.status == 200
        check_done_once(alice, rows, answer.json)


def test_the_server_goes_away_before_any_statement(alice: Person, rows: Rows) -> None:
    """At each statement of a turn in its place: the answer is an honest one, and the retry finds it done once."""
    from chat.app import process

    statuses = []
    for nth in range(1, 60):
        person = Person(f"{alice.id[:20]}{nth}", alice.issuer)
        forget()
        statements = 0

        def cut(*_: Any, nth: int = nth) -> None:
            nonlocal statements
            statements += 1
            if statements == nth:
                rows.execute(
                    "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'taskchat_app'"
                )

        event.listen(process.database.engine, "before_cursor_execute", cut)
        answer = person.say(DO, key="k")
        if statements < nth:
            break
        statuses.append(answer.status)
        let_leases_run_out(rows, person)
        check_done_once(person, rows, person.say(DO, key="k").json)
    assert statements < nth, "the turn has more statements than were tried"
    assert set(statuses) == {200, 503}
