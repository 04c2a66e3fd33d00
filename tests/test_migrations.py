"""The schema, as its owner makes it, and the role that the program runs as."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from dev.postgres import Postgres
from tests.conftest import migrate

TABLES = {"conversation", "message", "tool_call", "task", "allowance"}
Rows = psycopg.Connection[Any]


class Empty:
    """A database of its own with nothing in it, the owner's URL, and the URL of a role that does not exist."""

    def __init__(self, server: Postgres) -> None:
        self.name = f"empty_{uuid4().hex}"
        self.role = f"app_{uuid4().hex}"
        with psycopg.connect(server.superuser_url, autocommit=True) as connection:
            connection.execute(f"create database {self.name} owner taskchat_owner".encode())
        self.owner_url = server.owner_url.replace("/taskchat?", f"/{self.name}?")
        self.superuser_url = server.superuser_url.replace("/taskchat?", f"/{self.name}?")
        self.app_url = f"postgresql://{self.role}:pa'ss%25@{server.host}:{server.port}/{self.name}?sslmode=disable"


@pytest.fixture
def empty(server: Postgres) -> Empty:
    """A database that nothing was done to."""
    return Empty(server)


@pytest.fixture
def rows(empty: Empty) -> Iterator[Rows]:
    """That database, as its superuser sees it."""
    with psycopg.connect(empty.superuser_url, autocommit=True) as connection:
        yield connection


def succeed(empty: Empty, *command: str) -> str:
    """Run Alembic and give back what it said."""
    done = migrate(empty.owner_url, empty.app_url, *command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_empty_database_is_filled(empty: Empty, rows: Rows) -> None:
    """After one run the tables are there, owned by the owner."""
    succeed(empty)
    found = rows.execute("select tablename, tableowner from pg_tables where schemaname = 'public'").fetchall()
    assert {name for name, owner in found if owner == "taskchat_owner"} == TABLES | {"alembic_version"}


def test_a_second_run_changes_nothing(empty: Empty) -> None:
    """An up-to-date database stays so, and the runtime role keeps its password."""
    succeed(empty)
    succeed(empty)
    with psycopg.connect(empty.app_url) as connection:
        assert connection.execute("select count(*) from task").fetchone() == (0,)


def test_models_and_migrations_agree(empty: Empty) -> None:
    """`alembic check` finds nothing to add."""
    succeed(empty)
    assert "No new upgrade operations detected" in succeed(empty, "check")


def test_the_way_back_exists(empty: Empty, rows: Rows) -> None:
    """Down to nothing and up again."""
    succeed(empty)
    succeed(empty, "downgrade", "base")
    assert rows.execute("select from pg_tables where tablename = 'task'").fetchall() == []
    succeed(empty)


def test_each_step_can_be_taken_back(empty: Empty, rows: Rows) -> None:
    """Down to the first: what its tables held is still there, and the way up is open again."""
    succeed(empty)
    rows.execute("insert into task (user_id, title, description) values ('alice', 'buy milk', '')")
    succeed(empty, "downgrade", "0001")
    assert rows.execute("select to_regclass('allowance')").fetchone() == (None,)
    assert rows.execute("select to_regclass('tool_call_conversation_idx')").fetchone() != (None,)
    succeed(empty)
    assert rows.execute("select title from task").fetchall() == [("buy milk",)]
    assert rows.execute("select count(*) from allowance").fetchone() == (0,)


def test_two_runs_at_once_are_one(empty: Empty) -> None:
    """Deploys that race each other wait for each other."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: migrate(empty.owner_url, empty.app_url), range(2)))
    assert [run.returncode for run in done] == [0, 0], [run.stderr for run in done]


def test_row_level_security_is_forced_everywhere(empty: Empty, rows: Rows) -> None:
    """Each table has it enabled, forced, and one policy for everything."""
    succeed(empty)
    found = rows.execute(
        "select relname from pg_class where relrowsecurity and relforcerowsecurity and relkind = 'r'"
    ).fetchall()
    policies = rows.execute("select tablename, cmd, permissive from pg_policies").fetchall()
    assert {name for (name,) in found} == TABLES
    assert sorted(policies) == sorted((table, "ALL", "PERMISSIVE") for table in TABLES)


def test_every_key_begins_with_the_owner(empty: Empty, rows: Rows) -> None:
    """Primary keys, unique keys and indexes alike."""
    succeed(empty)
    indexes = rows.execute("select indexname, indexdef from pg_indexes where tablename = any(%s)", [list(TABLES)])
    assert all("(user_id" in definition for _, definition in indexes)


def test_the_runtime_role_may_do_what_it_does_and_no_more(empty: Empty, rows: Rows) -> None:
    """Its rights, one by one; nothing on Alembic's own table, no rights of a creator, no way round the policies."""
    succeed(empty)
    found = rows.execute(
        "select table_name, privilege_type from information_schema.role_table_grants where grantee = %s", [empty.role]
    ).fetchall()
    assert set(found) == {
        *((table, right) for table in TABLES for right in ("SELECT", "INSERT")),
        ("conversation", "UPDATE"),
        ("task", "UPDATE"),
        ("task", "DELETE"),
        ("allowance", "UPDATE"),
    }
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
        "truncate task",
        "select * from alembic_version",
        "select passwd from pg_shadow",
        "set role taskchat_owner",
    ],
)
def test_the_runtime_role_may_not(empty: Empty, statement: str) -> None:
    """It makes nothing, empties nothing, and becomes nobody else."""
    succeed(empty)
    with psycopg.connect(empty.app_url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement.encode())


