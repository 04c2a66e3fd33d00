"""The pipelined connection gives the driver's results in fewer roundtrips, and survives a broken connection.

Promises: each statement has the same rows, columns, counts and errors as with stock pg8000; a queued statement is never
lost; a broken connection leaves a transaction's effects whole or none; and a turn waits for the database five times.
"""

import datetime as dt
import decimal
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any
from uuid import UUID, uuid4

import pg8000
import psycopg
import pytest
from pg8000 import core, legacy
from sqlalchemy import text
from sqlmodel import select

from chat.app import ChatProcess, process
from dev import pgbouncer, processes
from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from taskchat.conversations.models import Conversation
from taskchat.database import pg8000_pipeline as pipeline
from taskchat.database.engine import UnsafeRole, connect_arguments
from taskchat.database.pg8000_pipeline import PipelinedConnection, TidyConnection
from taskchat.database.transaction import Database
from taskchat.postgres_url import parse
from testing import counting_proxy
from testing.counting_proxy import CountingProxy
from tests.conftest import Logs, Person
from tests.domain import example

Rows = psycopg.Connection[dict[str, Any]]
PATIENCE = 5.0
THREADS = 4
TEXTS = f"select {example.text} from {example.table}"  # noqa: S608  (the domain's own names)


def stock(url: str) -> TidyConnection:
    """Connect with stock pg8000."""
    return TidyConnection(**connect_arguments(parse(url)))


def pipelined(
    url: str, *, patience: float = PATIENCE, check: Callable[[Any], None] = lambda _connection: None
) -> PipelinedConnection:
    """Connect with the driver that sends several statements at once."""
    return PipelinedConnection(lambda: connect_arguments(parse(url)), lambda: patience, check, {})


@pytest.fixture
def theirs(database_url: str) -> Iterator[TidyConnection]:
    """Give a connection of stock pg8000."""
    with closing(stock(database_url)) as connection:
        yield connection


@pytest.fixture
def ours(database_url: str) -> Iterator[PipelinedConnection]:
    """Give a pipelined connection."""
    with closing(pipelined(database_url)) as connection:
        yield connection


def ask(connection: Any, sql: str, *values: Any) -> Any:
    """Return a cursor's whole result: rows, columns and count, or the exception and Postgres's error."""
    cursor = connection.cursor()
    try:
        cursor.execute(sql, values)
        if isinstance(connection, PipelinedConnection):
            connection.flush()
        rows = cursor.fetchall() if cursor.description else None
    except Exception as error:
        sent = error.args[0]
        fields = {field: sent.get(field) for field in "SCMDHt"} if isinstance(sent, dict) else str(sent)
        return type(error), fields
    return {"rows": repr(rows), "columns": cursor.description, "count": cursor.rowcount}


def know(connection: PipelinedConnection, sql: str, values: tuple[Any, ...]) -> None:
    """Make the statement known, so that it is queued."""
    if values:
        connection.shapes[sql] = pipeline.Shape(legacy.convert_paramstyle("format", sql, values)[0], None)


