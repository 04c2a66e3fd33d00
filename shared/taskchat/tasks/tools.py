"""The five tools. The agent calls them in this process, MCP clients over HTTP.

The docstring of a tool is its description for the model. The server resolves `user_id`, and no schema has it: a call
that sends one is refused. With `reader` or `writer`, a tool names the scope that it needs.
"""

from typing import Annotated, Any, Final

from fastmcp.dependencies import Depends
from fastmcp.tools import tool
from pydantic import Field, StringConstraints

from taskchat.errors import ToolFailure
from taskchat.tasks import queries as tasks
from taskchat.tasks.instructions import INSTRUCTIONS
from taskchat.text import plain_text
from taskchat.toolcalls.call import get_session, require_scope
from taskchat.toolcalls.toolset import Toolset

READ: Final = "tasks:read"
WRITE: Final = "tasks:write"
"""Scopes of an MCP client's token. Neither includes the other."""

reader: Final = require_scope(READ)
writer: Final = require_scope(WRITE)

MAX_TITLE: Final = 200
MAX_DESCRIPTION: Final = 2_000
MAX_ID: Final = 2**63 - 1  # bigint

Title = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_TITLE),
    plain_text(MAX_TITLE),
    Field(description="What is to be done, in a few words"),
]
Description = Annotated[
    str,
    StringConstraints(strip_whitespace=True, max_length=MAX_DESCRIPTION),
    plain_text(MAX_DESCRIPTION),
    Field(description="Details, if there are any"),
]
# Strict: lenient parsing would take `true` for task 1, and "no" for false.
TaskId = Annotated[int, Field(strict=True, ge=1, le=MAX_ID, description="From list_tasks or add_task")]
Status = Annotated[tasks.Status, Field(description="Which tasks to list")]
Cursor = Annotated[int | None, Field(strict=True, ge=1, le=MAX_ID, description="next_cursor of the page before")]
Completed = Annotated[bool | None, Field(strict=True, description="false reopens a finished task")]


def _hints(*, read_only: bool = False, destructive: bool = False, idempotent: bool = False) -> dict[str, Any]:
    """Return MCP's annotations. No tool reaches beyond the caller's own tasks."""
    return {
        "readOnlyHint": read_only,
        "destructiveHint": destructive,
        "idempotentHint": idempotent,
        "openWorldHint": False,
    }


# In the event loop, not in threads: the process has one connection.
@tool(annotations=_hints(), run_in_thread=False)
def add_task(
    title: Title,
    description: Description = "",
    user_id: str = Depends(writer),
) -> tasks.TaskView:
    """Add one task to the list. To add several, call once for each."""
    return tasks.add(get_session(), user_id, title, description)


@tool(annotations=_hints(read_only=True, idempotent=True), run_in_thread=False)
def list_tasks(
    status: Status = "all",
    cursor: Cursor = None,
    user_id: str = Depends(reader),
) -> tasks.TaskPage:
    """List tasks in order of id, a page at a time. Use it to find the id of a task the person names by its words."""
    return tasks.read_page(get_session(), user_id, status, cursor)


@tool(annotations=_hints(idempotent=True), run_in_thread=False)
def complete_task(
    task_id: TaskId,
    user_id: str = Depends(writer),
) -> tasks.TaskView:
    """Mark one task as done. It stays on the list as completed."""
    return tasks.change(get_session(), user_id, task_id, completed=True)


@tool(annotations=_hints(destructive=True), run_in_thread=False)
def delete_task(
    task_id: TaskId,
    user_id: str = Depends(writer),
) -> tasks.TaskView:
    """Delete one task for good. Only when the person wants it gone, not when it is done."""
    return tasks.remove(get_session(), user_id, task_id)


@tool(annotations=_hints(destructive=True, idempotent=True), run_in_thread=False)
def update_task(
    task_id: TaskId,
    title: Title | None = None,
    description: Description | None = None,
    completed: Completed = None,
    user_id: str = Depends(writer),
) -> tasks.TaskView:
    """Change the title or description of one task, or reopen it. What is left out stays as it is."""
    values = {"title": title, "description": description, "completed": completed}
    changes = {name: value for name, value in values.items() if value is not None}
    if not changes:
        raise ToolFailure("Say what to change: title, description or completed.")
    return tasks.change(get_session(), user_id, task_id, **changes)


toolset: Final = Toolset(
    name="taskchat",
    summary="Manage the caller's own task list.",
    instructions=INSTRUCTIONS,
    tools=(add_task, list_tasks, complete_task, delete_task, update_task),
    scopes=(READ, WRITE),
    destructive=frozenset({"delete_task"}),
)