def test_a_temporary_table_takes_no_table_s_place(empty: Empty) -> None:
    """A pooler would hand it, with its session, to the next who asks for their tasks."""
    succeed(empty)
    with psycopg.connect(empty.app_url) as connection:
        connection.execute("create temporary table task (title text)")
        connection.execute("insert into pg_temp.task values ('planted')")
        assert connection.execute("select count(*) from task").fetchone() == (0,)


def test_the_runtime_role_has_limits(empty: Empty) -> None:
    """Statements, locks and idle transactions end by themselves; poolers refuse to be told so at connect."""
    succeed(empty)
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    with psycopg.connect(empty.app_url) as connection:
        assert [connection.execute(f"show {name}".encode()).fetchone() for name in names] == [
            ("5s",),
            ("2s",),
            ("10s",),
        ]


def test_a_runtime_role_that_could_bypass_is_refused(empty: Empty, server: Postgres) -> None:
    """The owner's own URL in DATABASE_URL: one clear line, and nothing is created."""
    done = migrate(empty.owner_url, empty.owner_url)
    assert done.returncode != 0
    assert "can bypass row-level security" in (done.stdout + done.stderr).splitlines()[-1]


def test_a_role_needs_a_password(empty: Empty) -> None:
    """A URL without one would make a role that nobody can log in as."""
    done = migrate(empty.owner_url, f"postgresql://{empty.role}@h/d?sslmode=disable")
    assert done.returncode != 0
    assert "has no password" in (done.stdout + done.stderr).splitlines()[-1]


def test_it_says_what_it_did(empty: Empty) -> None:
    """The schema's version, and what became of the role, the first time and later."""
    assert f"role {empty.role} was made" in succeed(empty)
    assert f"role {empty.role} existed; its password was not changed" in succeed(empty)


def test_a_role_with_an_administrator_s_rights_is_refused(empty: Empty, rows: Rows) -> None:
    """One that was made by hand, with more than the program needs."""
    rows.execute(f"create role {empty.role} login createdb password 'x'".encode())
    done = migrate(empty.owner_url, empty.app_url)
    assert "has rights of an administrator" in (done.stdout + done.stderr).splitlines()[-1]


def test_a_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a traceback's guess: the variable's name, and no value of another."""
    monkeypatch.delenv("MIGRATION_DATABASE_URL", raising=False)
    done = migrate("", "postgresql://u:secret@h/d")
    assert "MIGRATION_DATABASE_URL" in (done.stdout + done.stderr).splitlines()[-1]
    assert "secret" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["MIGRATION_DATABASE_URL", "DATABASE_URL"])
def test_a_wrong_url_is_named(name: str) -> None:
    """In one line, without the password in it."""
    urls = {"MIGRATION_DATABASE_URL": "postgresql://u:secret@h/d", "DATABASE_URL": "postgresql://u:secret@h/d"}
    urls[name] = "postgresql://u:secret@h:secret/d"
    done = migrate(*urls.values())
    assert f": {name}: Value error, the port must be" in (done.stdout + done.stderr).splitlines()[-1]
    assert "secret" not in done.stdout + done.stderr


class TestASchemaOpenToOthers:
    """Postgres 14 and older let everybody create in `public`, and a database that came from one still does."""

    def refused(self, empty: Empty) -> None:
        """Nothing is made, and the line says what to do."""
        done = migrate(empty.owner_url, empty.app_url)
        assert done.returncode != 0
        assert "revoke create on schema public from public" in (done.stdout + done.stderr).splitlines()[-1]

    def test_to_everybody(self, empty: Empty, rows: Rows) -> None:
        """As Postgres 14 makes it: a role that is nothing to us could put a function in front of one of ours."""
        rows.execute("grant create on schema public to public")
        self.refused(empty)
        assert rows.execute("select from pg_tables where schemaname = 'public'").fetchall() == []
        assert rows.execute("select from pg_roles where rolname = %s", [empty.role]).fetchall() == []
        rows.execute("revoke create on schema public from public")
        succeed(empty)

    def test_to_the_runtime_role(self, empty: Empty, rows: Rows) -> None:
        """By way of a group, which no revocation from everybody would show."""
        succeed(empty)
        rows.execute(f"create role {empty.role}_group".encode())
        rows.execute(f"grant create on schema public to {empty.role}_group".encode())
        rows.execute(f"grant {empty.role}_group to {empty.role}".encode())
        self.refused(empty)

    def test_on_a_database_that_is_up_to_date(self, empty: Empty, rows: Rows) -> None:
        """It is looked at in every run, not only when something is made."""
        succeed(empty)
        rows.execute("grant create on schema public to public")
        self.refused(empty)
