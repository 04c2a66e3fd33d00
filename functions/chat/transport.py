"""Make the HTTP client that sends requests to the model, and bound every answer that it reads.

The bound is on the stream itself, so that it holds for all code that reads an answer, ours or the vendor's.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final

import httpx2
import openai

MAX_ANSWER_BYTES: Final = 2**20
"""Bytes of an answer: 1 MiB. The 8,000 tokens of an answer take about 32 KB, and some providers repeat the request."""

MAX_STREAM_BYTES: Final = 2**22
"""Bytes of a streamed answer: 4 MiB. A provider may send each of the 8,000 tokens in an event of about 500 bytes."""

MAX_ERROR_BYTES: Final = 2**14
"""Bytes that are read of an answer with an error status: only the error's code is used."""

EVENT_STREAM: Final = "text/event-stream"

_USED_HEADERS: Final = ("content-type", "retry-after", "retry-after-ms", "x-request-id")


class AnswerUnreadable(Exception):
    """Raised when a model's answer is compressed, is not JSON, or breaks off."""


class AnswerTooLong(AnswerUnreadable):
    """Raised when an answer is longer, or has more parts, than any answer may."""


class _BoundedStream(httpx2.AsyncByteStream):
    """Passes on an answer's body up to a number of bytes, then ends it or raises AnswerTooLong."""

    def __init__(self, stream: httpx2.AsyncByteStream, max_bytes: int, *, is_cut: bool) -> None:
        self._stream, self._left, self._is_cut = stream, max_bytes, is_cut

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = aiter(self._stream)
        try:
            async for part in parts:
                yield part[: self._left]
                self._left -= len(part)
                if self._left < 0 and not self._is_cut:
                    raise AnswerTooLong
                if self._left < 0:
                    return
                await asyncio.sleep(0)  # a timeout takes effect only at an await, and parts may be one byte long
        finally:
            if isinstance(parts, AsyncGenerator):
                await parts.aclose()

    async def aclose(self) -> None:
        """Close the connection, unless the answer was read to its end."""
        await self._stream.aclose()


def model_http_client() -> httpx2.AsyncClient:
    """Return an HTTP client that asks for uncompressed answers and bounds each one. It uses proxies as usual."""
    return openai.DefaultAsyncHttpxClient(
        headers={"Accept-Encoding": "identity"},
        # A cookie would tie the turns of different users together, and the jar would grow with every answer.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        event_hooks={"response": [_bound]},
        # A redirect would send the conversation to an address that is not configured.
        follow_redirects=False,
    )


async def _bound(response: httpx2.Response) -> None:
    """Bound a body before it is read. Raises AnswerUnreadable for a compressed answer, which no request asks for."""
    is_compressed = response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity")
    if is_compressed and response.is_success:
        raise AnswerUnreadable
    response.headers = httpx2.Headers(_used(response.headers))
    if isinstance(response.stream, httpx2.AsyncByteStream):
        max_bytes = _max_bytes(response, is_compressed=is_compressed)
        response.stream = _BoundedStream(response.stream, max_bytes, is_cut=not response.is_success)


def _max_bytes(response: httpx2.Response, *, is_compressed: bool) -> int:
    if not response.is_success:
        return 0 if is_compressed else MAX_ERROR_BYTES
    return MAX_STREAM_BYTES if response.headers.get("content-type") == EVENT_STREAM else MAX_ANSWER_BYTES


def _used(headers: httpx2.Headers) -> dict[str, str]:
    """Return the headers that are used. The type loses its charset, which may name a decompressor of Python's."""
    used = {name: headers[name] for name in _USED_HEADERS if name in headers}
    return used | ({"content-type": used["content-type"].split(";")[0]} if "content-type" in used else {})
