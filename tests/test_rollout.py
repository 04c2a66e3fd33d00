"""A change of the schema is rolled out while turns run, and no turn fails.

Promise: a migration that waits for a lock gives up before the requests behind it do, and tries again.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import dict_row

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

revision = "9999"
down_revision = "{needed}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    {change}


def downgrade() -> None:
    op.execute("alter table conversation drop one_more")
'''

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
        succeed(empty)
        running.go_on()
        running.add(another, chat(release.start(), another))
        running.go_on()