NOW = dt.datetime(2026, 2, 28, 23, 59, 59, 999999, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=45)))
VALUES = {
    "text": "buy milk",
    "the empty string": "",
    "quotes and backslashes": "it's \"\\' %s %% $1 :x",
    "all sorts of letters": "žluťoučký 牛乳 🥛\u200d\U0010ffff\n\t\x01",
    "yes": True,
    "no": False,
    "an integer": 42,
    "the smallest bigint": -(2**63),
    "beyond bigint": 2**70,
    "a float": 0.1 + 0.2,
    "a small float": 5e-324,
    "infinity": float("inf"),
    "not a number": float("nan"),
    "a decimal": decimal.Decimal("1234567890.000000001"),
    "a moment": NOW,
    "a moment nowhere": NOW.replace(tzinfo=None),
    "a date": NOW.date(),
    "a time": NOW.time(),
    "a span": dt.timedelta(days=-3, seconds=7, microseconds=5),
    "a uuid": UUID("8c5f3f1e-0f0e-4f0b-9d53-1d7f0f7f6a52"),
    "bytes": bytes(range(256)),
    "a list of integers": [1, None, 3],
    "a list of texts": ["a", "b,c", '"', "", None],
    "a list of uuids": [UUID(int=1), UUID(int=2)],
    "a dict": {"title": "milk", "n": [1, None, {"x": "\u20ac"}]},
}
TYPES = (
    *(
        "text",
        "boolean",
        "bigint",
        "integer",
        "double precision",
        "numeric",
        "timestamptz",
        "timestamp",
        "date",
        "time",
    ),
    *("interval", "uuid", "bytea", "json", "jsonb", "integer[]", "text[]", "uuid[]"),
)
MANY = "select g, repeat('x', g) from generate_series(1, %s) g"
STATEMENTS = {
    "several columns": ("select %s::int as a, %s::text as b, null as c, 'x'::name as a", (1, "b")),
    "no rows": ("select 1 where %s::int > 1", (0,)),
    "many rows": (MANY, (1000,)),
    "a value of no known type": ("select %s", (None,)),
    "no columns": ("select from generate_series(1, %s)", (3,)),
    "an expanded list": ("select %s::int in (%s::int, %s::int)", (2, 1, 2)),
    "an insert": ("insert into pg_temp.t values (%s, 'x')", (9,)),
    "an insert that returns": ("insert into pg_temp.t values (%s, %s) returning *", (10, "y")),
    "an insert that does nothing": ("insert into pg_temp.t values (%s, 'x') on conflict do nothing", (1,)),
    "an update of some": ("update pg_temp.t set b = %s where a < 3", ("z",)),
    "an update of none that returns": ("update pg_temp.t set b = %s where a = 99 returning a", ("z",)),
    "a delete": ("delete from pg_temp.t where a = %s", (1,)),
    "nothing at all": ("", ()),
    "a megabyte": ("select %s::text", ("0123456789abcdef" * 65536,)),
    "a comment": ("select %s::int -- %%s", (1,)),
    "moments of all precisions": (
        "select v::timestamptz from unnest(%s::text[]) v",
        (["2026-11-21 00:16:16.5+00", "2026-11-21 00:16:16.000001+00", "0001-01-01 00:00:00+00", "infinity"],),
    ),
    "moments that Python cannot hold": (
        "select v::timestamptz from unnest(%s::text[]) v",
        (["294276-01-01 00:00:00+00", "4713-01-01 00:00:00+00 BC", "-infinity"],),
    ),
    "without parameters": ("select a, b from pg_temp.t order by a", ()),
    "several statements": ("select 1; select 2", ()),
    "a setting": ("select set_config('app.user_id', %s, true)", ("alice",)),
}
TABLE = "create temp table t (a int primary key, b text not null check (b <> 'never')) on commit drop"
ERRORS = {
    "a key twice": ("insert into pg_temp.t values (%s, 'x')", (1,)),
    "a check": ("insert into pg_temp.t values (%s, 'never')", (7,)),
    "a null": ("insert into pg_temp.t values (%s, null)", (7,)),
    "another user's row": (example.insert, ("mallory", "x")),
    "an unknown conversation": (
        "insert into message (user_id, conversation_id, position, turn_id, role, content)"
        " values (current_setting('app.user_id'), %s::uuid, 0, gen_random_uuid(), 'user', '')",
        (UUID(int=5),),
    ),
    "no sense": ("selekt %s", (1,)),
    "no such table": ("select * from nowhere where a = %s", (1,)),
    "no such value": ("select %s::int", ("many",)),
    "a division by zero": ("select 1 / %s::int", (0,)),
    "an error after some rows": ("select 1 / (%s - g) from generate_series(1, 2000) g", (1500,)),
    "too few values": ("select %s::int + %s::int", (1,)),
    "too many values": ("select %s::int", (1, 2)),
    "several statements": ("select %s::int; select 1", (1,)),
    "too long": ("select pg_sleep(%s)", (10,)),
    "text with NUL": ("select %s::text", ("a\0b",)),
    "what a role may not": ("select set_config('zero_damaged_pages', %s, true)", ("on",)),
}


def prepare(connection: Any) -> None:
    """Begin a transaction with its own table."""
    cursor = connection.cursor()
    cursor.execute("select set_config('app.user_id', %s, true)", ("alice",))
    cursor.execute(TABLE)
    cursor.execute("insert into pg_temp.t values (1, 'a'), (2, 'b'), (3, '')")
    cursor.execute("set local statement_timeout = '300ms'")


def compare(theirs: Any, ours: Any, sql: str, values: tuple[Any, ...], before: Callable[[Any], None] = prepare) -> Any:
    """Return the driver's result of a statement. Ours must be the same, for a new and for a queued statement."""
    results = []
    for connection in (theirs, ours, ours):
        before(connection)
        results.append(ask(connection, sql, *values))
        connection.rollback()
        results.append(ask(connection, "select %s::int", 1))  # it still works
        connection.rollback()
        know(ours, sql, values)
    assert results[2:4] == results[4:6] == results[0:2]
    return results[0]


SLEEPS = "select 1 from pg_stat_activity where pid = %s and query like 'select pg_sleep%%' and state = 'active'"


