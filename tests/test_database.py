"""Test the one way to the database: each transaction is for one user, on a connection in a known state.

Promises: TLS verifies the server unless the URL turns it off; a transaction sees and writes one user's rows alone; a
role that could bypass row-level security is not served; and after any doubt about a connection, the next transaction
uses another one.
"""

import ssl
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pg8000
import psycopg
import pytest
from sqlalchemy import Insert, Interval, func, literal_column, text
from sqlmodel import SQLModel, select

from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from taskchat.database.engine import UnsafeRole, connect_arguments
from taskchat.database.transaction import Database
from taskchat.database.types import at_least_zero
from taskchat.errors import DatabaseUnavailable
from taskchat.postgres_url import parse
from tests.conftest import variables
from tests.domain import example
from tests.test_cold_start import fresh

Rows = psycopg.Connection[dict[str, Any]]
THINGS = SQLModel.metadata.tables[example.table]
NEON = (
    "postgresql://app:p%40ss@ep-cool-rain-123456-pooler.eu-central-1.aws.neon.tech/neondb"
    "?sslmode=require&channel_binding=require"
)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Give a database, as one execution environment has it."""
    database = Database(lambda: database_url)
    yield database
    database.close()


def test_an_interval_below_zero_reads_as_zero(database: Database) -> None:
    """pg8000 by itself reads minus one minute as one minute: a caller would be asked to wait."""
    past, future = (literal_column(f"interval '{time}'", Interval) for time in ("-00:01:00", "00:01:00"))
    with database.transaction("alice") as session:
        read = session.execute(select(past, at_least_zero(past), at_least_zero(future))).one()
    assert read == (timedelta(minutes=1), timedelta(), timedelta(minutes=1))


def new(user_id: str, text: str) -> Insert:
    """Return the statement that stores a thing."""
    values = {example.text: text, example.state: example.states[0], **example.required}
    return THINGS.insert().values(user_id=user_id, **values)


def add(database: Database, user_id: str, text: str) -> None:
    """Store a thing in its own transaction."""
    with database.transaction(user_id) as session:
        session.execute(new(user_id, text))


def texts(database: Database, user_id: str) -> list[str]:
    """Return the texts that a transaction for the user sees without an owner filter."""
    column = THINGS.c[example.text]
    with database.transaction(user_id) as session:
        return list(session.scalars(select(column).order_by(column)))


class TestTheUrl:
    """Every parameter of DATABASE_URL is obeyed."""

    def test_neon_s_string_works_as_copied(self) -> None:
        """The driver does not know its parameters, but they are obeyed: verified TLS, channel binding."""
        url = parse(NEON)
        arguments = connect_arguments(url)
        assert (arguments["user"], arguments["password"], arguments["database"]) == ("app", "p@ss", "neondb")
        assert arguments["ssl_context"].verify_mode is ssl.CERT_REQUIRED
        assert arguments["ssl_context"].check_hostname
        assert url.needs_channel_binding

    def test_tls_is_only_off_when_the_url_says_so(self) -> None:
        """A URL without sslmode means require."""
        assert isinstance(connect_arguments(parse("postgresql://u:p@h/d"))["ssl_context"], ssl.SSLContext)
        assert connect_arguments(parse("postgresql://u:p@h/d?sslmode=disable"))["ssl_context"] is False

    def test_the_system_s_authorities_can_be_named(self) -> None:
        """libpq's name for them is `sslrootcert=system`."""
        context = connect_arguments(parse("postgresql://u:p@h/d?sslrootcert=system"))["ssl_context"]
        assert context.cert_store_stats() == ssl.create_default_context().cert_store_stats()
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)

    @pytest.mark.parametrize("mode", ["allow", "prefer", "require", "verify-ca", "verify-full"])
    def test_every_other_mode_verifies(self, mode: str) -> None:
        """For the weaker modes, libpq asks for less."""
        context = connect_arguments(parse(f"postgresql://u:p@h/d?sslmode={mode}"))["ssl_context"]
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)

    @pytest.mark.parametrize("url", ["", "mysql://u:p@h/d", "postgresql:///d", "postgresql://h/d", "ep-cool-rain"])
    def test_another_text_than_a_postgres_url_is_refused(self, url: str) -> None:
        """The function does not start, and the message does not repeat the text."""
        with pytest.raises(ValueError, match="a database URL looks like"):
            parse(url)

    def test_an_unknown_authority_is_not_trusted(self, server: Postgres, pooler: PgBouncer) -> None:
        """A server with an unknown certificate gets no password."""
        url = pooler.url(server.app_url).split("&sslrootcert")[0].split("?")[0] + "?sslmode=require"
        with pytest.raises(DatabaseUnavailable):
            texts(Database(lambda: url), "alice")

    def test_channel_binding_is_required_when_the_url_requires_it(self, server: Postgres, pooler: PgBouncer) -> None:
        """There is no connection to a server that does not offer it."""
        with pytest.raises(DatabaseUnavailable):
            texts(Database(lambda: f"{pooler.url(server.app_url)}&channel_binding=require"), "alice")


