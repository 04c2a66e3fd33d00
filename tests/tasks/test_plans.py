"""Every statement on tasks finds its rows by the owner's index, and reads no more than it needs."""

from typing import Any

import psycopg
import pytest

from dev.postgres import Postgres
from taskchat import tasks
from testing import plans
from testing.plans import Recorder
from tests.conftest import Person
from tests.large_tables import faults, indexes, named
from tests.test_mcp_endpoint import McpClient

INDEXES = {
    "queries._INSERT": set(),
    "queries._PAGE": {"task_pkey"},
    "queries._PAGE_BY_STATE": {"task_completed_idx"},
    "queries._DELETE": {"task_pkey"},
    "update task": {"task_pkey"},
}
"""The indexes of each statement."""

NO_PLAN = {"queries._UPDATE": "is what `update task` is built on, column by column"}


@pytest.fixture(scope="module")
def database_url(grown: Postgres, recorder: Recorder) -> str:
    """Give the URL of the server with large tables."""
    return grown.app_url


def use_every_tool(person: Person) -> None:
    """Use each tool on one task, and list from the beginning, the middle and near the end."""
    client = McpClient(person.mcp_token)
    task = client.do("add_task", title="buy salt")["id"]
    for status in ("all", "pending", "completed"):
        for cursor in (None, task // 2, task - 100):
            client.do("list_tasks", status=status, cursor=cursor)
    client.do("complete_task", task_id=task)
    client.do("update_task", task_id=task, title="buy pepper")
    client.do("update_task", task_id=task, description="soon")
    client.do("delete_task", task_id=task)


def test_every_statement_stays_on_its_index(busy: Person, recorder: Recorder) -> None:
    """The user with ten thousand tasks uses every tool."""
    recorder.skip()
    with plans.naming() as names:
        use_every_tool(busy)
    executed = named(recorder.read(), names)
    assert faults(executed, recorder) == {}
    assert {name: used for name, used in indexes(executed).items() if name in INDEXES} == INDEXES


def test_every_statement_is_known() -> None:
    """A new statement must run here, or be listed with the reason why it has no plan."""
    names = {name for name, _ in plans.statements_of(tasks)}
    assert names == {name for name in {*INDEXES, *NO_PLAN} if "." in name}


BROKEN = {
    "an index is gone": (
        "drop index task_completed_idx",
        "create index task_completed_idx on task (user_id, completed, id)",
        {"queries._PAGE_BY_STATE"},
    ),
    "the primary key is gone": (
        "alter table task drop constraint task_pkey",
        "alter table task add primary key (user_id, id)",
        {"queries._PAGE"},
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
        assert set(faults(named(recorder.read(), names), recorder)) == expected
    finally:
        superuser.execute(mending.encode())
