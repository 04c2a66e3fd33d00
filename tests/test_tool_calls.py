"""Check that every tool call takes effect and is recorded in one transaction."""

import asyncio
from collections.abc import Awaitable
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event

from taskchat.toolcalls.call import CallContext, calling
from tests.conftest import run
from tests.domain import example
from tests.example_domain import Rows
from tests.tool_calls import acall

pytestmark = pytest.mark.usefixtures("environment")


@pytest.fixture
def user_id() -> str:
    """A person new to the service."""
    return uuid4().hex


def test_effect_and_record_are_one_commit(user_id: str, rows: Rows) -> None:
    """Row and record of a call bear the id of the same Postgres transaction."""
    run(acall(user_id, **example.call_add("milk")))
    found = rows.execute(
        "select t.xmin::text = c.xmin::text as same"  # noqa: S608
        f" from {example.table} t, tool_call c where t.user_id = %s and c.user_id = %s",
        [user_id, user_id],
    ).fetchall()
    assert found == [{"same": True}]


def test_without_a_record_there_is_no_effect(user_id: str, rows: Rows) -> None:
    """When the record cannot be written, nothing else is."""
    from chat.app import process

    call = CallContext(user_id, "chat", conversation_id=uuid4(), turn_id=uuid4(), call_id="the same twice")

    async def twice() -> None:
        with calling(call):
            await process.tools.call_tool(**example.call_add("first"))
            await process.tools.call_tool(**example.call_add("second"))

    with pytest.raises(Exception, match="tool_call_pkey"):
        run(twice())
    assert example.rows_of(rows, user_id) == [example.row("first")]


def test_nothing_gives_way_inside_a_transaction(user_id: str) -> None:
    """Calls that run at once in one process never hold two transactions open, nor one across another's turn."""
    from chat.app import process

    log: list[str] = []
    run(acall(user_id, **example.call_list()))
    event.listen(process.database.engine, "begin", lambda _connection: log.append("begin"))
    event.listen(process.database.engine, "commit", lambda _connection: log.append("commit"))

    async def tick() -> None:
        for _ in range(50):
            log.append(".")
            await asyncio.sleep(0)

    async def all_at_once() -> None:
        calls: list[Awaitable[Any]] = [acall(user_id, **example.call_list()) for _ in range(5)]
        await asyncio.gather(tick(), *calls)

    run(all_at_once())
    begun = [index for index, entry in enumerate(log) if entry == "begin"]
    assert len(begun) == 5
    assert all(log[index + 1] == "commit" for index in begun)
