"""Turn errors into problem+json responses (RFC 9457), in both apps."""

from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from taskchat.errors import MethodNotAllowed, NotFound, TaskchatError

MEDIA_TYPE: Final = "application/problem+json"


def problem_response(error: TaskchatError) -> JSONResponse:
    """Return the response to an error: fixed texts, and nothing of the exception or the request."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content = {"type": f"urn:taskchat:problem:{error.slug}", "title": error.title, "status": error.status}
    if error.detail:
        content["detail"] = error.detail
    return JSONResponse(content | error.members, error.status, headers, MEDIA_TYPE)


async def answer_routing_error(_request: Request, error: Exception) -> Response:
    """Return the response to an unknown path or method. It is an exception handler of both apps."""
    is_method = isinstance(error, HTTPException) and error.status_code == 405
    response = problem_response(MethodNotAllowed() if is_method else NotFound())
    response.headers.update(getattr(error, "headers", None) or {})  # Allow, with a 405
    return response
