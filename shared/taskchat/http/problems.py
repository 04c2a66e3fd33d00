"""Turn errors into problem+json responses (RFC 9457), in both apps."""

from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match

from taskchat.errors import MethodNotAllowed, NotFound, TaskchatError

MEDIA_TYPE: Final = "application/problem+json"

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def problem_response(error: TaskchatError) -> JSONResponse:
    """Return the response to an error: fixed texts, and nothing of the exception or the request."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(problem_content(error), error.status, headers, MEDIA_TYPE)


def problem_content(error: TaskchatError) -> dict[str, Any]:
    """Return the members of an error's problem."""
    detail = {"detail": error.detail} if error.detail else {}
    title: dict[str, Any] = {"type": type_of(type(error)), "title": error.title, "status": error.status}
    return title | detail | error.members


def type_of(error: type[TaskchatError]) -> str:
    """Return the problem type of an error. It never changes."""
    return f"urn:taskchat:problem:{error.slug}"


async def answer_routing_error(request: Request, error: Exception) -> Response:
    """Return the response to an unknown path or method. It is an exception handler of both apps."""
    if not isinstance(error, HTTPException) or error.status_code != 405:
        return problem_response(NotFound())
    response = problem_response(MethodNotAllowed())
    response.headers["Allow"] = ", ".join(_allowed_methods(request))
    return response


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of the request's path. Each has a route of its own, and a router names those of one only."""
    routes: list[BaseRoute] = request.app.routes
    scopes = {method: {**request.scope, "method": method} for method in _METHODS}
    return [name for name, scope in scopes.items() if any(route.matches(scope)[0] is Match.FULL for route in routes)]
