"""The statements of docs/neon.md work on a plain Postgres, and its figures are the code's."""

import re
from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest

from dev.postgres import Postgres
from migrations.roles import LIMITS
from operations.checks.settings import MIN_BITS, bits
from taskchat.database import engine
from testing import capacity
from tests.conftest import ROOT, Person, reset_processes
from tests.domain import example
from tests.test_runbook import slug

PAGE = (ROOT / "docs/neon.md").read_text()
STATEMENTS = [block.strip() for block in re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)]
ADD = example.add("buy milk")


@pytest.fixture
def database_url(server: Postgres) -> str:
    """Give the direct URL: no test here needs a pooler."""
    return server.app_url


@pytest.fixture
def owner(server: Postgres) -> Iterator[psycopg.Connection]:
    """Connect as the owner, as a reader of the page does with psql."""
    with psycopg.connect(server.owner_url, autocommit=True) as connection:
        yield connection


def test_the_role_of_the_page_is_bound_by_the_policies(server: Postgres, owner: psycopg.Connection) -> None:
    """The owner, who is no superuser, makes it, and it can log in with the changed password."""
    name = f"taskchat_app_{uuid4().hex}"
    make, look, change = (text.replace("taskchat_app", name) for text in STATEMENTS[:3])
    owner.execute(make.replace("'…'", "'first'").encode())
    bypassing = {row[0] for row in owner.execute(look.encode())}
    assert "postgres" in bypassing
    assert name not in bypassing
    owner.execute(change.replace("'…'", "'second'").encode())
    with psycopg.connect(f"postgresql://{name}:second@{server.host}:{server.port}/taskchat?sslmode=disable") as login:
        assert login.execute("show statement_timeout").fetchone() == ("5s",)
    owner.execute(f"drop role {name}".encode())


def test_the_pages_limits_of_the_role_are_those_of_make_migrate() -> None:
    """They stand in the statement that makes the role."""
    assert dict(re.findall(r"set (\w+_timeout) = '(\w+)'", STATEMENTS[0])) == LIMITS


def test_the_step_after_a_restore_ends_each_lease(alice: Person, server: Postgres) -> None:
    """A conversation that a turn held then takes the next message, and an older token is stale."""
    conversation = alice.say(ADD).json["conversation_id"]
    with psycopg.connect(server.superuser_url, autocommit=True) as rows:
        rows.execute("update conversation set turn_id = gen_random_uuid(), lease_until = now() + interval '1 hour'")
        assert alice.say(ADD, conversation).status == 409
        before = rows.execute("select fence from conversation where user_id = %s", [alice.id]).fetchone()
        rows.execute(STATEMENTS[3].encode())
        after = rows.execute("select fence from conversation where user_id = %s", [alice.id]).fetchone()
    assert before
    assert after == (before[0] + 1_000_000,)
    reset_processes()
    assert alice.say(ADD, conversation).status == 200


def test_the_figures_of_the_page_are_the_codes() -> None:
    """These are the waits, the age of a connection, the strength of a password, and the pooler's clients."""
    assert f"waits up to {engine.CONNECT_TIMEOUT:g} s for a connection" in PAGE.replace("\n", " ")
    assert f"after {engine.RECYCLE_AFTER} s" in PAGE
    assert f"less than {MIN_BITS} bits" in PAGE
    assert f"This one has {bits('0123456789abcdef' * 3):g}" in PAGE
    assert f"accepts {capacity.CLIENT_CONNECTIONS:,} clients" in PAGE


def test_each_link_to_a_section_leads_to_it() -> None:
    """The page links to entries of the runbook."""
    for page, anchor in re.findall(r"\]\(([\w-]+\.md)#([\w-]+)\)", PAGE):
        assert anchor in map(slug, re.findall(r"^#+ (.*)$", (ROOT / "docs" / page).read_text(), re.MULTILINE)), anchor
