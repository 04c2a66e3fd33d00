"""Replace the error texts of the MCP library, which quote requests and exceptions, with fixed ones.

Errors of the protocol stay JSON-RPC. Errors of HTTP become problem+json, as at the chat API.
"""

import json
from typing import Final

from mcp_types import MISSING_REQUIRED_CLIENT_CAPABILITY, UNSUPPORTED_PROTOCOL_VERSION
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskchat.errors import NotAcceptable, TaskchatError, Unauthenticated
from taskchat.http.problems import MEDIA_TYPE, problem_response

_KEEPS_DATA: Final = frozenset({UNSUPPORTED_PROTOCOL_VERSION, MISSING_REQUIRED_CLIENT_CAPABILITY})
"""Errors whose data a client needs to try again in another way."""

_PROBLEMS: Final[dict[int, type[TaskchatError]]] = {kind.status: kind for kind in (Unauthenticated, NotAcceptable)}
"""Statuses that the library answers before the protocol begins."""


def filter_errors(app: ASGIApp) -> ASGIApp:
    """Return the app with a filter that sends a response once its body is complete."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        messages: list[Message] = []

        async def send_filtered(message: Message) -> None:
            messages.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                for filtered in _filter(*messages):
                    await send(filtered)

        await app(scope, receive, send_filtered if scope["type"] == "http" else send)

    return serve


def _filter(start: Message, *parts: Message) -> tuple[Message, Message]:
    """Return the two messages of the filtered response."""
    body = _filter_body(start["status"], b"".join(part.get("body", b"") for part in parts))
    headers = MutableHeaders(scope=start)
    headers["content-length"] = str(len(body))
    if start["status"] in _PROBLEMS:
        headers["content-type"] = MEDIA_TYPE
    headers.setdefault("content-type", "text/plain; charset=utf-8")  # Mangum would call it JSON
    return start, {"type": "http.response.body", "body": body}


def _filter_body(status: int, body: bytes) -> bytes:
    """Return the body without quoted texts: they follow a colon in the library's messages."""
    if problem := _PROBLEMS.get(status):
        return bytes(problem_response(problem()).body)
    if b'"error"' not in body:
        return body
    answer = json.loads(body)
    if not isinstance(error := answer.get("error"), dict):
        return body
    error["message"] = error["message"].partition(":")[0]
    if error["code"] not in _KEEPS_DATA:
        error.pop("data", None)
    return json.dumps(answer, separators=(",", ":")).encode()
