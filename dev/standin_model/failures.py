"""Define every fault of the stand-in: one function each, grouped by the point at which it acts.

A function's keyword parameters are the fault's parameters, with their defaults.
"""

import inspect
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .conversation import Answer, Call, Json, code_units, dump
from .hanging import HangingRequests
from .stream import EVENTS, Stream
from .wire import ApiError, Chunk

if TYPE_CHECKING:
    from .script import Examples

BROKEN_JSON = '{"text": "unfin'
NOT_STORABLE = "\x00\ud800"  # Postgres refuses both: a NUL and half of a surrogate pair
BLANKS = " \n\u200b\u2060Done,\u200d  \u200bthat is\n\nall.\ufeff \n\t"
"""Text that begins and ends with blanks and invisible characters, and has others between."""
TOO_LONG = 5_000  # characters: more than any tool takes


class DroppedConnection(Response):
    """A response that closes the connection after half of its body, or at once when it has none."""

    def __init__(self, content: bytes = b"", media_type: str | None = None) -> None:
        super().__init__(content, media_type=media_type)
        self._sent = self.body[: len(self.body) // 2]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._sent:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": self._sent, "more_body": True})
            scope["state"]["transport"].close()
        else:
            scope["state"]["transport"].abort()
        await receive()  # until the server knows that the connection is closed: else it would add an error of its own


# Instead of any answer


def rate_limit(*, retry_after: float = 1, retry_after_ms: float | None = None) -> Response:
    error = ApiError(429, "Too many requests: slow down.", "requests", "rate_limit_exceeded")
    milliseconds = {} if retry_after_ms is None else {"retry-after-ms": f"{retry_after_ms:g}"}
    return error.response({"retry-after": f"{retry_after:g}"} | milliseconds)


def quota() -> Response:
    return ApiError(429, "The quota is used up.", "insufficient_quota", "insufficient_quota").response()


def unauthorized() -> Response:
    return ApiError(401, "The API key is not valid.", code="invalid_api_key").response()


def server_error() -> Response:
    return ApiError(500, "The server had an error.", "server_error").response()


def unavailable() -> Response:
    return ApiError(503, "The engine is overloaded.", "service_unavailable_error").response()


def context_length_exceeded() -> Response:
    message = "The input is longer than the context window of the model."
    return ApiError(400, message, code="context_length_exceeded", param="input").response()


def bad_gateway() -> Response:
    return Response("<html><body><h1>502 Bad Gateway</h1></body></html>", 502, media_type="text/html")


def disconnect() -> Response:
    return DroppedConnection()


# Before a normal answer; False when the client did not wait for it


async def hang(hanging: HangingRequests, request: Request, *, seconds: float = 40) -> bool:
    return await hanging.hold(request, seconds)


async def slow(hanging: HangingRequests, request: Request, *, seconds: float = 3) -> bool:
    return await hanging.hold(request, seconds)


# In the body of a normal answer


def empty_body(content: bytes, media_type: str) -> Response:
    return Response(b"", media_type=media_type)


def malformed_body(content: bytes, media_type: str) -> Response:
    return _sent_as(media_type, BROKEN_JSON)


def wrong_schema(content: bytes, media_type: str) -> Response:
    return _sent_as(media_type, dump({"result": "ok", "items": []}))


def disconnect_midway(content: bytes, media_type: str) -> Response:
    return DroppedConnection(content, media_type)


def _sent_as(media_type: str, text: str) -> Response:
    return Response(f"data: {text}\n\n" if media_type == EVENTS else text, media_type=media_type)


# In the pace of a streamed answer; each yields the events that are sent


async def pause(stream: Stream, *, pieces: int = 1, seconds: float = 40) -> AsyncIterator[Chunk]:
    for chunk in stream.until(pieces):
        yield chunk
    if await stream.hold(seconds):
        for chunk in stream.rest():
            yield chunk


async def break_off(stream: Stream, *, pieces: int = 1) -> AsyncIterator[Chunk]:
    for chunk in stream.until(pieces):
        yield chunk
    await stream.drop()


async def cut_stream(stream: Stream, *, pieces: int | None = None) -> AsyncIterator[Chunk]:
    for chunk in stream.until(pieces):
        yield chunk


# In the model's text or calls; `answer` is the one it would have given


def say(answer: Answer, *, text: str = "This is what I was told to say.") -> Answer:
    return Answer(text)


def call(answer: Answer, *, calls: list[Json] | None = None) -> Answer:
    if calls is None:
        return Answer(calls=(_listing(),))
    return Answer(calls=tuple(Call.new(each["name"], each.get("arguments", {})) for each in calls))


def preamble(answer: Answer, *, text: str = "Let me see.") -> Answer:
    return Answer(text, _calls(answer))


def many_messages(answer: Answer, *, texts: list[str] | None = None, one_message: bool = False) -> Answer:
    first, *more = texts or ["This is one message.", "This is another."]
    return Answer(first, more=tuple(more), is_one_message=one_message)


def split_surrogates(answer: Answer, *, text: str = "Done \U0001f600\U0001f44d.") -> Answer:
    return Answer(text, split=code_units)


def split_blanks(answer: Answer, *, text: str = BLANKS) -> Answer:
    return Answer(text, split=code_units)


def drip(answer: Answer, *, milliseconds: float = 50, tokens: int | None = None) -> Answer:
    said = answer if tokens is None else Answer("word " * tokens)
    return replace(said, seconds_per_piece=milliseconds / 1000)


def refusal(answer: Answer, *, text: str = "I will not help with that.") -> Answer:
    return Answer(refusal=text)


def length(answer: Answer) -> Answer:
    return Answer("I was about to say", stopped="max_output_tokens")


def content_filter(answer: Answer) -> Answer:
    return Answer("", stopped="content_filter")


def empty_text(answer: Answer) -> Answer:
    return Answer("")


def unknown_tool(answer: Answer) -> Answer:
    return Answer(calls=(Call.new("drop_tables", {"really": True}),))


def endless_tool_calls(answer: Answer) -> Answer:
    return Answer(calls=(_listing(),))


def malformed_arguments(answer: Answer) -> Answer:
    return Answer(calls=tuple(replace(each, arguments=BROKEN_JSON) for each in _calls(answer)))


def wrong_arguments(answer: Answer, *, tool: str | None = None, arguments: Json | None = None) -> Answer:
    examples = _examples()
    wrong = examples.calls[0][1] | {examples.text: "x" * TOO_LONG} if arguments is None else arguments
    return Answer(calls=(Call.new(tool or examples.tools[0], wrong),))


def extra_arguments(answer: Answer, *, user_id: str = "someone-else") -> Answer:
    return _with_arguments(answer, lambda given: given | {"user_id": user_id})


def duplicate_call_ids(answer: Answer) -> Answer:
    calls = _calls(answer)
    pair = calls if len(calls) > 1 else (*calls, _listing())
    return Answer(calls=tuple(replace(each, call_id=pair[0].call_id) for each in pair))


def bad_text(answer: Answer) -> Answer:
    if not answer.calls:
        return Answer(f"{answer.text}{NOT_STORABLE}")
    return _with_arguments(answer, _spoil)


def _spoil(arguments: Json) -> Json:
    return {name: value + NOT_STORABLE if isinstance(value, str) else value for name, value in arguments.items()}


def _calls(answer: Answer) -> tuple[Call, ...]:
    return answer.calls or (_listing(),)


def _listing() -> Call:
    return Call.new(_examples().tools[1], {})


def _examples() -> "Examples":
    from .domain import domain  # not before: its sentences are made of scripts, and those know the faults

    return domain.examples


def _with_arguments(answer: Answer, change: Callable[[Json], Json]) -> Answer:
    return Answer(calls=tuple(each.with_arguments(change(each.parsed() or {})) for each in _calls(answer)))


def _by_name(*functions: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return {function.__name__: function for function in functions}


INSTEAD = _by_name(
    rate_limit, quota, unauthorized, server_error, unavailable, context_length_exceeded, bad_gateway, disconnect
)
BEFORE = _by_name(hang, slow)
STREAMS = _by_name(pause, break_off, cut_stream)
BODIES = _by_name(empty_body, malformed_body, wrong_schema, disconnect_midway)
ANSWERS = _by_name(
    say,
    call,
    preamble,
    many_messages,
    split_surrogates,
    split_blanks,
    drip,
    refusal,
    length,
    content_filter,
    empty_text,
    unknown_tool,
    endless_tool_calls,
    malformed_arguments,
    wrong_arguments,
    extra_arguments,
    duplicate_call_ids,
    bad_text,
)
FAULTS = INSTEAD | BEFORE | STREAMS | BODIES | ANSWERS


def parameters(name: str) -> frozenset[str]:
    """Return the names of a fault's parameters."""
    given = inspect.signature(FAULTS[name]).parameters.values()
    return frozenset(parameter.name for parameter in given if parameter.kind is parameter.KEYWORD_ONLY)
