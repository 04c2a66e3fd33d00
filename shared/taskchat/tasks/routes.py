"""Serve the person's tasks without the model: the list as the tool gives it. A route here may only read.

The chat function mounts the router under `/api/{user_id}`. The MCP function must not import it: it has no FastAPI.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from taskchat.cursor import MAX_CURSOR, BadCursor
from taskchat.errors import InvalidInput
from taskchat.http.person import Caller
from taskchat.tasks import queries as tasks
from taskchat.tasks.due import BadDate, Window
from taskchat.timezones import TimezoneName

MAX_LIMIT: Final = 100

_EXAMPLE: Final = {
    "tasks": [
        {
            "id": 1,
            "title": "See the dentist",
            "description": "",
            "completed": False,
            "due": "2026-11-27T09:00+01:00[Europe/Paris]",
            "weekday": "Friday",
            "created_at": "2026-11-23T08:00:00.000000Z",
            "updated_at": "2026-11-23T08:00:00.000000Z",
        }
    ],
    "next_cursor": "WyIyMDI2LTExLTI3IixudWxsLDFd",
}
router: Final = APIRouter()


class TaskQuery(BaseModel):
    """The parameters of a list of tasks."""

    model_config = ConfigDict(extra="forbid")

    status: tasks.Status = "all"
    due: str | None = Field(
        default=None,
        description="overdue, today, this_week, a day, or two days with a slash: 2026-11-23/2026-11-29. The days count,"
        " and .. leaves an end open.",
    )
    cursor: str | None = Field(default=None, max_length=MAX_CURSOR, description="next_cursor of the page before")
    limit: int = Field(default=tasks.PAGE_SIZE, ge=1, le=MAX_LIMIT, description="Tasks on a page, at most")
    timezone: TimezoneName = Field(default="UTC", description="IANA name, for words such as today")


@router.get(
    "/tasks",
    summary="List tasks",
    responses={200: {"description": "A page of tasks.", "content": {"application/json": {"example": _EXAMPLE}}}},
)
async def list_tasks(caller: Caller, query: Annotated[TaskQuery, Query()]) -> tasks.TaskPage:
    """List the caller's tasks by their dates, a page at a time. A task without a date comes last."""
    with _naming("due"):
        window = None if query.due is None else Window.parse(query.due, datetime.now(UTC), query.timezone)
    with _naming("cursor"):
        after = tasks.Place.parse(query.cursor)
    with caller.transaction() as session:
        return tasks.read_page(session, caller.user_id, query.status, window, after, query.limit)


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Raise InvalidInput with the field's name for a text in it that is no window and no cursor."""
    try:
        yield
    except (BadDate, BadCursor) as error:
        raise InvalidInput([{"field": field, "message": str(error)}]) from None
