"""The engine does not know the domain: it names no task, and it covers a new table without being told of it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlmodel import SQLModel

import taskchat.conversations.models
import taskchat.limits  # noqa: F401  (with the line above: the engine's tables)
from dev.postgres import Postgres
from taskchat.tasks import models, toolset
from tests.conftest import ROOT
from tests.test_migrations import EmptyDatabase, succeed

Rows = psycopg.Connection[Any]

DOMAIN = ROOT / "shared" / "taskchat" / "tasks"
ENGINE = sorted(
    path
    for folder in ("functions", "shared/taskchat", "migrations")
    for path in (ROOT / folder).rglob("*.py")
    if DOMAIN not in path.parents and path.parent.name != "versions"  # the schema's history holds the domain's tables
) + sorted((ROOT / "page" / "js").rglob("*.js"))

GENERAL_WORDS = {"description"}
"""Columns of the domain whose names the engine uses for other things: a tool, an argument and a header have one too."""

NO_DOMAIN_WORDS = re.compile(
    r"from taskchat\.tasks import toolset|from taskchat\.tasks\.routes import router"
    r"|import taskchat\.tasks|taskchat|background tasks?"
    r"|token\.task( \? \"task\")?"
    r"|asyncio\.(Task|TaskGroup|create_task)|run_loop_task|logging\.logAsyncioTasks|ResponseCompletedEvent|response\.completed|status=\"completed\""
)
"""The imports of toolset and router, the package, and terms of Markdown, of frameworks and of the Responses API."""


def domain_words() -> set[str]:
    """Return the names of tools and tables, in singular and plural, and the columns that only the domain has."""
    tables = SQLModel.metadata.tables
    domain = {name for name, table in tables.items() if any(table is known for known in vars(models).values())}
    columns = {column.name for name in domain for column in tables[name].columns}
    known = {column.name for name in set(tables) - domain for column in tables[name].columns}
    names = {tool.__name__ for tool in toolset.tools} | domain | {f"{table}s" for table in domain}
    return names | (columns - known - GENERAL_WORDS)


def words_in(text: str) -> set[str]:
    """Return the words of code and prose, and the parts of each name: `TaskView` and `max_tasks` hold `task`."""
    names = re.findall(r"\w+", NO_DOMAIN_WORDS.sub("", text))
    parts = {part.lower() for name in names for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}
    return {name.lower() for name in names} | parts


def test_the_words_of_the_domain_are_found() -> None:
    """The next test looks for something: the domain itself holds each word."""
    assert domain_words() >= {"task", "tasks", "add_task", "update_task", "completed"}
    assert domain_words() <= words_in("".join(path.read_text() for path in DOMAIN.glob("*.py")))


@pytest.mark.parametrize("path", ENGINE, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_engine_module_holds_no_word_of_the_domain(path: Path) -> None:
    """Neither in code nor in a docstring nor in a comment."""
    assert words_in(path.read_text()) & domain_words() == set()


def run_step(empty: EmptyDatabase, step: str) -> str:
    """Run one step in a process that has one more table, and return its output."""
    variables = {
        "PYTHONPATH": f"{ROOT / 'shared'}:{ROOT / 'functions'}",
        "MIGRATION_DATABASE_URL": empty.owner_url,
        "DATABASE_URL": empty.app_url,
    }
    command = [sys.executable, "-m", "tests.one_more_table", step]
    done = subprocess.run(  # noqa: S603  (a module of these tests)
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def database(server: Postgres) -> EmptyDatabase:
    """Return a database whose schema has one more table, `receipt`."""
    database = EmptyDatabase(server)
    succeed(database)
    run_step(database, "migrate")
    return database


class TestANewTable:
    """It is covered the moment it exists: its model is all that it needs."""

    @pytest.fixture
    def rows(self, database: EmptyDatabase) -> Iterator[Rows]:
        """Connect as the superuser."""
        with psycopg.connect(database.superuser_url, autocommit=True) as connection:
            yield connection

    @pytest.fixture
    def as_bob(self, database: EmptyDatabase, rows: Rows) -> Iterator[Rows]:
        """Begin a transaction of the runtime role for Bob. Alice has a row."""
        rows.execute("truncate receipt")
        rows.execute("insert into receipt values ('alice', 'a', 5)")
        with psycopg.connect(database.app_url) as connection:
            connection.execute("select set_config('app.user_id', 'bob', true)")
            yield connection

    def test_row_level_security_is_forced(self, rows: Rows) -> None:
        """On the owner too, with one policy for every command."""
        forced = rows.execute(
            "select relrowsecurity and relforcerowsecurity from pg_class where oid = 'receipt'::regclass"
        )
        assert forced.fetchall() == [(True,)]
        policies = rows.execute("select policyname, cmd from pg_policies where tablename = 'receipt'")
        assert policies.fetchall() == [("owner_only", "ALL")]

    def test_the_runtime_role_has_the_rights_that_it_names(self, database: EmptyDatabase, rows: Rows) -> None:
        """And no other."""
        found = rows.execute(
            "select privilege_type from information_schema.role_table_grants"
            " where grantee = %s and table_name = 'receipt'",
            [database.role],
        )
        assert {right for (right,) in found} == {"SELECT", "INSERT", "UPDATE", "DELETE"}

    def test_its_owner_s_rows_are_seen_and_written(self, as_bob: Rows) -> None:
        """The policy lets the owner do what the rights allow."""
        as_bob.execute("insert into receipt values ('bob', 'b', 7)")
        as_bob.execute("update receipt set amount = 8")
        assert as_bob.execute("select user_id, amount from receipt").fetchall() == [("bob", 8)]

    def test_another_person_s_rows_are_not_seen(self, as_bob: Rows) -> None:
        """A query without an owner filter returns none of them."""
        assert as_bob.execute("select * from receipt").fetchall() == []

    def test_another_person_s_rows_are_not_changed(self, as_bob: Rows, rows: Rows) -> None:
        """An update without an owner filter finds none of them."""
        assert as_bob.execute("update receipt set amount = 0").rowcount == 0
        as_bob.commit()
        assert rows.execute("select * from receipt").fetchall() == [("alice", "a", 5)]

    def test_no_row_is_written_for_another_person(self, as_bob: Rows) -> None:
        """Postgres refuses the insert."""
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            as_bob.execute("insert into receipt values ('alice', 'b', 7)")

    def test_without_a_person_no_row_is_seen(self, database: EmptyDatabase, rows: Rows) -> None:
        """The policy is closed while `app.user_id` is not set."""
        rows.execute("insert into receipt values ('carol', 'c', 1)")
        with psycopg.connect(database.app_url) as connection:
            assert connection.execute("select * from receipt").fetchall() == []

    def test_it_is_exported_and_erased(self, database: EmptyDatabase, rows: Rows) -> None:
        """With every column but the owner, and without another person's rows."""
        rows.execute("truncate receipt")
        rows.execute("insert into receipt values ('alice', 'a', 5), ('alice', 'b', 7), ('bob', 'c', 9)")
        exported = json.loads(run_step(database, "export_and_erase"))
        assert exported == [{"id": "a", "amount": 5}, {"id": "b", "amount": 7}]
        assert rows.execute("select user_id, id, amount from receipt").fetchall() == [("bob", "c", 9)]

    def test_the_check_of_the_role_knows_it(self, database: EmptyDatabase, rows: Rows) -> None:
        """The program refuses to serve once the security of this table alone is off."""
        assert run_step(database, "connect") == "served"
        rows.execute("alter table receipt no force row level security")
        try:
            assert run_step(database, "connect") == "refused"
        finally:
            rows.execute("alter table receipt force row level security")
