"""Define what both wire formats share: errors, ids, text parts, server-sent events."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

from starlette.responses import Response

from .conversation import Answer, Conversation, Json, dump


class JsonResponse(Response):
    """A JSON response in ASCII."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dump(content).encode()


@dataclass(eq=False)
class ApiError(Exception):
    """Raised for a request that the API answers with an error status and an `error` object."""

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None

    def response(self, headers: dict[str, str] | None = None) -> Response:
        """Return the error as the API would send it."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return JsonResponse({"error": error}, self.status, headers)


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of one request, as `prompt_cache` estimates them."""

    input: int
    cached: int
    output: int


class Kind(Enum):
    """The kinds of events that faults tell apart."""

    TEXT = auto()
    """A piece of a text or of a refusal."""
    ARGUMENTS = auto()
    """A piece of a call's arguments."""
    END = auto()
    """An event without which a client must take the stream for a broken one, or a later one."""
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Hold one server-sent event."""

    data: bytes
    kind: Kind = Kind.OTHER

    @property
    def is_piece(self) -> bool:
        """Return whether it brings a part of what the model writes."""
        return self.kind in (Kind.TEXT, Kind.ARGUMENTS)


Split = Callable[[str], list[str]]
"""Returns the pieces in which a text is streamed."""


class WireFormat(Protocol):
    """A wire format. The modules `responses` and `chat_completions` implement it."""

    def read(self, body: Json) -> Conversation:
        """Read the request's body. Raises ApiError where the API would refuse it."""

    def prompt(self, body: Json) -> Iterator[Any]:
        """Yield the pieces of the prompt, in the order in which a provider caches them."""

    def write(self, answer: Answer, body: Json, usage: Usage) -> Json:
        """Return the response's body."""

    def stream(self, response: Json, body: Json, split: Split) -> Iterator[Chunk]:
        """Yield the same response as server-sent events, the last ones with the usage."""


def new_id(prefix: str) -> str:
    """Return a new id, such as `resp_…`."""
    return f"{prefix}_{secrets.token_hex(24)}"


def sse(data: Json, event: str | None = None, kind: Kind = Kind.OTHER) -> Chunk:
    """Return one server-sent event."""
    head = f"event: {event}\n" if event else ""
    return Chunk(f"{head}data: {dump(data)}\n\n".encode(), kind)


def required(holder: Json, name: str, kind: type | tuple[type, ...], where: str = "") -> Any:
    """Return the field. Raises ApiError, which names the field, if it is missing or has another type."""
    param = f"{where}.{name}" if where else name
    if name not in holder:
        raise ApiError(400, f"The parameter '{param}' is missing.", code="missing_required_parameter", param=param)
    if not isinstance(holder[name], kind):
        raise ApiError(400, f"The parameter '{param}' has the wrong type.", code="invalid_type", param=param)
    return holder[name]


def invalid(param: str, message: str) -> ApiError:
    """Return the error about a value that the API does not take."""
    return ApiError(400, message, code="invalid_value", param=param)


def text_of(content: Any, allowed: frozenset[str], where: str) -> str:
    """Return the text of a content. Raises ApiError unless it is a string or a list of parts of allowed types."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise ApiError(400, f"'{where}' is neither text nor a list of parts.", code="invalid_type", param=where)
    return "\n".join(_part_text(part, allowed, f"{where}[{index}]") for index, part in enumerate(content))


def _part_text(part: Any, allowed: frozenset[str], where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in allowed:
        raise invalid(
            where, f"A part of type {kind!r} cannot stand at '{where}'; allowed: {', '.join(sorted(allowed))}."
        )
    return str(part.get("text", ""))
