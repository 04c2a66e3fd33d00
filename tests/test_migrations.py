"""The migrations make the schema as its owner, and the role that the program runs as."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from alembic.script import ScriptDirectory

from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from taskchat.database.engine import OldSchema
from taskchat.database.schema import NEEDED
from taskchat.database.transaction import Database
from tests.conftest import ROOT, migrate, variables
from tests.domain import example
from tests.test_cold_start import fresh

TABLES = {"conversation", "message", "tool_call", "allowance", example.table}
"""Tables whose rows belong to a person."""
BY_AGE = {"allowance_day_idx", "conversation_updated_idx", "tool_call_created_idx"}
"""Indexes for retention, which looks for old rows of everybody. The domain may have its own."""
Rows = psycopg.Connection[Any]


class EmptyDatabase:
    """Make an empty database. Give the owner's URL, and the URL of a role that does not exist yet."""

    def __init__(self, server: Postgres) -> None:
        self.name = f"empty_{uuid4().hex}"
        self.role = f"app_{uuid4().hex}"
        with psycopg.connect(server.superuser_url, autocommit=True) as connection:
            connection.execute(f"create database {self.name} owner taskchat_owner".encode())
        self.owner_url = server.owner_url.replace("/taskchat?", f"/{self.name}?")
        self.superuser_url = server.superuser_url.replace("/taskchat?", f"/{self.name}?")
        self.app_url = f"postgresql://{self.role}:pa'ss%25@{server.host}:{server.port}/{self.name}?sslmode=disable"


@pytest.fixture
def empty(server: Postgres) -> EmptyDatabase:
    """Return an empty database."""
    return EmptyDatabase(server)


@pytest.fixture
def rows(empty: EmptyDatabase) -> Iterator[Rows]:
    """Connect to that database as its superuser."""
    with psycopg.connect(empty.superuser_url, autocommit=True) as connection:
        yield connection


