"""Every statement on tasks finds its rows by the owner's index, and reads no more than it needs."""

import re
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from dev.postgres import Postgres
from taskchat import cursor, tasks
from taskchat.tasks.models import DUE_AT, DUE_ON
from testing import plans
from testing.plans import Recorder
from tests.conftest import Person
from tests.large_tables import Executed, indexes, named
from tests.large_tables import faults as faults_of
from tests.test_mcp_endpoint import McpClient

INDEXES = {
    "queries._INSERT": set(),
    "queries._PAGE": {"task_due_idx"},
    "queries._PAGE_BY_STATE": {"task_state_idx"},
    "queries._PAGE_IN_WINDOW": {"task_due_idx"},
    "queries._PAGE_IN_WINDOW_BY_STATE": {"task_state_idx", "task_due_idx"},  # of a short window, any
    "queries._DELETE": {"task_pkey"},
    "update task": {"task_pkey"},
}
"""The indexes that each statement may use."""

NO_PLAN = {
    "queries._UPDATE": "is what `update task` is built on, column by column",
    "queries._FIRST": "is what the pages are built on",
}

BESIDE = 13 * 25
"""Rows that a window of a week may discard. An instant of another zone may belong to a window three days from its own
day, so the rows of these days are read. The busy user has at most 25 tasks on a day."""


@pytest.fixture(scope="module")
def database_url(grown: Postgres, recorder: Recorder) -> str:
    """Give the URL of the server with large tables."""
    return grown.app_url


def use_every_tool(person: Person) -> None:
    """Use each tool on one task. List from three places, and in every kind of window."""
    client = McpClient(person.mcp_token)
    task = client.do("add_task", title="buy salt", due="2026-11-27T09:00")["id"]
    today = datetime.now(UTC).date().isoformat()
    for status in ("all", "pending", "completed"):
        for place in (None, cursor.write(today, None, 1), cursor.write(None, None, 5_000)):
            client.do("list_tasks", status=status, cursor=place)
        for window in ("overdue", "today", "this_week", f"2026-01-01/{today}", "../.."):
            client.do("list_tasks", status=status, due=window)
        client.do("list_tasks", status=status, due="../..", cursor=cursor.write(today, None, 1))
    client.do("complete_task", task_id=task)
    client.do("update_task", task_id=task, title="buy pepper")
    client.do("update_task", task_id=task, description="soon", due="none")
    client.do("delete_task", task_id=task)


def slow(executed: Executed, recorder: Recorder) -> dict[str, list[str]]:
    """Return the faults by statement, without the rows of the days beside a window."""
    found = {
        name: [fault for fault in faults if "WINDOW" not in name or not _is_beside(fault)]
        for name, faults in faults_of(executed, recorder).items()
    }
    return {name: faults for name, faults in found.items() if faults}


def _is_beside(fault: str) -> bool:
    found = re.fullmatch(r"(\d+) rows of \w+ are read and discarded", fault)
    return found is not None and int(found[1]) <= BESIDE


def test_every_statement_stays_on_its_index(busy: Person, recorder: Recorder) -> None:
    """The user with ten thousand tasks uses every tool."""
    recorder.skip()
    with plans.naming() as names:
        use_every_tool(busy)
    executed = named(recorder.read(), names)
    assert slow(executed, recorder) == {}
    used = indexes(executed)
    assert {name for name in INDEXES if not used[name] <= INDEXES[name]} == set()


def test_every_statement_is_known() -> None:
    """A new statement must run here, or be listed with the reason why it has no plan."""
    names = {name for name, _ in plans.statements_of(tasks)}
    assert names == {name for name in {*INDEXES, *NO_PLAN} if "." in name}


BROKEN = {
    "an index is gone": (
        "drop index task_state_idx",
        f"create index task_state_idx on task (user_id, completed, {DUE_ON}, {DUE_AT}, id)",
        {"queries._PAGE_BY_STATE", "queries._PAGE_IN_WINDOW_BY_STATE"},
    ),
    "the primary key is gone": (
        "alter table task drop constraint task_pkey",
        "alter table task add primary key (user_id, id)",
        {"queries._DELETE", "update task"},
    ),
}


@pytest.mark.parametrize("change", BROKEN)
def test_a_statement_that_leaves_its_index_is_noticed(
    change: str, busy: Person, grown: Postgres, superuser: psycopg.Connection[Any]
) -> None:
    """The check can fail: it names exactly the statements that would get slower."""
    breaking, mending, expected = BROKEN[change]
    superuser.execute(breaking.encode())
    try:
        recorder = Recorder(grown)
        with plans.naming() as names:
            use_every_tool(busy)
        assert set(slow(named(recorder.read(), names), recorder)) == expected
    finally:
        superuser.execute(mending.encode())
