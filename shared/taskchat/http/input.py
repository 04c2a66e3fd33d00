"""Read a request's body and query into checked models, and name the fields at fault without their values."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, TypeVar

from fastapi import Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from taskchat.cursor import MAX_CURSOR, BadCursor
from taskchat.errors import BodyTooLarge, InvalidInput, NotJson
from taskchat.http.middleware import MAX_BODY, require_json
from taskchat.http.problems import problem_response

MAX_ROWS: Final = 100
DEFAULT_ROWS: Final = 50
"""Rows on one page."""

_FROM_US: Final = "Value error, "
"""Pydantic puts this before the texts of our own checks."""

Model = TypeVar("Model", bound=BaseModel)


class PageQuery(BaseModel):
    """The query of a list that is read in pages. Another parameter is refused, so that a misspelt one is noticed."""

    model_config = ConfigDict(extra="forbid")

    cursor: Annotated[str, StringConstraints(max_length=MAX_CURSOR)] | None = Field(
        default=None, description="`next_cursor` of the page before. Left out for the first page."
    )
    limit: int = Field(default=DEFAULT_ROWS, ge=1, le=MAX_ROWS, description="Rows on the page at most.", examples=[20])


class _NoQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")


NoQuery = Annotated[_NoQuery, Query()]
"""The query of a route without parameters. Every parameter is refused, so that `?dry_run=1` deletes nothing."""


async def read_body(request: Request, model: type[Model]) -> Model:
    """Return the checked body. Raises UnsupportedMediaType, BodyTooLarge, NotJson or InvalidInput."""
    require_json(request.headers)
    raw = await request.body()
    if len(raw) > MAX_BODY:  # the chat route reads longer lists of messages
        raise BodyTooLarge
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        faults = _faults_of(error)
    if faults[0]["type"] == "json_invalid":
        raise NotJson
    raise _invalid_input((fault, fault["loc"]) for fault in faults)


def check_value(model: type[Model], value: Any) -> Model:
    """Return the checked value of a body that is parsed already. Raises InvalidInput."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = _faults_of(error)
    raise _invalid_input((fault, fault["loc"]) for fault in faults)


def _faults_of(error: ValidationError) -> list[ErrorDetails]:
    return error.errors(include_url=False, include_input=False, include_context=False)


async def answer_invalid_query(_request: Request, error: Exception) -> Response:
    """Return the response to a query that does not fit its model, or to a bad cursor: the exception handler for both.

    FastAPI's own handler would quote the values.
    """
    if isinstance(error, BadCursor):
        return problem_response(InvalidInput([{"field": "cursor", "message": str(error)}]))
    faults = error.errors() if isinstance(error, RequestValidationError) else ()
    return problem_response(_invalid_input((fault, fault["loc"][1:]) for fault in faults))  # loc[0] is "query"


def _invalid_input(faults: Iterable[tuple[Mapping[str, Any], tuple[int | str, ...]]]) -> InvalidInput:
    return InvalidInput(
        [{"field": _field(fault, place), "message": fault["msg"].removeprefix(_FROM_US)} for fault, place in faults]
    )


def _field(fault: Mapping[str, Any], place: tuple[int | str, ...]) -> str:
    """Return the field at fault. The name of an unknown field is the caller's text, and is not sent back.

    Every other name is a model's: no model has a dictionary with the caller's keys.
    """
    if fault["type"] == "extra_forbidden":
        return "unknown"
    return ".".join(map(str, place)) or "body"
