"""Provide a Postgres server with many users, and the plans of the statements that it executes: a pytest plugin."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from dev import postgres
from dev.postgres import Postgres
from dev.tokens import Issuer
from testing import people
from testing.plans import Plan, Recorder
from tests.conftest import Person, migrate

PEOPLE = 401
"""Twenty thousand messages, and the busy user's ten thousand."""

Executed = dict[str, list[Plan]]


@pytest.fixture(scope="session")
def grown() -> Iterator[Postgres]:
    """Run a server of its own, full of users."""
    with postgres.temporary() as running:
        done = migrate(running.owner_url, running.app_url)
        assert done.returncode == 0, done.stderr
        people.store(running.superuser_url, people.BUSY, PEOPLE)
        yield running


@pytest.fixture(scope="session")
def superuser(grown: Postgres) -> Iterator[psycopg.Connection[Any]]:
    """Connect to that server as its superuser."""
    with psycopg.connect(grown.superuser_url, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def recorder(grown: Postgres) -> Recorder:
    """Record that server's plans from now on."""
    return Recorder(grown)


@pytest.fixture
def busy(environment: None, issuer: Issuer) -> Person:
    """Return the user with ten thousand messages in one conversation, and ten thousand tasks."""
    return Person(people.user_id(people.BUSY), issuer)


@pytest.fixture
def usual(environment: None, issuer: Issuer) -> Person:
    """Return a user with a few conversations and tasks."""
    return Person(people.user_id(PEOPLE // 2), issuer)


def named(found: list[Plan], names: dict[str, str]) -> Executed:
    """Return the plans by the names of their statements. Those of foreign keys are Postgres's own."""
    result: Executed = defaultdict(list)
    for plan in found:
        own = plan.text.startswith(("SELECT 1 FROM ONLY", "DELETE FROM ONLY"))
        result["foreign key" if own else names.get(plan.text, plan.text)].append(plan)
    return result


def faults(executed: Executed, recorder: Recorder) -> dict[str, list[str]]:
    """Return the faults of the plans by statement."""
    found = {
        name: [f for plan in plans for f in plan.faults(recorder.first_columns)] for name, plans in executed.items()
    }
    return {name: faults for name, faults in found.items() if faults}


def indexes(executed: Executed) -> dict[str, set[str]]:
    """Return the indexes in use, by statement."""
    return {name: set().union(*(plan.indexes for plan in plans)) for name, plans in executed.items()}