class TestIsolation:
    """Postgres's row-level security binds each transaction, whatever its query says."""

    def test_a_transaction_sees_one_user_s_rows(self, database: Database) -> None:
        """A query without a filter does not return other users' rows."""
        alice, bob = uuid4().hex, uuid4().hex
        add(database, alice, "hers")
        add(database, bob, "his")
        assert (texts(database, alice), texts(database, bob)) == (["hers"], ["his"])

    def test_a_transaction_without_a_user_sees_no_row(self, database: Database) -> None:
        """The setting is empty then, as on every connection after its first use."""
        add(database, uuid4().hex, "hers")
        assert texts(database, "") == []

    def test_a_connection_without_the_setting_sees_no_row(self, database: Database) -> None:
        """This is the same connection, outside our transactions."""
        add(database, uuid4().hex, "hers")
        with database.engine.connect() as connection:
            assert connection.execute(select(func.count()).select_from(THINGS)).scalar_one() == 0

    def test_a_transaction_writes_no_row_of_another_user(self, database: Database) -> None:
        """Postgres refuses a row with another user's id."""
        with pytest.raises(Exception, match="row-level security"), database.transaction("alice") as session:
            session.execute(new("bob", "planted"))

    @pytest.mark.parametrize("role", ["owner_url", "superuser_url"])
    def test_a_role_that_could_bypass_it_is_refused(self, server: Postgres, role: str) -> None:
        """Such roles are the owner of the tables and a superuser."""
        with pytest.raises(UnsafeRole):
            texts(Database(lambda: getattr(server, role)), "alice")

    @pytest.mark.parametrize("package", ["chat", "mcp_tools"])
    @pytest.mark.parametrize("role", ["owner_url", "superuser_url", "app_url"])
    def test_on_lambda_neither_function_starts_as_such_a_role(
        self, server: Postgres, standin: StandIn, issuer: Issuer, package: str, role: str
    ) -> None:
        """It starts as the runtime role alone. With another it ends while it starts, and names the reason."""
        code = f"""
import json
try:
    import {package}
except RuntimeError as error:
    print(json.dumps([type(error).__name__, str(error)[:59]]))
else:
    print(json.dumps("started"))
"""
        known = variables(getattr(server, role), standin, issuer) | {"AWS_LAMBDA_RUNTIME_API": "localhost"}
        refused = ["UnsafeRole", "Row-level security would not bind the role in DATABASE_URL:"]
        assert fresh(code, **known) == ("started" if role == "app_url" else refused)

    @pytest.mark.parametrize("table", sorted(SQLModel.metadata.tables))
    @pytest.mark.parametrize("weakness", ["disable", "no force"])
    def test_tables_whose_security_is_off_are_not_served(
        self, server: Postgres, rows: Rows, table: str, weakness: str
    ) -> None:
        """After an operator turned it off for one of them, no row is read."""
        rows.execute(f"alter table {table} {weakness} row level security".encode())
        try:
            with pytest.raises(UnsafeRole):
                texts(Database(lambda: server.app_url), "alice")
        finally:
            rows.execute(f"alter table {table} enable row level security".encode())
            rows.execute(f"alter table {table} force row level security".encode())

    def test_a_role_that_may_become_another_is_refused(self, server: Postgres, rows: Rows) -> None:
        """A member of a role that bypasses it can become that role with SET ROLE."""
        rows.execute("create role mighty bypassrls")
        rows.execute("create role climber login password 'x' in role mighty")
        url = f"postgresql://climber:x@{server.host}:{server.port}/taskchat?sslmode=disable"
        with pytest.raises(UnsafeRole):
            texts(Database(lambda: url), "alice")

    def test_bypassrls_is_refused(self, server: Postgres, rows: Rows) -> None:
        """Neon's console gives its roles BYPASSRLS, and no query would fail."""
        rows.execute("create role bypasser login bypassrls password 'x'")
        url = f"postgresql://bypasser:x@{server.host}:{server.port}/taskchat?sslmode=disable"
        with pytest.raises(UnsafeRole):
            texts(Database(lambda: url), "alice")


