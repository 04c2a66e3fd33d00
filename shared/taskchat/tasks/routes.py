"""Serve the person's tasks without the model: the list as the tool gives it. A route here may only read.

The chat function mounts the router under `/api/{user_id}`. The MCP function must not import it: it has no FastAPI.
"""

from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import APIRouter, Query
from pydantic import Field

from taskchat.errors import InvalidInput
from taskchat.http.input import PageQuery
from taskchat.http.person import Caller
from taskchat.tasks import queries as tasks
from taskchat.tasks.due import BadDate, Window
from taskchat.timezones import TimezoneName

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
router: Final = APIRouter(tags=["tasks"])


class TaskQuery(PageQuery):
    """The query of a list of tasks."""

    status: tasks.Status = Field(default="all", description="Which tasks to list.", examples=["pending"])
    due: str | None = Field(
        default=None,
        description="overdue, today, this_week, a day, or two days with a slash: 2026-11-23/2026-11-29. The days count,"
        " and .. leaves an end open.",
        examples=["this_week"],
    )
    timezone: TimezoneName = Field(
        default="UTC", description="IANA name, for words such as today", examples=["Europe/Paris"]
    )


@router.get(
    "/tasks",
    summary="List tasks",
    responses={200: {"description": "A page of tasks.", "content": {"application/json": {"example": _EXAMPLE}}}},
)
async def list_tasks(caller: Caller, query: Annotated[TaskQuery, Query()]) -> tasks.TaskPage:
    """List the caller's tasks by their dates, a page at a time. A task without a date comes last."""
    window = None if query.due is None else _parse_window(query.due, query.timezone)
    after = tasks.Place.parse(query.cursor)
    with caller.transaction() as session:
        return tasks.read_page(session, caller.user_id, query.status, window, after, query.limit)


def _parse_window(text: str, timezone: str) -> Window:
    """Return the window, as it is now in the zone. Raises InvalidInput."""
    try:
        return Window.parse(text, datetime.now(UTC), timezone)
    except BadDate as error:
        raise InvalidInput([{"field": "due", "message": str(error)}]) from None
