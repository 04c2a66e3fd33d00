"""Errors of the MCP library in fixed words: it quotes what it was sent, and the texts of exceptions.

What the protocol says stays JSON-RPC; what HTTP says is problem+json, as at the chat API.
"""

import json
from collections.abc import MutableMapping
from typing import Any, Final

from mcp_types import MISSING_REQUIRED_CLIENT_CAPABILITY, UNSUPPORTED_PROTOCOL_VERSION
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskchat.errors import NotAcceptable, TaskchatError, Unauthenticated
from taskchat.http.problems import MEDIA_TYPE, problem_response

_TOLD: Final = frozenset({UNSUPPORTED_PROTOCOL_VERSION, MISSING_REQUIRED_CLIENT_CAPABILITY})
"""Errors whose data clients need, to go on in another way."""

_PROBLEMS: Final[dict[int, type[TaskchatError]]] = {kind.status: kind for kind in (Unauthenticated, NotAcceptable)}
"""Statuses that the library answers before the protocol begins."""


class PlainErrors:
    """Cuts the errors in JSON-RPC answers down to what does not depend on the request, and words HTTP's as ours."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        started: Message = {}
        body = b""

        async def plain(message: Message) -> None:
            nonlocal started, body
            if message["type"] == "http.response.start":
                started = message
                return
            body += message.get("body", b"")
            if not message.get("more_body", False):
                content = _plain(started["status"], body)
                await send(_headed(started, content))
                await send({"type": "http.response.body", "body": content})

        await self._app(scope, receive, plain if scope["type"] == "http" else send)


def _headed(started: MutableMapping[str, Any], body: bytes) -> MutableMapping[str, Any]:
    """The answer's beginning, true of this body."""
    headers = MutableHeaders(scope=started)
    headers["content-length"] = str(len(body))
    if started["status"] in _PROBLEMS:
        headers["content-type"] = MEDIA_TYPE
    headers.setdefault("content-type", "text/plain; charset=utf-8")  # or Mangum would call it JSON
    return started


def _plain(status: int, body: bytes) -> bytes:
    """The body with the library's own words alone: they come before a colon, and behind it what it quotes."""
    if problem := _PROBLEMS.get(status):
        return bytes(problem_response(problem()).body)
    if b'"error"' not in body:
        return body
    answer = json.loads(body)
    if not isinstance(error := answer.get("error"), dict):
        return body
    error["message"] = error["message"].partition(":")[0]
    if error["code"] not in _TOLD:
        error.pop("data", None)
    return json.dumps(answer, separators=(",", ":")).encode()
