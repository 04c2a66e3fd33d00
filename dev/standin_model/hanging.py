"""Hold the requests that hang, so that a test of a timeout need not wait for the timeout."""

import asyncio
import contextlib

from starlette.requests import Request

COUNT_SECONDS = 10
"""The longest wait of a control request for a number of hanging requests."""


class HangingRequests:
    """Holds requests until their time is over, a test releases them, the client hangs up or the server stops."""

    def __init__(self) -> None:
        self.number = 0
        self._closing = asyncio.Event()
        self._changed = asyncio.Condition()
        self._released = asyncio.Event()

    async def hold(self, request: Request, seconds: float) -> bool:
        """Wait, and return whether the client is still there to be answered."""
        await self._count(+1)
        released = asyncio.create_task(self._released.wait())
        gone = asyncio.create_task(_disconnected(request))
        try:
            timeout = 0 if self._closing.is_set() else seconds
            await asyncio.wait({released, gone}, timeout=timeout, return_when="FIRST_COMPLETED")
            return not gone.done()
        finally:
            released.cancel()
            gone.cancel()
            await self._count(-1)

    async def at_least(self, number: int) -> int:
        """Wait until so many requests hang, or COUNT_SECONDS are over, and return how many do."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COUNT_SECONDS), self._changed:
                await self._changed.wait_for(lambda: self.number >= number or self._closing.is_set())
        return self.number

    async def release(self) -> None:
        """Let the requests go on that hang now; later ones hang again."""
        self._released.set()
        self._released = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Wait, at most until the server stops."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    async def close(self) -> None:
        """Let all requests go on, now and from now on."""
        self._closing.set()
        await self.release()
        await self._count(0)

    async def _count(self, change: int) -> None:
        async with self._changed:
            self.number += change
            self._changed.notify_all()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
