"""Read what a request asks for, in the protocol that its body and its Accept header speak."""

from dataclasses import dataclass
from typing import Final

from fastapi import Request

from chat.schemas import ChatRequest
from chat.stream.response import EVENT_STREAM, Encoder
from chat.stream.sse import NativeEncoder
from taskchat.conversations.turns import Request as TurnRequest
from taskchat.errors import InvalidInput
from taskchat.http.input import read_body

MAX_KEY: Final = 255


@dataclass(frozen=True)
class Asked:
    """Holds a request for a turn."""

    key: str | None
    """The idempotency key."""
    request: TurnRequest
    encoder: Encoder | None
    """Writes the events, or None for the JSON answer."""


async def read_asked(request: Request, user_id: str) -> Asked:
    """Return what the request asks for. Raises UnsupportedMediaType, BodyTooLarge, NotJson or InvalidInput."""
    key = _idempotency_key(request)
    body = await read_body(request, ChatRequest)
    encoder = NativeEncoder() if accepts_events(request.headers.getlist("accept")) else None
    return Asked(key, TurnRequest(body.message, body.conversation_id, body.timezone), encoder)


def accepts_events(accept: list[str]) -> bool:
    """Tell if the client names server-sent events, and does not like JSON as much."""
    weights = dict(map(_weight, ",".join(accept).split(",")))
    events = weights.get(EVENT_STREAM, 0.0)
    return events > 0 and events > weights.get("application/json", 0.0)


def _weight(choice: str) -> tuple[str, float]:
    """Return a media type of an Accept header with its weight (RFC 9110), 0 for one that cannot be read."""
    kind, *parameters = (part.strip().lower() for part in choice.split(";"))
    weights = [parameter.removeprefix("q=") for parameter in parameters if parameter.startswith("q=")]
    try:
        return kind, float(weights[0]) if weights else 1.0
    except ValueError:
        return kind, 0.0


def check_key(keys: list[str], field: str) -> str | None:
    """Return the only key, or None if there is none. Raises InvalidInput that names the field."""
    if len(keys) > 1 or any(not 1 <= len(key) <= MAX_KEY or any(not "!" <= c <= "~" for c in key) for key in keys):
        raise InvalidInput([{"field": field, "message": "1 to 255 visible ASCII characters, once"}])
    return keys[0] if keys else None


def _idempotency_key(request: Request) -> str | None:
    return check_key(request.headers.getlist("idempotency-key"), "Idempotency-Key")
