"""Send the events of a turn as they come, in the protocol of the client."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chat.stream.encoding import MEDIA_TYPE, Encoder
from chat.stream.events import Event, Failed, Finished
from chat.stream.feed import Feed

COMMENT_SECONDS: Final = 10.0
"""Seconds without an event after which a comment is sent, so that no proxy takes the connection for dead."""

STALLED_SECONDS: Final = 20.0
"""Seconds in which a client must take what is sent. Nothing more is sent to one that does not."""

_COMMENT: Final = b": \n\n"


class EventResponse(Response):
    """Sends a turn's events until its last one, also after the client has left: Lambda freezes the process after it."""

    def __init__(self, feed: Feed, encoder: Encoder) -> None:
        """Send the events of `feed`."""
        super().__init__(headers={"Content-Type": MEDIA_TYPE, "X-Accel-Buffering": "no", **encoder.headers})
        del self.headers["content-length"]
        if feed.accepted.replayed:
            self.headers["Idempotent-Replayed"] = "true"
        self._feed, self._encoder = feed, encoder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        place, is_read = 0, True
        while True:
            events = await self._after(place)
            place += len(events)
            body = b"".join(frame for event in events for frame in self._encoder.encode(event)) or _COMMENT
            is_last = bool(events) and isinstance(events[-1], Finished | Failed)
            if is_read:
                is_read = await _send_in_time(send, body, more_body=not is_last)
            if is_last:
                return

    async def _after(self, place: int) -> Sequence[Event]:
        """Return the next events, or none after COMMENT_SECONDS."""
        try:
            async with asyncio.timeout(COMMENT_SECONDS):
                return await self._feed.after(place)
        except TimeoutError:
            return ()
        except asyncio.CancelledError:  # the server stops
            self._feed.stop()
            return await self._feed.after(place)


async def _send_in_time(send: Send, body: bytes, *, more_body: bool) -> bool:
    message: dict[str, Any] = {"type": "http.response.body", "body": body, "more_body": more_body}
    try:
        async with asyncio.timeout(STALLED_SECONDS):
            await send(message)
    except (TimeoutError, OSError):
        return False
    return True
