"""A change of the schema is rolled out while turns run, and no turn fails.

Promises: a migration that waits for a lock gives up before the requests behind it do, and tries again. An index is
built while requests write to its table, and a build that failed is made again.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from dev import processes
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from taskchat.database.schema import NEEDED
from testing.callers import Caller
from testing.gateway import invoke
from tests.conftest import ROOT, variables
from tests.db_assertions import Rows
from tests.domain import example
from tests.environments import Fleet, ForkServer
from tests.privacy import LogSearch
from tests.test_migrations import EmptyDatabase, succeed
from tests.test_release_before import earlier, revision_of_earlier, serving  # noqa: F401  (a fixture)
from tests.test_rotation import chat, load

PATIENCE = 60

MIGRATION = '''
"""Change one thing more."""

from alembic import op

from migrations.indexes import create_index, drop_index

revision = "9999"
down_revision = "{needed}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    {change}


def downgrade() -> None:
    drop_index("one_more_idx")
'''

INDEX = "create_index('one_more_idx', 'conversation (title)')"
FAILING = "create_index('one_more_idx', 'conversation ((1 / length(title)))')"

BUILD_WAITS = """
select from pg_stat_activity
where datname = current_database() and query like 'create index concurrently%' and wait_event_type = 'Lock'
"""
RUN_WAITS = """
select from pg_stat_activity
where datname = current_database() and query like 'select pg%advisory_lock%' and pid <> pg_backend_pid()
"""

RUN = """
import sys
from alembic import command
from alembic.config import Config
config = Config()
config.set_main_option("script_location", sys.argv[1])
command.upgrade(config, "head")
"""


@pytest.fixture
def empty(server: Postgres) -> EmptyDatabase:
    """Return an up-to-date database."""
    made = EmptyDatabase(server)
    succeed(made)
    return made


@pytest.fixture
def rows(empty: EmptyDatabase) -> Iterator[Rows]:
    """Connect to that database as its superuser."""
    with psycopg.connect(empty.superuser_url, autocommit=True, row_factory=dict_row) as connection:
        yield connection


@dataclass
class OneMore:
    """The migrations, and one that makes a change."""

    empty: EmptyDatabase
    folder: Path

    def start(self) -> subprocess.Popen[str]:
        """Begin to migrate as `make migrate` does."""
        known = {"MIGRATION_DATABASE_URL": self.empty.owner_url, "DATABASE_URL": self.empty.app_url}
        return subprocess.Popen(  # noqa: S603  (constants)
            [sys.executable, "-u", "-c", RUN, str(self.folder)],
            cwd=ROOT,
            env=os.environ | known | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def one_more(empty: EmptyDatabase, tmp_path: Path, request: pytest.FixtureRequest) -> OneMore:
    """Add a migration with the test's change to a copy of all."""
    folder = shutil.copytree(ROOT / "migrations", tmp_path / "all")
    (folder / "versions" / "9999_one_more.py").write_text(MIGRATION.format(needed=NEEDED, change=request.param))
    return OneMore(empty, folder)


@pytest.mark.parametrize("one_more", ["op.execute('alter table conversation add one_more int')"], indirect=True)
def test_a_migration_does_not_make_requests_wait(one_more: OneMore, empty: EmptyDatabase) -> None:
    """While a long transaction uses the table, the run gives up the lock and says so. Then it goes on."""
    with psycopg.connect(empty.superuser_url) as long:
        long.execute("select from conversation").fetchall()
        process = one_more.start()
        assert process.stdout
        assert process.stdout.readline().startswith("A table is in use, trying again")
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output


def wait_for(rows: Rows, condition: str) -> None:
    """Return when the query finds a row."""
    for _ in processes.attempts(PATIENCE):
        if rows.execute(condition.encode()).fetchone() is not None:
            return
    raise AssertionError(rows.execute("select pid, state, wait_event, query from pg_stat_activity").fetchall())


def begin_conversation(connection: psycopg.Connection[Any], title: str = "x") -> None:
    """Write a row of the table that gets the index."""
    connection.execute("insert into conversation (user_id, id, title) values ('a', gen_random_uuid(), %s)", [title])


def is_valid(rows: Rows) -> bool | None:
    """Return whether the new index can be used, or None if there is none."""
    found = rows.execute("select indisvalid from pg_index where indexrelid = to_regclass('one_more_idx')").fetchone()
    return found and bool(found["indisvalid"])


@pytest.mark.parametrize("one_more", [INDEX], indirect=True)
def test_an_index_is_built_beside_writers(one_more: OneMore, empty: EmptyDatabase, rows: Rows) -> None:
    """The build waits for a transaction that has written. No other writer waits, and a second run ends too."""
    with psycopg.connect(empty.superuser_url) as writer:
        begin_conversation(writer)
        runs = [one_more.start()]
        wait_for(rows, BUILD_WAITS)
        runs.append(one_more.start())
        wait_for(rows, RUN_WAITS)
        rows.execute("set lock_timeout = '1s'")
        for _ in range(20):
            begin_conversation(rows)
        wait_for(rows, BUILD_WAITS)
    for run in runs:
        output, _ = run.communicate(timeout=PATIENCE)
        assert run.returncode == 0, output
    assert is_valid(rows)


@pytest.mark.parametrize("one_more", [FAILING], indirect=True)
def test_a_build_that_failed_is_made_again(one_more: OneMore, rows: Rows) -> None:
    """It leaves an invalid index, which the next run drops."""
    begin_conversation(rows, title="")
    output, _ = one_more.start().communicate(timeout=PATIENCE)
    assert "division by zero" in output
    assert is_valid(rows) is False
    rows.execute("update conversation set title = 'x'")
    output, _ = one_more.start().communicate(timeout=PATIENCE)
    assert is_valid(rows), output


@pytest.fixture
def release(
    empty: EmptyDatabase,
    warm_fork_server: ForkServer,
    standin: StandIn,
    issuer: Issuer,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Fleet]:
    """Deploy this code over that database. A process of the earlier code has the same variables."""
    known = variables(empty.app_url, standin, issuer)
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    fleet = Fleet(warm_fork_server, known)
    yield fleet
    fleet.stop()


def test_no_turn_fails_while_the_schema_is_rolled_out(
    empty: EmptyDatabase,
    rows: Rows,
    earlier: Path,  # noqa: F811  (the fixture)
    release: Fleet,
    issuer: Issuer,
    log_search: LogSearch,
) -> None:
    """The code before serves on the old schema and on the new one. Then a process of the new code serves too."""
    succeed(empty, "downgrade", revision_of_earlier())
    one, another = Caller.new(issuer), Caller.new(issuer)
    with serving(earlier, "chat", log_search) as old, load(rows) as running:
        running.add(one, lambda mark: invoke(old, one.request({"message": example.add(mark)})))
        running.go_on()
        seen = re.sub(r"app_[0-9a-f]{32}", "taskchat_app", succeed(empty).splitlines()[-1])
        assert f"$ make migrate\n{seen}" in (ROOT / "docs" / "deploy.md").read_text()
        running.go_on()
        running.add(another, chat(release.start(), another))
        running.go_on()
