"""Let a person take everything that is stored of them along, and have it erased."""

from typing import Annotated, Any, Final, Literal

from aws_lambda_powertools import Logger
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from chat.openapi import ERASURE_REQUEST, ERASURE_RESPONSES, EXPORT_RESPONSES
from taskchat import deadline
from taskchat.errors import ConfirmationRequired
from taskchat.http.gateway import MARGIN, MAX_SECONDS
from taskchat.http.input import NoQuery, PageQuery
from taskchat.http.middleware import JSON
from taskchat.http.person import Caller, Person
from taskchat.logs import UPKEEP
from taskchat.personal_data import export
from taskchat.personal_data.erasure import Erasure, end_leases

CONFIRMATION: Final = "erase"
"""Value of the header Confirm. No link, form or mistaken request can send it."""

router: Final = APIRouter(tags=["personal data"])
logger = Logger()


class ExportQuery(PageQuery):
    """The query of an export."""

    limit: int = Field(default=export.MAX_ROWS, ge=1, le=export.MAX_ROWS, description="Rows on the page at most.")


class ExportPage(BaseModel):
    """Hold a page of an export. docs/export.schema.json describes the rows of each table."""

    version: Literal["taskchat.export/1"]
    user_id: str
    tables: dict[str, list[dict[str, Any]]] = Field(description="The page's rows of each table, in a fixed order.")
    next_cursor: str | None = Field(description="Null on the last page.")


@router.get("/export", response_model=ExportPage, summary="Export a page of data", responses=EXPORT_RESPONSES)
async def export_data(caller: Caller, query: Annotated[ExportQuery, Query()]) -> Response:
    """Return a page of everything that is stored of the person: at most 1,000 rows and 1 MiB, and at least one row."""
    with caller.transaction() as session:
        page = export.read_page(session, caller.user_id, query.cursor, query.limit)
    return Response(page, media_type=JSON)


@router.delete(
    "", status_code=204, summary="Erase all data", responses=ERASURE_RESPONSES, openapi_extra=ERASURE_REQUEST
)
async def erase_data(
    caller: Caller,
    request: Request,
    _query: NoQuery,
) -> None:
    """Erase everything that is stored of the person. It cannot be undone.

    Of the tool calls an audit keeps day, entry point, tool and outcome, and nothing that leads to the person. A turn
    that is running can write nothing any more. After 503 or 504, the same request goes on.
    """
    if request.headers.getlist("confirm") != [CONFIRMATION]:
        raise ConfirmationRequired
    with deadline.within(min(deadline.remaining(), MAX_SECONDS - MARGIN)):
        await _erase(caller)


async def _erase(person: Person) -> None:
    with person.transaction() as session:
        end_leases(session, person.user_id)
    erasure = Erasure(person.process.database, person.user_id, person.process.toolset.tool_names)
    try:
        await erasure.run()
    finally:  # neither the person nor the pseudonym: a line with either would tie the erased calls to a person
        logger.info("erased", extra={"schema": UPKEEP, "rows": dict(erasure.rows)})