class TestSameAsTheDriver:
    """Values, columns, counts and errors are the same as with stock pg8000."""

    @pytest.mark.parametrize("type_name", TYPES)
    def test_every_value_of_every_type_comes_back_the_same(self, theirs: Any, ours: Any, type_name: str) -> None:
        """A value that the type refuses gives the same error."""
        sql = f"select %s::{type_name} as a"
        results = [compare(theirs, ours, sql, (value,), lambda _: None) for value in [*VALUES.values(), None]]
        assert sum(isinstance(each, dict) for each in results) >= 2  # NULL, and one of its own

    @pytest.mark.parametrize("what", STATEMENTS)
    def test_every_kind_of_statement_gives_the_same_result(self, theirs: Any, ours: Any, what: str) -> None:
        """It may return no row, one or several."""
        assert isinstance(compare(theirs, ours, *STATEMENTS[what]), dict)

    @pytest.mark.parametrize("what", ERRORS)
    def test_every_error_is_the_same(self, theirs: Any, ours: Any, what: str) -> None:
        """Class and text are equal."""
        assert isinstance(compare(theirs, ours, *ERRORS[what]), tuple)

    def test_executemany_has_the_same_count(self, theirs: Any, ours: Any) -> None:
        """It is the sum over the values."""
        counts = []
        for connection in (theirs, ours):
            prepare(connection)
            cursor = connection.cursor()
            cursor.executemany("update pg_temp.t set b = %s where a >= %s", [("x", 1), ("y", 2), ("z", 3)])
            counts.append(cursor.rowcount)
            connection.rollback()
        assert counts == [6, 6]

    def test_notices_are_kept(self, theirs: Any, ours: Any) -> None:
        """Both connections hold Postgres's notices."""
        for connection in (theirs, ours):
            prepare(connection)
            ask(connection, "create temp table if not exists t (a int)")
            connection.rollback()
        assert [notice[b"C"] for notice in ours.notices] == [notice[b"C"] for notice in theirs.notices] == [b"42P07"]

    def test_after_an_error_each_statement_is_refused(self, theirs: Any, ours: Any) -> None:
        """A commit fails too. A rollback ends this."""
        results = []
        for connection in (theirs, ours):
            prepare(connection)
            ask(connection, "select 1 / %s::int", 0)
            refused = ask(connection, "select %s::int", 1)
            with pytest.raises(pg8000.InterfaceError, match="in failed transaction block"):
                connection.commit()
            results.append((refused, ask(connection, "select %s::int", 2)))
            connection.rollback()
        assert results[0] == results[1]
        assert results[0][0][1]["C"] == "25P02"

    def test_a_serialization_failure_is_the_same(self, theirs: Any, ours: Any, rows: Rows) -> None:
        """It is raised at the statement that collides with another transaction."""
        change = f"update {example.table} set {example.text} = %s"  # noqa: S608  (the domain's own names)
        example.put(rows, "alice", "before")
        results = []
        for connection in (theirs, ours):
            ask(connection, "set transaction isolation level repeatable read")
            ask(connection, "select set_config('app.user_id', %s, true)", "alice")
            ask(connection, f"{TEXTS} where {example.text} = %s", "x")
            rows.execute(f"{change} where user_id = 'alice'".encode(), ["after"])
            results.append(ask(connection, change, "x"))
            connection.rollback()
        assert results[0] == results[1]
        assert results[0][1]["C"] == "40001"

    @pytest.mark.parametrize(("function", "expected"), [("cancel", "57014"), ("terminate", "network error")])
    def test_an_interrupted_statement_gives_the_same_error(
        self, server: Postgres, rows: Rows, function: str, expected: str
    ) -> None:
        """An operator cancels it or terminates its backend."""
        results = []
        for connect in (stock, pipelined):
            connection = connect(f"{server.app_url}&connect_timeout=60")
            prepare(connection)
            ask(connection, "set local statement_timeout = 0")
            ((pid,),) = connection.run("select pg_backend_pid()")
            answers: list[Any] = []
            asking = threading.Thread(
                target=lambda c=connection, a=answers: a.append(ask(c, "select pg_sleep(%s)", 60))
            )
            asking.start()
            for _ in processes.attempts(10):
                if rows.execute(SLEEPS, [pid]).fetchone():
                    break
            rows.execute(f"select pg_{function}_backend(%s)".encode(), [pid])
            asking.join()
            results.append(answers[0])
            close(connection)
        assert results[0] == results[1]
        assert expected in str(results[0][1])


def close(connection: Any) -> None:
    """Close a connection that may be closed or broken already."""
    with suppress(pg8000.InterfaceError):
        connection.close()


