"""Make the HTTP client that speaks to the model: no answer that it reads is longer than a bound, packed or endless.

The bound is on the stream itself: no code that reads an answer of this client, ours or the vendor's, goes past it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from http.cookiejar import CookieJar
from typing import Any, Final

import httpx2
import openai

MAX_ANSWER_BYTES: Final = 2**20
"""Bytes of an answer: thirty times what a model may write in one, with as much room for what repeats the request."""

MAX_ERROR_BYTES: Final = 2**14
"""Bytes that are read of an answer with an error status: the error's code is all that is used of them."""

_USED_HEADERS: Final = ("content-type", "retry-after", "retry-after-ms", "x-request-id")


class AnswerTooLong(ValueError):
    """Raised when an answer is longer, or has more parts, than any answer may."""


class _NoCookies(CookieJar):
    """Keeps nothing: a jar would tie people's turns together, and grow with every answer."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        """Leave the cookies where they are."""


class _BoundedStream(httpx2.AsyncByteStream):
    """The body of an answer up to so many bytes. What is beyond them is cut off, or raises AnswerTooLong."""

    def __init__(self, stream: httpx2.AsyncByteStream, most: int, *, is_cut: bool) -> None:
        self._stream, self._left, self._is_cut = stream, most, is_cut

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
                await asyncio.sleep(0)  # a timeout ends a coroutine only where it waits, and parts may be a byte long
        finally:
            if isinstance(parts, AsyncGenerator):
                await parts.aclose()

    async def aclose(self) -> None:
        """Close the connection, unless the answer was read to its end."""
        await self._stream.aclose()


def model_http_client() -> httpx2.AsyncClient:
    """Return the vendor's HTTP client, which asks for unpacked answers and bounds each one. Proxies work as usual."""
    return openai.DefaultAsyncHttpxClient(
        headers={"Accept-Encoding": "identity"},
        cookies=_NoCookies(),
        event_hooks={"response": [_bound]},
        # A redirect would hand the conversation to an address that nobody has configured.
        follow_redirects=False,
    )


async def _bound(response: httpx2.Response) -> None:
    """Bound the body that is still to be read. Raises ValueError for an answer that is packed: none was asked for."""
    is_packed = response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity")
    if is_packed and response.is_success:
        raise ValueError("the answer is packed")
    response.headers = httpx2.Headers(_used(response.headers))
    most = MAX_ANSWER_BYTES if response.is_success else 0 if is_packed else MAX_ERROR_BYTES
    if isinstance(response.stream, httpx2.AsyncByteStream):
        response.stream = _BoundedStream(response.stream, most, is_cut=not response.is_success)


def _used(headers: httpx2.Headers) -> dict[str, str]:
    """Return the headers that are used. The type comes without a charset, which may name a decompressor of Python's."""
    used = {name: headers[name] for name in _USED_HEADERS if name in headers}
    return used | ({"content-type": used["content-type"].split(";")[0]} if "content-type" in used else {})
