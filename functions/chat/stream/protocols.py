"""Tell the three protocols of the chat route apart, by the body and by the Accept header."""

import json
from typing import Any, Final

from fastapi import Request

from chat.schemas import ChatRequest
from chat.stream.ag_ui import AgUiRequest
from chat.stream.ai_sdk import AiSdkRequest
from chat.stream.asked import Asked
from chat.stream.encoding import MEDIA_TYPE
from chat.stream.sse import SseEncoder
from taskchat.conversations.turns import Request as TurnRequest
from taskchat.errors import InvalidInput
from taskchat.http.input import check_value, read_body
from taskchat.http.middleware import JSON, require_json

MAX_CLIENT_LIST: Final = 2**20
"""Bytes of a body that has the client's whole list of messages: 1 MiB. Every other body has 32 KiB at most."""

_LIST: Final = b'"messages"'


async def read_asked(request: Request, user_id: str) -> Asked:
    """Return what the request asks for. Raises UnsupportedMediaType, BodyTooLarge, NotJson or InvalidInput."""
    require_json(request.headers)
    key = _idempotency_key(request)
    if _LIST in (raw := await request.body()):
        body = _parse(raw)
        if "threadId" in body and "messages" in body:
            return check_value(AgUiRequest, body).asked(user_id)
        if "messages" in body and "message" not in body:
            return check_value(AiSdkRequest, body).asked(user_id)
    checked = await read_body(request, ChatRequest)
    turn = TurnRequest(checked.message, checked.conversation_id, checked.timezone)
    return Asked(key, turn, SseEncoder if _prefers_events(request) else None)


def _parse(raw: bytes) -> dict[str, Any]:
    """Return the members of a JSON object, or none for another text, which is refused as any body is.

    Half an emoji passes here: in an old message of the client's list it must not end the conversation.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _prefers_events(request: Request) -> bool:
    """Tell if the client names server-sent events, with a higher weight than JSON."""
    weights = dict(map(_weight, ",".join(request.headers.getlist("accept")).split(",")))
    return weights.get(MEDIA_TYPE, 0.0) > weights.get(JSON, 0.0)


def _weight(choice: str) -> tuple[str, float]:
    """Return a media type of an Accept header with its weight (RFC 9110), 0 for a weight that cannot be read."""
    kind, *parameters = (part.strip().lower() for part in choice.split(";"))
    weights = [parameter.removeprefix("q=") for parameter in parameters if parameter.startswith("q=")]
    try:
        return kind, float(weights[0]) if weights else 1.0
    except ValueError:
        return kind, 0.0


def _idempotency_key(request: Request) -> str | None:
    keys = request.headers.getlist("idempotency-key")
    if len(keys) > 1 or any(not 1 <= len(key) <= 255 or any(not "!" <= c <= "~" for c in key) for key in keys):
        raise InvalidInput([{"field": "Idempotency-Key", "message": "1 to 255 visible ASCII characters, once"}])
    return keys[0] if keys else None