class TestQueuedStatements:
    """A known statement is queued and sent at the next wait. None is lost."""

    @pytest.fixture
    def between(self, server: Postgres) -> Iterator[CountingProxy]:
        """Run a proxy before Postgres that counts roundtrips."""
        with counting_proxy.running(server.app_url) as running:
            yield running

    @pytest.fixture
    def known(self, between: CountingProxy, server: Postgres) -> Iterator[PipelinedConnection]:
        """Give a connection through it that knows some statements, in a transaction with its own table."""
        with closing(pipelined(between.url(server.app_url))) as connection:
            prepare(connection)
            for sql, values in STATEMENTS.values():
                ask(connection, sql, *values)
            connection.rollback()
            prepare(connection)
            between.reset()
            yield connection

    def test_they_are_sent_when_the_first_is_read(self, known: PipelinedConnection, between: CountingProxy) -> None:
        """Four statements take one roundtrip."""
        cursors = [known.cursor().execute(MANY, (n,)) for n in range(4)]
        assert (between.sent, cursors[3].rowcount, cursors[3].description[0][0]) == (b"", -1, "g")
        assert [len(cursor.fetchall()) for cursor in cursors] == [0, 1, 2, 3]
        assert [cursor.rowcount for cursor in cursors] == [0, 1, 2, 3]
        assert (between.roundtrips, len(between.statements)) == (1, 4)

    def test_reading_received_rows_sends_nothing(self, known: PipelinedConnection, between: CountingProxy) -> None:
        """A statement that was queued since then stays queued."""
        first, second = (known.cursor().execute(MANY, (3,)) for _ in range(2))
        assert first.fetchone() == [1, "x"]
        third = known.cursor().execute(MANY, (3,))
        assert (len(first.fetchall()), len(second.fetchall()), between.roundtrips) == (2, 3, 1)
        assert (len(third.fetchall()), between.roundtrips) == (3, 2)

    def test_they_are_sent_with_the_commit(
        self, known: PipelinedConnection, between: CountingProxy, rows: Rows
    ) -> None:
        """Statement and commit take one roundtrip together."""
        owner, title = "alice", uuid4().hex
        for _ in range(2):  # the second is known
            known.cursor().execute("select set_config('app.user_id', %s, true)", (owner,)).fetchall()
            known.cursor().execute(example.insert, (owner, title))
            between.reset()
            known.commit()
        assert between.roundtrips == 1
        assert [sql[:6] for sql in between.statements] == ["insert", "commit"]
        assert stored(rows, title) == [title] * 2

    def test_one_fails_at_the_next_wait(self, known: PipelinedConnection) -> None:
        """The first answer that is read raises its error, and reading the failed one raises it again."""
        fine = known.cursor().execute(MANY, (1,))
        failing = known.cursor().execute("insert into pg_temp.t values (%s, 'x')", (1,))
        skipped = known.cursor().execute(MANY, (1,))
        with pytest.raises(pg8000.IntegrityError, match="t_pkey"):
            fine.fetchall()
        assert fine.fetchall() == ([1, "x"],)
        for cursor in (failing, skipped):
            with pytest.raises(pg8000.IntegrityError, match="t_pkey"):
                cursor.fetchall()
        known.rollback()

    def test_one_fails_at_the_commit_at_the_latest(self, known: PipelinedConnection, rows: Rows) -> None:
        """Then nothing has been done, and the transaction is over."""
        title = uuid4().hex
        known.cursor().execute(f"{example.insert} returning id", ("alice", title))
        known.cursor().execute("insert into pg_temp.t values (%s, 'x')", (1,))
        with pytest.raises(pg8000.IntegrityError, match="t_pkey"):
            known.commit()
        assert stored(rows, title) == []
        assert not known._in_transaction
        assert known.run("select 1") == ([1],)
        known.rollback()

    def test_a_rollback_drops_them(self, known: PipelinedConnection, between: CountingProxy) -> None:
        """They are not sent any more, and reading one raises an error."""
        known.rollback()
        between.reset()
        cursor = known.cursor().execute(MANY, (1,))
        known.rollback()
        assert between.sent == b""
        with pytest.raises(pg8000.InterfaceError, match="given up"):
            cursor.fetchall()

    @pytest.mark.parametrize("value", ["a\ud800b", object])
    def test_one_is_sent_whole_or_not_at_all(
        self, known: PipelinedConnection, between: CountingProxy, value: Any
    ) -> None:
        """A value that cannot be sent sends nothing, and the next statement gets its own answer."""

        class Unsendable:
            def __str__(self) -> str:
                raise RuntimeError("no text of its own")

        sent = Unsendable() if value is object else value
        with pytest.raises((UnicodeEncodeError, RuntimeError)):
            known.cursor().execute("select %s::text", (sent,))
        assert between.sent == b""
        assert known.run("select 'second'") == (["second"],)

    def test_they_run_before_a_later_statement(self, known: PipelinedConnection) -> None:
        """A statement without parameters is sent at once, after the queued ones."""
        known.cursor().execute("insert into pg_temp.t values (%s, 'x')", (9,))
        assert known.run("select count(*) from pg_temp.t") == ([4],)

    def test_a_new_statement_is_waited_for(self, known: PipelinedConnection, between: CountingProxy) -> None:
        """Only Postgres can tell if it returns rows."""
        assert known.cursor().execute("select %s::int as new", (1,)).description[0][0] == "new"
        assert between.roundtrips == 1

    def test_sqlalchemy_does_not_rely_on_their_row_count(self, database_url: str) -> None:
        """The ORM changes a row by a known statement, whose count is not there yet."""
        database, person = Database(lambda: database_url), uuid4().hex
        for title in ("first", "second", "third"):
            with database.transaction(person) as session:
                found = session.scalars(select(Conversation)).one_or_none()
                conversation = found or Conversation(user_id=person, id=uuid4(), title="")
                conversation.title = title
                session.add(conversation)
        with database.transaction(person) as session:
            assert session.scalars(select(Conversation.title)).all() == ["third"]
        database.close()

    def test_the_number_of_known_statements_is_bounded(
        self, known: PipelinedConnection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The oldest are dropped."""
        monkeypatch.setattr(pipeline, "MAX_SHAPES", 20)
        for number in range(50):
            known.cursor().execute(f"select %s::int as a{number}", (1,)).fetchall()
            assert 0 < len(known.shapes) <= 20


class TestBehindAPooler:
    """The pooler uses transaction mode and has fewer servers than clients."""

    @pytest.fixture(scope="class")
    @classmethod
    def crowded(cls, server: Postgres) -> Iterator[PgBouncer]:
        """Run a pooler with two servers."""
        with pgbouncer.running(server, pool_size=2) as running:
            yield running

    def wrong_answers(self, url: str) -> int:
        """Run 200 queries of four clients at once outside transactions, and count the answers of another query."""
        wrong: list[Any] = []

        def client(number: int) -> None:
            connection = pipelined(url)
            connection.autocommit = True
            for count in range(200):
                result = ask(connection, "select %s::text", f"{number}.{count}")
                if not isinstance(result, dict) or result["rows"] != f"(['{number}.{count}'],)":
                    wrong.append(result)
            close(connection)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(wrong)

    def test_the_driver_s_fault_is_real(self, server: Postgres) -> None:
        """Outside a transaction, stock pg8000 runs another client's statement in place of its own."""
        with pgbouncer.running(server, pool_size=1) as pooler:
            connections = [TidyConnection(**connect_arguments(parse(pooler.url(server.app_url)))) for _ in range(2)]
            for connection in connections:
                connection.autocommit = True
            first, second = connections
            wait = first.handle_messages

            def wait_while_the_other_asks(context: Any) -> None:
                first.handle_messages = wait
                wait(context)
                ask(second, "select %s::text", "hers")

            first.handle_messages = wait_while_the_other_asks
            result = ask(first, "select %s::text || ' own'", "my")
            for connection in connections:
                connection.close()
        assert result["rows"] == "(['my'],)"

    def test_each_client_gets_its_own_answers(self, crowded: PgBouncer, server: Postgres) -> None:
        """The pooler sees a whole statement before its Sync, and keeps one server for it."""
        assert self.wrong_answers(crowded.url(server.app_url)) == 0

    def test_interleaved_transactions_of_many_users_do_not_mix(
        self, crowded: PgBouncer, server: Postgres, rows: Rows
    ) -> None:
        """Four clients run 1,200 transactions of 20 users on two servers."""
        people = [uuid4().hex for _ in range(20)]
        url = crowded.url(server.app_url)
        seen: list[tuple[str, list[str]]] = []

        def serve(number: int) -> None:
            database = Database(lambda: url)
            for step in range(300):
                person = people[(step * 7 + number) % 20]
                with database.transaction(person) as session:
                    session.execute(text("select :x"), {"x": person})  # queued, and never read
                    found = session.scalars(text(f"{TEXTS} where :x = :x"), {"x": step}).all()
                    seen.append((person, list(found)))
            database.close()

        for person in people:
            example.put(rows, person, person)
        threads = [threading.Thread(target=serve, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(seen) == 1200
        assert [(person, found) for person, found in seen if found != [person]] == []


def stored(rows: Rows, title: str) -> list[str]:
    """Return the stored texts that begin with the title, in their order."""
    found = rows.execute(f"{TEXTS} where {example.text} like %s order by id".encode(), [f"{title}%"])
    return [row[example.text] for row in found]


class TestBrokenConnection:
    """A connection may break at any byte. A transaction that cannot be committed yet runs again. Others fail whole."""

    @pytest.fixture(scope="class")
    @classmethod
    def between(cls, server: Postgres) -> Iterator[CountingProxy]:
        """Run a proxy before Postgres that can cut the connection."""
        with counting_proxy.running(server.app_url) as running:
            yield running

    def transact(self, connection: Any, title: str) -> None:
        """Commit two effects. The second one is sent with the commit."""
        connection.cursor().execute("select set_config('app.user_id', %s, true)", ("alice",))
        connection.cursor().execute(f"{example.insert} returning id", ("alice", title)).fetchall()
        connection.cursor().execute(example.insert, ("alice", f"{title} noted"))
        connection.commit()

    def recorded(self, server: Postgres, between: CountingProxy) -> tuple[bytes, bytes, int]:
        """Return the bytes sent and received in a whole transaction, and how many are received before the commit."""
        with closing(self.warm(server, between)) as connection:
            between.reset()
            self.transact(connection, uuid4().hex)
            messages = counting_proxy.messages(between.received)
            first = next(n for n, message in enumerate(messages, 1) if message[:1] == b"Z")
            return between.sent, between.received, sum(map(len, messages[:first]))

    def warm(self, server: Postgres, between: CountingProxy) -> PipelinedConnection:
        """Return a connection through the proxy that has committed one transaction."""
        connection = pipelined(between.url(server.app_url))
        self.transact(connection, "warm")
        return connection

    def places(self, stream: bytes) -> list[int]:
        """Return the numbers of bytes to cut after: before, within and after each message."""
        ends = [0]
        for message in counting_proxy.messages(stream):
            ends += [ends[-1] + 3, ends[-1] + len(message)]
        return sorted({end for end in ends if end < len(stream)})

    @pytest.mark.parametrize("side", ["cut_sent", "cut_received"])
    def test_it_leaves_both_effects_or_none(
        self, server: Postgres, between: CountingProxy, rows: Rows, side: str
    ) -> None:
        """A break in the first exchange is not noticed. A later one is an error, and the connection is closed."""
        sent, received, first_received = self.recorded(server, between)
        first_sent = sent.index(b"S\0\0\0\4") + 5
        stream, first = (sent, first_sent) if side == "cut_sent" else (received, first_received)
        outcomes = Counter[str]()
        for place in self.places(stream):
            with closing(self.warm(server, between)) as connection:
                title = uuid4().hex
                between.reset()
                setattr(between, side, place)
                if place < first:
                    self.transact(connection, title)
                else:
                    with pytest.raises((pg8000.InterfaceError, OSError)):
                        self.transact(connection, title)
                    with pytest.raises(pg8000.InterfaceError, match="connection is closed"):
                        connection.commit()
                    connection._connect()  # for the end of the block
            kept = stored(rows, title)
            assert kept in ([], [title, f"{title} noted"])
            outcomes["both" if kept else "none"] += 1
            assert kept or place >= first
        assert outcomes["both"] > 10
        assert outcomes["none"] >= (side == "cut_sent")

    def test_a_transaction_that_reads_nothing_is_never_done_twice(
        self, server: Postgres, between: CountingProxy, rows: Rows
    ) -> None:
        """It is sent with its commit. A missing answer is an error, because it may have taken effect."""
        title = uuid4().hex
        connection = self.warm(server, between)
        between.reset()
        between.cut_received = 0
        connection.cursor().execute("select set_config('app.user_id', %s, true)", ("alice",))
        connection.cursor().execute(example.insert, ("alice", title))
        with pytest.raises((pg8000.InterfaceError, OSError)):
            connection.commit()
        assert between.statements[-1] == "commit"
        for _ in processes.attempts(PATIENCE):  # Postgres may still run it
            kept = stored(rows, title)
            if kept:
                break
        assert len(kept) == 1

    def test_a_silent_connection_is_replaced(self, server: Postgres, between: CountingProxy, rows: Rows) -> None:
        """A router has forgotten it while the process was frozen, so no answer comes."""
        title = uuid4().hex
        with closing(pipelined(between.url(server.app_url), patience=0.3)) as connection:
            self.transact(connection, "warm")
            between.is_mute = True
            self.transact(connection, title)
        assert stored(rows, title) == [title, f"{title} noted"]

    def test_a_replacement_keeps_sqlalchemy_s_settings(self, server: Postgres, rows: Rows) -> None:
        """It reads JSON as before."""
        with closing(pipelined(server.app_url)) as connection:
            connection.register_in_adapter(114, lambda written: ("read", json.loads(written)))
            ask(connection, "select %s::json", "[1]")
            connection.commit()
            ((pid,),) = connection.run("select pg_backend_pid()")
            connection.rollback()
            terminate(rows, pid)
            cursor = connection.cursor().execute("select %s::json", ("[1]",))
            assert cursor.fetchall() == ([("read", [1])],)
            ((other,),) = connection.run("select pg_backend_pid()")
            assert other != pid

    def test_a_replacement_checks_its_role_too(self, server: Postgres, rows: Rows) -> None:
        """A role that has become unsafe in between is not served."""
        rows.execute("create role turncoat login password 'x'")
        rows.execute(f"grant select on {example.table}, alembic_version to turncoat".encode())
        database = Database(lambda: f"postgresql://turncoat:x@{server.host}:{server.port}/taskchat?sslmode=disable")
        with database.transaction("alice") as session:
            pid = session.execute(text("select pg_backend_pid()")).scalar_one()
        rows.execute("alter role turncoat bypassrls")
        terminate(rows, pid)
        with pytest.raises(UnsafeRole), database.transaction("alice") as session:
            session.execute(text("select pg_backend_pid()")).scalar_one()
        database.close()

    def test_nothing_is_done_twice_outside_a_transaction(self, server: Postgres, rows: Rows) -> None:
        """A single statement may have taken effect, so it is an error."""
        connection = pipelined(server.app_url)
        connection.autocommit = True
        ((pid,),) = connection.run("select pg_backend_pid()")
        terminate(rows, pid)
        with pytest.raises((pg8000.InterfaceError, OSError)):
            connection.cursor().execute("select %s::int", (1,))

    def test_a_server_that_is_down_gives_the_driver_s_error(self, server: Postgres) -> None:
        """Text and cause are the same."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        causes = []
        for connect in (stock, pipelined):
            with pytest.raises(pg8000.InterfaceError, match="Can't create a connection") as raised:
                connect(f"postgresql://u:p@127.0.0.1:{port}/d?sslmode=disable")
            causes.append(type(raised.value.__cause__))
        assert causes == [ConnectionRefusedError, ConnectionRefusedError]


def terminate(rows: Rows, pid: int) -> None:
    """End a server process, and wait until it has gone."""
    rows.execute("select pg_terminate_backend(%s)", [pid])
    for _ in processes.attempts(10):
        if not rows.execute("select from pg_stat_activity where pid = %s", [pid]).fetchall():
            return


class TestUntestedDriver:
    """pg8000 may change its private names. An untested version is used as it is, and that is logged."""

    @pytest.fixture
    def database(self, database_url: str, environment: None, logs: Logs) -> Iterator[Database]:
        """Give a database whose driver has another version. Those of later tests have the tested one."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "TESTED_WITH", "1.31.5")
            database = Database(lambda: database_url)
        yield database
        database.close()

    def test_it_is_logged(self, database: Database, logs: Logs) -> None:
        """A warning has both versions."""
        (line,) = [line for line in logs() if line["message"] == "driver not pipelined"]
        assert (line["level"], line["pg8000"], line["tested_with"]) == ("WARNING", pg8000.__version__, "1.31.5")

    def test_it_is_used_as_it_is(
        self, database: Database, alice: Person, rows: Rows, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A turn works, and so does a transaction after its connection was terminated."""
        monkeypatch.setattr(process, "database", database)
        assert alice.say(example.add("milk")).json["tool_calls"][0]["outcome"] == "ok"
        with database.transaction(alice.id) as session:
            assert session.scalars(text(TEXTS)).all() == ["milk"]
        rows.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'taskchat_app'")
        with database.transaction(alice.id) as session:
            driver = session.connection().connection.dbapi_connection
            assert type(driver) is TidyConnection
            assert session.scalars(text(TEXTS)).all() == ["milk"]

    @pytest.mark.parametrize(
        ("owner", "name"), [(core, "ci_unpack"), (core, "Context"), (legacy, "convert_paramstyle")]
    )
    def test_it_is_known_by_a_missing_name(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        """Its version may be the tested one."""
        assert pipeline.is_supported()
        monkeypatch.delattr(owner, name)
        assert not pipeline.is_supported()


class TestRoundtrips:
    """A proxy between program and pooler counts the roundtrips."""

    @pytest.fixture(scope="class")
    @classmethod
    def plain(cls, server: Postgres) -> Iterator[PgBouncer]:
        """Run a pooler without TLS, so that the proxy can read the messages."""
        with pgbouncer.running(server, tls=False) as running:
            yield running

    @pytest.fixture(scope="class")
    @classmethod
    def between(cls, plain: PgBouncer, server: Postgres) -> Iterator[CountingProxy]:
        """Run a counting proxy before it."""
        with counting_proxy.running(plain.url(server.app_url)) as running:
            yield running

    @pytest.fixture
    def database_url(self, plain: PgBouncer, between: CountingProxy, server: Postgres) -> str:
        """Give the runtime role's URL through proxy and pooler."""
        return between.url(plain.url(server.app_url))

    def test_a_connection_takes_six(self, server: Postgres, pooler: PgBouncer) -> None:
        """They are the request for TLS, the handshake, three for SCRAM, and the check of the role.

        SQLAlchemy adds none, neither for the first connection nor when the pool gives or takes one. A transaction takes
        two.
        """
        url = pooler.url(server.app_url)
        with counting_proxy.running(url) as between:
            database = Database(lambda: between.url(url))
            database.engine.connect().close()
            connecting = between.roundtrips
            database.engine.connect().close()
            checking_out = between.roundtrips - connecting
            for _ in range(2):
                between.reset()
                with database.transaction("alice") as session:
                    session.execute(text("select :x"), {"x": 1}).all()
            transaction = between.roundtrips
            database.close()
        assert (connecting, checking_out, transaction) == (6, 0, 2)

    def test_the_socket_sends_at_once(self, server: Postgres, pooler: PgBouncer) -> None:
        """TCP_NODELAY is set with TLS and without."""
        for url in (server.app_url, pooler.url(server.app_url)):
            with closing(pipelined(url)) as connection:
                assert connection._usock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    @pytest.mark.parametrize("is_new", [True, False])
    def test_a_turn_takes_five(self, alice: Person, between: CountingProxy, *, is_new: bool) -> None:
        """On a warm connection, the begin and the one tool call take two each, and the end takes one."""
        conversation = alice.say(example.add("milk")).json["conversation_id"]
        alice.say(example.add("call mum"), conversation)
        between.reset()
        answer = alice.say(example.add("bread"), None if is_new else conversation)
        assert [call["outcome"] for call in answer.json["tool_calls"]] == ["ok"]
        assert between.roundtrips == 5
        expected = [what for what in TURN if is_new or what != "insert conversation"]
        assert [gist(sql) for sql in between.statements] == expected

    def test_getting_ready_takes_one(self, between: CountingProxy, database_url: str, environment: None) -> None:
        """After connecting, Postgres describes every statement and executes none."""
        new = ChatProcess(example.toolset)
        new.database.engine.connect().close()
        between.reset()
        new.connect()
        kinds = Counter(message[:1] for message in counting_proxy.messages(between.sent))
        assert between.roundtrips == 1
        assert set(kinds) == {b"P", b"D", b"S"}
        assert kinds[b"P"] == kinds[b"D"] > 10
        new.reset()

    def test_a_first_turn_takes_six(
        self, alice: Person, between: CountingProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The record of the call takes one more. The columns of all other statements are known."""
        monkeypatch.setattr(process, "database", ChatProcess(example.toolset).database)
        process.connect()
        between.reset()
        assert alice.say(example.add("milk")).status == 200
        assert between.roundtrips == 6

    def test_a_turn_with_the_stock_driver_takes_ten_times_as_many(
        self, alice: Person, between: CountingProxy, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The proxy counts them all when no statement is queued."""
        monkeypatch.setattr(pipeline, "TESTED_WITH", "another")
        monkeypatch.setattr(process, "database", Database(lambda: database_url))
        conversation = alice.say(example.add("milk")).json["conversation_id"]
        between.reset()
        alice.say(example.add("bread"), conversation)
        assert between.roundtrips > 50

    def test_a_replay_takes_two(self, alice: Person, between: CountingProxy) -> None:
        """One finds the answer, and one ends the transaction."""
        for _ in range(2):
            answer = alice.say(example.add("milk"), key="k")
            between.reset()
        assert alice.say(example.add("milk"), key="k").body == answer.body
        assert between.roundtrips == 2


TURN = (
    *("begin", "set_config", "insert allowance", "insert conversation", "update conversation"),
    *("select message", "select message", "select tool_call", "insert message", "commit"),
    *("begin", "set_config", "select conversation", f"insert {example.table}", "insert tool_call", "commit"),
    *("begin", "set_config", "update allowance", "update conversation, insert message", "commit"),
)
"""Every statement of a turn with one tool call, in a new conversation."""


def gist(sql: str) -> str:
    """Return the statement's verb and its table."""
    if sql.startswith("WITH"):
        return ", ".join(gist(part) for part in re.findall(r"(?:UPDATE|INSERT INTO) .*?(?=INSERT|$)", sql, re.S))
    found = re.match(
        r"(begin|commit)|select (set_config)|(?:(insert) into|(update)|(select) .*?\sfrom)\s+(\w+)", sql, re.I | re.S
    )
    assert found, sql
    return " ".join(part.lower() for part in found.groups() if part)