def succeed(empty: EmptyDatabase, *command: str) -> str:
    """Run Alembic successfully, and return its output."""
    done = migrate(empty.owner_url, empty.app_url, *command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_first_run_makes_the_tables(empty: EmptyDatabase, rows: Rows) -> None:
    """The tables belong to the owner."""
    succeed(empty)
    found = rows.execute("select tablename, tableowner from pg_tables where schemaname = 'public'").fetchall()
    assert {name for name, owner in found if owner == "taskchat_owner"} == TABLES | {"alembic_version", "erased_call"}


def test_a_second_run_changes_nothing(empty: EmptyDatabase) -> None:
    """An up-to-date database stays so, and the runtime role keeps its password."""
    succeed(empty)
    succeed(empty)
    with psycopg.connect(empty.app_url) as connection:
        assert connection.execute("select count(*) from message").fetchone() == (0,)


def test_models_and_migrations_agree(empty: EmptyDatabase) -> None:
    """`alembic check` finds nothing to add."""
    succeed(empty)
    assert "No new upgrade operations detected" in succeed(empty, "check")


def test_migrations_go_down_and_up_again(empty: EmptyDatabase, rows: Rows) -> None:
    """The database is empty in between."""
    succeed(empty)
    succeed(empty, "downgrade", "base")
    assert rows.execute("select from pg_tables where tablename = 'message'").fetchall() == []
    succeed(empty)


def test_a_downgrade_to_the_first_migration_keeps_its_rows(empty: EmptyDatabase, rows: Rows) -> None:
    """The upgrade works again afterwards."""
    succeed(empty)
    rows.execute("insert into conversation (user_id, id, title) values ('alice', gen_random_uuid(), 'Groceries')")
    succeed(empty, "downgrade", "0001")
    assert rows.execute("select to_regclass('allowance')").fetchone() == (None,)
    assert rows.execute("select to_regclass('tool_call_conversation_idx')").fetchone() != (None,)
    succeed(empty)
    assert rows.execute("select title from conversation").fetchall() == [("Groceries",)]
    assert rows.execute("select count(*) from allowance").fetchone() == (0,)


def test_two_runs_at_once_both_succeed(empty: EmptyDatabase) -> None:
    """Deployments that run at the same time wait for each other."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: migrate(empty.owner_url, empty.app_url), range(2)))
    assert [run.returncode for run in done] == [0, 0], [run.stderr for run in done]


def test_row_level_security_is_forced_everywhere(empty: EmptyDatabase, rows: Rows) -> None:
    """Each person's table has one policy for everything. Erased calls belong to nobody: they can only be added."""
    succeed(empty)
    found = rows.execute(
        "select relname from pg_class where relrowsecurity and relforcerowsecurity and relkind = 'r'"
    ).fetchall()
    policies = rows.execute("select tablename, cmd, permissive from pg_policies").fetchall()
    assert {name for (name,) in found} == {*TABLES, "erased_call"}
    assert set(policies) == {
        *((table, "ALL", "PERMISSIVE") for table in TABLES),
        ("erased_call", "INSERT", "PERMISSIVE"),
    }


def test_every_key_begins_with_the_owner(empty: EmptyDatabase, rows: Rows) -> None:
    """This holds for primary keys, unique keys and indexes, but for those that retention reads."""
    succeed(empty)
    indexes = rows.execute(
        "select indexname, indexdef from pg_indexes where tablename = any(%s)", [list(TABLES - {example.table})]
    )
    assert {name for name, definition in indexes if "(user_id" not in definition} == BY_AGE


def test_the_runtime_role_has_exactly_the_rights_it_needs(empty: EmptyDatabase, rows: Rows) -> None:
    """It may read Alembic's own table, has no right to create, and cannot bypass policies."""
    succeed(empty)
    found = rows.execute(
        "select table_name, privilege_type from information_schema.role_table_grants where grantee = %s", [empty.role]
    ).fetchall()
    assert set(found) == {
        *((table, right) for table in TABLES for right in ("SELECT", "INSERT")),
        *((table, "DELETE") for table in TABLES),
        ("conversation", "UPDATE"),
        (example.table, "UPDATE"),
        ("allowance", "UPDATE"),
        ("erased_call", "INSERT"),
        ("alembic_version", "SELECT"),
    }
    columns = rows.execute(
        "select table_name, column_name from information_schema.column_privileges"
        " where grantee = %s and privilege_type = 'UPDATE' and table_name in ('message', 'tool_call')",
        [empty.role],
    ).fetchall()
    assert set(columns) == {("tool_call", column) for column in ("tool", "arguments", "result")}
    role = rows.execute(
        "select rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication,"
        " has_schema_privilege(oid, 'public', 'create') from pg_roles where rolname = %s",
        [empty.role],
    ).fetchone()
    assert role == (False,) * 6


@pytest.mark.parametrize(
    "statement",
    [
        "create table public.x ()",
        "create function public.x() returns int return 1",
        "create schema x",
        f"truncate {example.table}",
        "update alembic_version set version_num = '9999'",
        "select passwd from pg_shadow",
        "set role taskchat_owner",
    ],
)
def test_the_runtime_role_may_not(empty: EmptyDatabase, statement: str) -> None:
    """It cannot create, truncate, or become another role."""
    succeed(empty)
    with psycopg.connect(empty.app_url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement.encode())


def test_a_temporary_table_does_not_hide_a_table(empty: EmptyDatabase) -> None:
    """A pooler would give it, with its session, to the next client."""
    succeed(empty)
    with psycopg.connect(empty.app_url) as connection:
        connection.execute("create temporary table message (content text)")
        connection.execute("insert into pg_temp.message values ('planted')")
        assert connection.execute("select count(*) from message").fetchone() == (0,)


def test_the_runtime_role_has_limits(empty: EmptyDatabase) -> None:
    """Postgres ends its statements, locks and idle transactions. Poolers refuse to set these at connect."""
    succeed(empty)
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    with psycopg.connect(empty.app_url) as connection:
        assert [connection.execute(f"show {name}".encode()).fetchone() for name in names] == [
            ("5s",),
            ("2s",),
            ("10s",),
        ]


def test_a_runtime_role_that_can_bypass_policies_is_refused(empty: EmptyDatabase, server: Postgres) -> None:
    """DATABASE_URL has the owner's URL: the run fails with one clear line and creates nothing."""
    done = migrate(empty.owner_url, empty.owner_url)
    assert done.returncode != 0
    assert "can bypass row-level security" in (done.stdout + done.stderr).splitlines()[-1]


def test_a_role_needs_a_password(empty: EmptyDatabase) -> None:
    """A URL without a password would make a role that cannot log in."""
    done = migrate(empty.owner_url, f"postgresql://{empty.role}@h/d?sslmode=disable")
    assert done.returncode != 0
    assert "has no password" in (done.stdout + done.stderr).splitlines()[-1]


def test_the_run_prints_its_results(empty: EmptyDatabase) -> None:
    """It prints the schema's version, and says whether it made the role, in the first run and later."""
    assert f"role {empty.role} was made" in succeed(empty)
    assert f"role {empty.role} existed; its password was not changed" in succeed(empty)


def test_a_role_with_administrator_rights_is_refused(empty: EmptyDatabase, rows: Rows) -> None:
    """An operator made this role by hand, with more rights than the program needs."""
    rows.execute(f"create role {empty.role} login createdb password 'x'".encode())
    done = migrate(empty.owner_url, empty.app_url)
    assert "has rights of an administrator" in (done.stdout + done.stderr).splitlines()[-1]


def test_a_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line has the variable's name, and no other variable's value."""
    monkeypatch.delenv("MIGRATION_DATABASE_URL", raising=False)
    done = migrate("", "postgresql://u:secret@h/d")
    assert "MIGRATION_DATABASE_URL" in (done.stdout + done.stderr).splitlines()[-1]
    assert "secret" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["MIGRATION_DATABASE_URL", "DATABASE_URL"])
def test_a_wrong_url_is_named(name: str) -> None:
    """One line names the variable, without the password."""
    urls = {"MIGRATION_DATABASE_URL": "postgresql://u:secret@h/d", "DATABASE_URL": "postgresql://u:secret@h/d"}
    urls[name] = "postgresql://u:secret@h:secret/d"
    done = migrate(*urls.values())
    assert f": {name}: Value error, the port must be" in (done.stdout + done.stderr).splitlines()[-1]
    assert "secret" not in done.stdout + done.stderr


class TestASchemaOpenToOthers:
    """Postgres 14 and older let every role create in `public`. A database that came from one still does."""

    def check_refused(self, empty: EmptyDatabase) -> None:
        """Check that the run makes nothing, and that its last line says what to do."""
        done = migrate(empty.owner_url, empty.app_url)
        assert done.returncode != 0
        assert "revoke create on schema public from public" in (done.stdout + done.stderr).splitlines()[-1]

    def test_open_to_every_role(self, empty: EmptyDatabase, rows: Rows) -> None:
        """In Postgres 14's default, any role could put a function in front of one of ours."""
        rows.execute("grant create on schema public to public")
        self.check_refused(empty)
        assert rows.execute("select from pg_tables where schemaname = 'public'").fetchall() == []
        assert rows.execute("select from pg_roles where rolname = %s", [empty.role]).fetchall() == []
        rows.execute("revoke create on schema public from public")
        succeed(empty)

    def test_open_to_a_group_of_the_runtime_role(self, empty: EmptyDatabase, rows: Rows) -> None:
        """The runtime role has the right through a group, which a revocation from `public` does not end."""
        succeed(empty)
        rows.execute(f"create role {empty.role}_group".encode())
        rows.execute(f"grant create on schema public to {empty.role}_group".encode())
        rows.execute(f"grant {empty.role}_group to {empty.role}".encode())
        self.check_refused(empty)

    def test_an_up_to_date_database_is_checked_too(self, empty: EmptyDatabase, rows: Rows) -> None:
        """Every run checks it, not only a run that makes something."""
        succeed(empty)
        rows.execute("grant create on schema public to public")
        self.check_refused(empty)


class TestTheSchemaThatTheCodeNeeds:
    """The functions refuse a schema that is older than their code, and name both revisions."""

    def test_it_is_that_of_the_newest_migration(self) -> None:
        """Revisions are in alphabetical order, so the code can tell which is older."""
        scripts = ScriptDirectory(str(ROOT / "migrations"))
        found = [script.revision for script in scripts.walk_revisions()]
        assert found == sorted(found, reverse=True)
        assert found[0] == NEEDED

    def test_an_older_one_is_refused(self, empty: EmptyDatabase, rows: Rows) -> None:
        """The line names `make migrate` too. After a run of it, the same process serves."""
        succeed(empty)
        rows.execute("update alembic_version set version_num = '0001'")
        database = Database(lambda: empty.app_url)
        with (
            pytest.raises(OldSchema, match=f"revision 0001.*needs {NEEDED}.*`make migrate`"),
            database.transaction("x"),
        ):
            pass
        rows.execute("update alembic_version set version_num = %s", [NEEDED])
        with closing(database), database.transaction("x"):
            pass

    @pytest.mark.parametrize(
        "damage",
        ["drop table alembic_version", "revoke all on alembic_version from {role}", "delete from alembic_version"],
    )
    def test_one_whose_revision_is_unknown_is_refused(self, empty: EmptyDatabase, rows: Rows, damage: str) -> None:
        """It is empty, or older than the right to read its revision."""
        succeed(empty)
        rows.execute(damage.format(role=empty.role).encode())
        with (
            closing(Database(lambda: empty.app_url)) as database,
            pytest.raises(OldSchema, match="revision unknown"),
            database.transaction("x"),
        ):
            pass

    def test_a_newer_one_is_served(self, empty: EmptyDatabase, rows: Rows) -> None:
        """Migrations only add, so the code of the release before goes on."""
        succeed(empty)
        rows.execute("update alembic_version set version_num = '9999'")
        with closing(Database(lambda: empty.app_url)) as database, database.transaction("x"):
            pass

    def test_on_lambda_the_function_does_not_start(
        self, empty: EmptyDatabase, rows: Rows, standin: StandIn, issuer: Issuer
    ) -> None:
        """The start ends with that line."""
        succeed(empty)
        rows.execute("update alembic_version set version_num = '0001'")
        code = """
import json
try:
    import chat
except RuntimeError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""
        known = variables(empty.app_url, standin, issuer) | {"AWS_LAMBDA_RUNTIME_API": "localhost"}
        kind, line = fresh(code, **known)
        assert (kind, line[:35]) == ("OldSchema", "The schema is older than this code:")
