"""Errors as an HTTP caller sees them: problem+json (RFC 9457), for both doors."""

from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskchat.errors import MethodNotAllowed, NotFound, TaskchatError
from taskchat.logs import to_problem

MEDIA_TYPE: Final = "application/problem+json"


def problem_response(error: TaskchatError) -> JSONResponse:
    """The error as its caller is told: fixed words, and nothing of the exception or the request."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content = {"type": f"urn:taskchat:problem:{error.slug}", "title": error.title, "status": error.status}
    if error.detail:
        content["detail"] = error.detail
    return JSONResponse(content | error.members, error.status, headers, MEDIA_TYPE)


async def tell_routing(_request: Request, error: Exception) -> Response:
    """The answer to a path or a method that there is not, for an app's exception handlers."""
    known = isinstance(error, HTTPException) and error.status_code == 405
    response = problem_response(MethodNotAllowed() if known else NotFound())
    response.headers.update(getattr(error, "headers", None) or {})  # Allow, with a 405
    return response


class ErrorBoundary:
    """Answers every exception: an expected one in its own words, any other with a plain 500.

    Of the latter it logs the kind and the place, never the text, which may be a person's.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises what was raised after the response had begun."""
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            await problem_response(to_problem(error))(scope, receive, send)
