"""Send an answer as a stream of server-sent events. A fault may stop it, cut it or drop its connection."""

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .conversation import Json
from .hanging import HangingRequests
from .wire import Chunk, Kind

EVENTS = "text/event-stream"


class Stream:
    """The events that a stream has not sent yet, and the connection that takes them."""

    def __init__(self, chunks: Iterable[Chunk], request: Request, hanging: HangingRequests) -> None:
        self._chunks = deque(chunks)
        self._request = request
        self._hanging = hanging

    def rest(self) -> Iterator[Chunk]:
        """Yield all events that are left."""
        while self._chunks:
            yield self._chunks.popleft()

    def until(self, pieces: int | None) -> Iterator[Chunk]:
        """Yield the events up to so many pieces of text or of arguments, or up to the last events."""
        while pieces != 0 and self._chunks[0].kind is not Kind.END:
            chunk = self._chunks.popleft()
            if pieces and chunk.is_piece:
                pieces -= 1
            yield chunk

    async def hold(self, seconds: float) -> bool:
        """Wait, and return whether the client is still there."""
        return await self._hanging.hold(self._request, seconds)

    async def wait(self, seconds: float) -> None:
        """Wait, at most until the server stops."""
        await self._hanging.wait(seconds)

    async def drop(self) -> None:
        """Close the connection, after what was sent."""
        self._request.scope["state"]["transport"].close()
        await self._request.receive()  # until the server knows: else it would add an error of its own


Pace = Callable[[Stream], AsyncIterator[Chunk]]
"""Yields the events of a stream that are sent, each when it is due."""


async def steadily(stream: Stream, *, seconds: float = 0) -> AsyncIterator[Chunk]:
    """Yield all events, each piece of text after a pause."""
    for chunk in stream.rest():
        if seconds and chunk.kind is Kind.TEXT:
            await stream.wait(seconds)
        yield chunk


class StreamedResponse(Response):
    """A streamed answer. It counts the pieces of text in the request's record, and notes the time of the first."""

    media_type = EVENTS

    def __init__(self, chunks: AsyncIterator[Chunk], record: Json) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._chunks, self._record = chunks, record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._chunks:
            if chunk.kind is Kind.TEXT:
                self._note()
            await send({"type": "http.response.body", "body": chunk.data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def _note(self) -> None:
        self._record["pieces"] += 1
        if self._record["first_piece"] is None:
            self._record["first_piece"] = time.monotonic()
