"""Where hanging requests wait, so that whoever tests a timeout need not wait as long."""

import asyncio

from starlette.requests import Request

PATIENCE = 10  # seconds that a question for the number of hanging requests may itself wait


class WaitingRoom:
    """Requests stay until their time is over, they are released, the client hangs up or the server stops."""

    def __init__(self) -> None:
        self.hanging = 0
        self._closed = False
        self._changed = asyncio.Condition()
        self._released = asyncio.Event()

    async def stay(self, request: Request, seconds: float) -> bool:
        """Wait; False when the client hung up meanwhile, and no one is there to be answered."""
        await self._count(+1)
        released = asyncio.create_task(self._released.wait())
        gone = asyncio.create_task(_gone(request))
        try:
            await asyncio.wait({released, gone}, timeout=0 if self._closed else seconds, return_when="FIRST_COMPLETED")
            return not gone.done()
        finally:
            released.cancel()
            gone.cancel()
            await self._count(-1)

    async def at_least(self, number: int) -> int:
        """How many hang, once that many do (or the patience is over)."""
        try:
            async with asyncio.timeout(PATIENCE), self._changed:
                await self._changed.wait_for(lambda: self.hanging >= number or self._closed)
        except TimeoutError:
            pass
        return self.hanging

    async def release(self) -> None:
        """Let those go on that hang now; later ones hang again."""
        self._released.set()
        self._released = asyncio.Event()

    async def close(self) -> None:
        """Let all go on, now and from now on."""
        self._closed = True
        await self.release()
        await self._count(0)

    async def _count(self, change: int) -> None:
        async with self._changed:
            self.hanging += change
            self._changed.notify_all()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
