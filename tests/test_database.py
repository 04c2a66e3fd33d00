"""The one way to the database: a transaction per use, for one person, on a connection that is never in doubt."""

import ssl
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pg8000
import psycopg
import pytest
from sqlalchemy import text
from sqlmodel import select

from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from taskchat.database.engine import UnsafeRole, connect_arguments
from taskchat.database.transaction import Database
from taskchat.errors import DatabaseUnavailable
from taskchat.postgres_url import parse
from taskchat.tasks.models import Task
from tests.conftest import variables
from tests.test_cold_start import fresh

Rows = psycopg.Connection[dict[str, Any]]
NEON = (
    "postgresql://app:p%40ss@ep-cool-rain-123456-pooler.eu-central-1.aws.neon.tech/neondb"
    "?sslmode=require&channel_binding=require"
)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database of its own, as one execution environment has it."""
    database = Database(lambda: database_url)
    yield database
    database.close()


def add(database: Database, user_id: str, title: str) -> None:
    """Store a task in a transaction of its own."""
    with database.transaction(user_id) as session:
        session.add(Task(user_id=user_id, title=title))


def titles(database: Database, user_id: str) -> list[str]:
    """The titles that a transaction on the person's behalf sees, without any filter of ours."""
    with database.transaction(user_id) as session:
        return list(session.exec(select(Task.title).order_by(Task.title)))


class TestTheUrl:
    """Whatever stands in DATABASE_URL is honoured."""

    def test_neon_s_string_works_as_copied(self) -> None:
        """Its parameters are not the driver's, and are obeyed all the same: verified TLS, channel binding."""
        url = parse(NEON)
        arguments = connect_arguments(url)
        assert (arguments["user"], arguments["password"], arguments["database"]) == ("app", "p@ss", "neondb")
        assert arguments["ssl_context"].verify_mode is ssl.CERT_REQUIRED
        assert arguments["ssl_context"].check_hostname
        assert url.needs_channel_binding

    def test_tls_is_only_off_when_the_url_says_so(self) -> None:
        """No sslmode is as good as require."""
        assert isinstance(connect_arguments(parse("postgresql://u:p@h/d"))["ssl_context"], ssl.SSLContext)
        assert connect_arguments(parse("postgresql://u:p@h/d?sslmode=disable"))["ssl_context"] is False

    def test_the_system_s_authorities_are_a_file_of_no_name(self) -> None:
        """`sslrootcert=system` is libpq's word for them."""
        context = connect_arguments(parse("postgresql://u:p@h/d?sslrootcert=system"))["ssl_context"]
        assert context.cert_store_stats() == ssl.create_default_context().cert_store_stats()
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)

    @pytest.mark.parametrize("mode", ["allow", "prefer", "require", "verify-ca", "verify-full"])
    def test_every_other_mode_verifies(self, mode: str) -> None:
        """More than libpq asks of the weaker ones, and never less."""
        context = connect_arguments(parse(f"postgresql://u:p@h/d?sslmode={mode}"))["ssl_context"]
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)

    @pytest.mark.parametrize("url", ["", "mysql://u:p@h/d", "postgresql:///d", "postgresql://h/d", "ep-cool-rain"])
    def test_what_is_no_postgres_url_is_refused(self, url: str) -> None:
        """At start, and without showing what it was."""
        with pytest.raises(ValueError, match="a database URL looks like"):
            parse(url)

    def test_an_unknown_authority_is_not_trusted(self, server: Postgres, pooler: PgBouncer) -> None:
        """A server whose certificate nobody vouches for gets no password."""
        url = pooler.url(server.app_url).split("&sslrootcert")[0].split("?")[0] + "?sslmode=require"
        with pytest.raises(DatabaseUnavailable):
            titles(Database(lambda: url), "anybody")

    def test_channel_binding_is_not_given_up(self, server: Postgres, pooler: PgBouncer) -> None:
        """Where the URL requires it and the server does not offer it, there is no connection."""
        with pytest.raises(DatabaseUnavailable):
            titles(Database(lambda: f"{pooler.url(server.app_url)}&channel_binding=require"), "anybody")


