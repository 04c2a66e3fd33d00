"""The five tools. The agent calls them in this process, MCP clients over HTTP.

The docstring of a tool is its description for the model. The server resolves `user_id`, and no schema has it: a call
that sends one is refused. With `reader` or `writer`, a tool names the scope that it needs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from fastmcp.dependencies import Depends
from fastmcp.tools import tool
from pydantic import Field, StringConstraints

from taskchat.cursor import MAX_CURSOR, BadCursor
from taskchat.errors import ToolFailure
from taskchat.tasks import queries as tasks
from taskchat.tasks.due import BadDate, Due, Window
from taskchat.tasks.instructions import INSTRUCTIONS
from taskchat.text import plain_text
from taskchat.toolcalls.call import current_call, get_session, require_scope
from taskchat.toolcalls.toolset import Toolset

READ: Final = "tasks:read"
WRITE: Final = "tasks:write"
"""Scopes of an MCP client's token. Neither includes the other."""

reader: Final = require_scope(READ)
writer: Final = require_scope(WRITE)

MAX_TITLE: Final = 200
MAX_DESCRIPTION: Final = 2_000
CLEARED: Final = "none"
"""The value of `due` that takes a task's date away."""

Title = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_TITLE),
    plain_text(MAX_TITLE),
    Field(description="What to do, in a few words"),
]
Description = Annotated[
    str,
    StringConstraints(strip_whitespace=True, max_length=MAX_DESCRIPTION),
    plain_text(MAX_DESCRIPTION),
    Field(description="Details, if any"),
]
# Strict: lenient parsing would take `true` for task 1, and "no" for false.
TaskId = Annotated[int, Field(strict=True, ge=1, le=tasks.MAX_ID, description="From list_tasks")]
Status = Annotated[tasks.Status, Field(description="Which tasks")]
Cursor = Annotated[str | None, Field(max_length=MAX_CURSOR, description="next_cursor of the page before")]
NewDue = Annotated[str | None, Field(description="2026-11-27, or 2026-11-27T09:00 in the person's time zone")]
ChangedDue = Annotated[str | None, Field(description="As in add_task; none clears it")]
ListedDue = Annotated[
    str | None, Field(description="overdue, today, this_week, 2026-11-27 or 2026-11-23/2026-11-29 (.. for an open end)")
]
Completed = Annotated[bool | None, Field(strict=True, description="false reopens a finished task")]


def _hints(*, read_only: bool = False, destructive: bool = False, idempotent: bool = False) -> dict[str, Any]:
    """Return MCP's annotations. No tool reaches beyond the caller's own tasks."""
    return {
        "readOnlyHint": read_only,
        "destructiveHint": destructive,
        "idempotentHint": idempotent,
        "openWorldHint": False,
    }


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Raise ToolFailure with the field's name for a text in it that is no date, no window and no cursor."""
    try:
        yield
    except (BadDate, BadCursor) as error:
        raise ToolFailure(f"Invalid arguments: {field}: {error}.") from None


def _parse_due(text: str) -> Due:
    """Return the day or the instant, in the person's time zone. Raises ToolFailure."""
    with _naming("due"):
        return Due.parse(text, _zone_of_caller())


def _parse_window(text: str) -> Window:
    """Return the window, as the person meant it when they wrote the message. Raises ToolFailure."""
    with _naming("due"):
        return Window.parse(text, current_call.get().said_at or datetime.now(UTC), _zone_of_caller())


def _zone_of_caller() -> str:
    return current_call.get().timezone or "UTC"


# In the event loop, not in threads: the process has one connection.
@tool(title="Add a task", annotations=_hints(), run_in_thread=False)
def add_task(
    title: Title,
    description: Description = "",
    due: NewDue = None,
    user_id: str = Depends(writer),
) -> tasks.TaskView:
    """Add one task. To add several, call once for each."""
    parsed = None if due is None else _parse_due(due)
    return tasks.add(get_session(), user_id, title, description, parsed)


@tool(title="List tasks", annotations=_hints(read_only=True, idempotent=True), run_in_thread=False)
def list_tasks(
    status: Status = "all",
    due: ListedDue = None,
    cursor: Cursor = None,
    user_id: str = Depends(reader),
) -> tasks.TaskPage:
    """List tasks by due and id, a page at a time."""
    window = None if due is None else _parse_window(due)
    with _naming("cursor"):
        after = tasks.Place.parse(cursor)
    return tasks.read_page(get_session(), user_id, status, window, after)


@tool(title="Complete a task", annotations=_hints(idempotent=True), run_in_thread=False)
def complete_task(
    task_id: TaskId,
    user_id: str = Depends(writer),
) -> tasks.ChangedTask:
    """Mark one task as done. It stays on the list as completed."""
    return tasks.change(get_session(), user_id, task_id, completed=True)


@tool(title="Delete a task", annotations=_hints(destructive=True, idempotent=True), run_in_thread=False)
def delete_task(
    task_id: TaskId,
    user_id: str = Depends(writer),
) -> tasks.ChangedTask:
    """Delete one task. Only when the person wants it gone, not when it is done."""
    return tasks.remove(get_session(), user_id, task_id)


@tool(title="Change a task", annotations=_hints(destructive=True, idempotent=True), run_in_thread=False)
def update_task(
    task_id: TaskId,
    title: Title | None = None,
    description: Description | None = None,
    completed: Completed = None,
    due: ChangedDue = None,
    user_id: str = Depends(writer),
) -> tasks.ChangedTask:
    """Change one task, or reopen it. What is left out stays as it is."""
    values = {"title": title, "description": description, "completed": completed}
    changes: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    if due is not None:
        changes |= tasks.columns_of(None if due == CLEARED else _parse_due(due))
    if not changes:
        raise ToolFailure("Say what to change: title, description, completed or due.")
    return tasks.change(get_session(), user_id, task_id, **changes)


toolset: Final = Toolset(
    name="taskchat",
    summary="Manage the caller's own task list.",
    instructions=INSTRUCTIONS,
    tools=(add_task, list_tasks, complete_task, delete_task, update_task),
    scopes=(READ, WRITE),
    destructive=frozenset({"delete_task"}),
)
