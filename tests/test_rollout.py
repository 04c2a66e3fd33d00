"""A change of the schema is rolled out while turns run, and no turn fails.

Promise: a migration that waits for a lock gives up before the requests behind it do, and tries again.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from taskchat.database.schema import NEEDED
from testing.callers import Caller
from testing.gateway import invoke
from tests.conftest import ROOT, migrate, variables
from tests.domain import example
from tests.environments import Fleet, ForkServer
from tests.privacy import LogSearch
from tests.test_migrations import EmptyDatabase, Rows, succeed
from tests.test_release_before import BEFORE, _git, earlier, serving  # noqa: F401  (a fixture)
from tests.test_rotation import Load, chat

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
    with psycopg.connect(empty.superuser_url, autocommit=True) as connection:
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


def test_no_turn_fails_while_the_schema_is_rolled_out(
    empty: EmptyDatabase,
    earlier: Path,  # noqa: F811  (the fixture)
    warm_fork_server: ForkServer,
    standin: StandIn,
    issuer: Issuer,
    log_search: LogSearch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The code before serves on the old schema and on the new one. Then the new code serves too."""
    known = variables(empty.app_url, standin, issuer)
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    files = _git("ls-tree", "--name-only", BEFORE, "migrations/versions/").decode().split()
    succeed(empty, "downgrade", max(Path(file).name for file in files)[:4])
    fleet, load, caller = Fleet(warm_fork_server, known), Load(), Caller.new(issuer)
    with serving(earlier, "chat", log_search) as old, ThreadPoolExecutor() as pool:
        load.done.append(0)
        worker = pool.submit(
            load.work, 0, lambda mark: invoke(old, caller.request({"message": example.add(mark)})), caller
        )
        try:
            load.go_on([worker])
            done = migrate(empty.owner_url, empty.app_url)
            assert done.returncode == 0, done.stderr
            load.go_on([worker])
            new = chat(fleet.start(), caller)
            assert new(f"n{uuid4().hex[:8]}").status == 200
        finally:
            load.stop.set()
            fleet.stop()
        worker.result()
    assert load.failed == []