class TestIsolation:
    """Row-level security, per transaction, whatever the query says."""

    def test_a_transaction_sees_one_person_s_rows(self, database: Database) -> None:
        """With no filter in the query, others' rows are not there."""
        alice, bob = uuid4().hex, uuid4().hex
        add(database, alice, "hers")
        add(database, bob, "his")
        assert (titles(database, alice), titles(database, bob)) == (["hers"], ["his"])

    def test_nobody_sees_nothing(self, database: Database) -> None:
        """With the setting empty, as it is left after first use on a connection, no row is visible."""
        add(database, uuid4().hex, "somebody's")
        assert titles(database, "") == []

    def test_without_the_setting_there_is_nothing(self, database: Database) -> None:
        """On the same connection, outside our transactions."""
        add(database, uuid4().hex, "somebody's")
        with database.engine.connect() as connection:
            assert connection.execute(text("select count(*) from task")).scalar_one() == 0

    def test_nobody_writes_for_another(self, database: Database) -> None:
        """A row with another's id is refused by the database itself."""
        with pytest.raises(Exception, match="row-level security"), database.transaction("alice") as session:
            session.add(Task(user_id="bob", title="planted"))

    @pytest.mark.parametrize("role", ["owner_url", "superuser_url"])
    def test_a_role_that_could_bypass_it_is_refused(self, server: Postgres, role: str) -> None:
        """The owner of the tables and a superuser are not served."""
        with pytest.raises(UnsafeRole):
            titles(Database(lambda: getattr(server, role)), "anybody")

    @pytest.mark.parametrize("package", ["chat", "mcp_tools"])
    @pytest.mark.parametrize("role", ["owner_url", "superuser_url", "app_url"])
    def test_on_lambda_neither_function_starts_as_such_a_role(
        self, server: Postgres, standin: StandIn, issuer: Issuer, package: str, role: str
    ) -> None:
        """It comes up as the runtime role alone: with another it ends while it starts, and says why."""
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

    @pytest.mark.parametrize("table", ["conversation", "message", "tool_call", "task", "allowance"])
    @pytest.mark.parametrize("weakness", ["disable", "no force"])
    def test_tables_whose_security_is_off_are_not_served(
        self, server: Postgres, rows: Rows, table: str, weakness: str
    ) -> None:
        """Somebody switched it off for one of them: no row is read."""
        rows.execute(f"alter table {table} {weakness} row level security".encode())
        try:
            with pytest.raises(UnsafeRole):
                titles(Database(lambda: server.app_url), "anybody")
        finally:
            rows.execute(f"alter table {table} enable row level security".encode())
            rows.execute(f"alter table {table} force row level security".encode())

    def test_a_role_that_may_become_another_is_refused(self, server: Postgres, rows: Rows) -> None:
        """Membership is as good as the attribute: SET ROLE is one statement away."""
        rows.execute("create role mighty bypassrls")
        rows.execute("create role climber login password 'x' in role mighty")
        url = f"postgresql://climber:x@{server.host}:{server.port}/taskchat?sslmode=disable"
        with pytest.raises(UnsafeRole):
            titles(Database(lambda: url), "anybody")

    def test_bypassrls_is_refused(self, server: Postgres, rows: Rows) -> None:
        """Neon's console gives its roles BYPASSRLS, and nothing else would tell."""
        rows.execute("create role bypasser login bypassrls password 'x'")
        url = f"postgresql://bypasser:x@{server.host}:{server.port}/taskchat?sslmode=disable"
        with pytest.raises(UnsafeRole):
            titles(Database(lambda: url), "anybody")


class TestTheConnection:
    """One, dropped when in doubt."""

    def test_text_that_postgres_cannot_hold_never_reaches_the_driver(self, database: Database) -> None:
        """A lone surrogate is refused with nothing sent, and the next statement gets its own answer."""
        alice, bob = uuid4().hex, uuid4().hex
        add(database, alice, "hers")
        add(database, bob, "his")
        with pytest.raises(Exception, match="lone surrogate"):
            add(database, alice, "a\ud800b")
        assert (titles(database, bob), titles(database, alice)) == (["his"], ["hers"])

    def test_the_trap_behind_that_is_real(self, server: Postgres) -> None:
        """Stock pg8000, given a lone surrogate, does not answer the next query with that query's own row."""
        connection = pg8000.connect(**connect_arguments(parse(server.app_url)))
        cursor = connection.cursor()
        cursor.execute("select 1")
        with pytest.raises(UnicodeEncodeError):
            cursor.execute("select %s || %s", ("first", "a\ud800b"))
        cursor.execute("select 'second'")
        assert ["second"] not in list(cursor.fetchall())
        connection._sock.close()
        connection._usock.close()

    def test_an_error_in_the_driver_costs_the_connection(self, database: Database) -> None:
        """After an exception that is not the database's, the next transaction is on another connection."""

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
        """The server ended it between two invocations; the next one does not notice."""
        alice = uuid4().hex
        add(database, alice, "hers")
        rows.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'taskchat_app'")
        assert titles(database, alice) == ["hers"]

    def test_a_pooler_that_restarted_is_no_failure(self, server: Postgres, pooler: PgBouncer) -> None:
        """Nor is a pooler that dropped everybody."""
        database = Database(lambda: pooler.url(server.app_url))
        alice = uuid4().hex
        add(database, alice, "hers")
        pooler.restart()
        assert titles(database, alice) == ["hers"]
        database.close()

    def test_no_database_is_said_so(self) -> None:
        """Nobody listens: unavailable, with a time to come back."""
        with pytest.raises(DatabaseUnavailable) as raised:
            titles(Database(lambda: "postgresql://u:p@127.0.0.1:9/d?sslmode=disable"), "anybody")
        assert raised.value.retry_after

    def test_a_statement_that_takes_too_long_is_given_up(self, database: Database) -> None:
        """The role's own limit ends it, and the connection serves on."""

        def dawdle() -> None:
            with database.transaction("") as session:
                session.execute(text("set local statement_timeout = '50ms'"))
                session.execute(text("select pg_sleep(10)"))

        with pytest.raises(DatabaseUnavailable):
            dawdle()
        assert titles(database, "") == []

    def test_a_failed_transaction_leaves_nothing(self, database: Database) -> None:
        """An exception inside rolls everything back."""
        alice = uuid4().hex

        def fail() -> None:
            with database.transaction(alice) as session:
                session.add(Task(user_id=alice, title="a"))
                session.flush()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert titles(database, alice) == []

    def test_nothing_is_left_on_the_session(self, database: Database) -> None:
        """After a transaction, the person's id is not readable on its connection."""
        titles(database, "alice")
        with database.engine.connect() as connection:
            assert not connection.execute(text("select current_setting('app.user_id', true)")).scalar_one()