class TestTheConnection:
    """A process has one connection, and drops it after any doubt about its state."""

    def test_text_that_postgres_cannot_hold_never_reaches_the_driver(self, database: Database) -> None:
        """A lone surrogate is refused before anything is sent, and the next statement gets its own answer."""
        alice, bob = uuid4().hex, uuid4().hex
        add(database, alice, "hers")
        add(database, bob, "his")
        with pytest.raises(Exception, match="lone surrogate"):
            add(database, alice, "a\ud800b")
        assert (texts(database, bob), texts(database, alice)) == (["his"], ["hers"])

    def test_the_driver_s_fault_behind_that_is_real(self, server: Postgres) -> None:
        """After a lone surrogate, stock pg8000 does not answer the next query with that query's own row."""
        connection = pg8000.connect(**connect_arguments(parse(server.app_url)))
        cursor = connection.cursor()
        cursor.execute("select 1")
        with pytest.raises(UnicodeEncodeError):
            cursor.execute("select %s || %s", ("first", "a\ud800b"))
        cursor.execute("select 'second'")
        assert ["second"] not in list(cursor.fetchall())
        connection._sock.close()
        connection._usock.close()

    def test_an_error_in_the_driver_drops_the_connection(self, database: Database) -> None:
        """After an exception that is not Postgres's, the next transaction uses another connection."""

        def pid() -> int:
            with database.transaction("") as session:
                return int(session.execute(text("select pg_backend_pid()")).scalar_one())

        class Unsendable:
            def __str__(self) -> str:
                raise RuntimeError("no text of its own")

        with database.transaction("") as session:
            before = session.connection().connection.dbapi_connection
        with pytest.raises(RuntimeError), database.transaction("") as session:
            session.execute(text("select :x"), {"x": Unsendable()})
        with database.transaction("") as session:
            assert session.connection().connection.dbapi_connection is not before
        assert pid() > 0

    def test_a_connection_that_died_while_frozen_is_replaced(self, database: Database, rows: Rows) -> None:
        """Postgres ended it between two invocations. The next one succeeds."""
        alice = uuid4().hex
        add(database, alice, "hers")
        rows.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'taskchat_app'")
        assert texts(database, alice) == ["hers"]

    def test_a_pooler_restart_fails_no_transaction(self, server: Postgres, pooler: PgBouncer) -> None:
        """The pooler dropped every client."""
        database = Database(lambda: pooler.url(server.app_url))
        alice = uuid4().hex
        add(database, alice, "hers")
        pooler.restart()
        assert texts(database, alice) == ["hers"]
        database.close()

    def test_a_database_that_is_down_is_unavailable(self) -> None:
        """The error says when to try again."""
        with pytest.raises(DatabaseUnavailable) as raised:
            texts(Database(lambda: "postgresql://u:p@127.0.0.1:9/d?sslmode=disable"), "alice")
        assert raised.value.retry_after

    def test_a_statement_that_takes_too_long_is_given_up(self, database: Database) -> None:
        """The role's own limit ends it, and the connection still works."""

        def dawdle() -> None:
            with database.transaction("") as session:
                session.execute(text("set local statement_timeout = '50ms'"))
                session.execute(text("select pg_sleep(10)"))

        with pytest.raises(DatabaseUnavailable):
            dawdle()
        assert texts(database, "") == []

    def test_a_failed_transaction_leaves_nothing(self, database: Database) -> None:
        """An exception inside rolls everything back."""
        alice = uuid4().hex

        def fail() -> None:
            with database.transaction(alice) as session:
                session.execute(new(alice, "a"))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert texts(database, alice) == []

    def test_a_transaction_leaves_no_setting_behind(self, database: Database) -> None:
        """After it, the user's id is not readable on its connection."""
        texts(database, "alice")
        with database.engine.connect() as connection:
            assert not connection.execute(text("select current_setting('app.user_id', true)")).scalar_one()
