"""Keep the events of a turn while it runs, for each client that reads them."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from chat.stream.events import Accepted, Event, Failed, Finished
from taskchat.errors import OutOfTime, TaskchatError, Unavailable
from taskchat.logs import to_problem

STOPPING_RETRY_AFTER: Final = 2
"""Seconds that a caller is asked to wait when the server stops: another server may be there at once."""

Work: TypeAlias = Callable[["Feed"], Awaitable[None]]
"""Runs a turn and adds its events to the feed, or raises what interrupted it."""


class Feed:
    """The list of a turn's events. It grows until the turn ends, and any number of clients read it from its start."""

    def __init__(self, accepted: Accepted) -> None:
        """Begin with the first event."""
        self.accepted = accepted
        self._events: list[Event] = [accepted]
        self._more = asyncio.Event()
        self._running: asyncio.Future[None] | None = None

    def add(self, event: Event) -> None:
        """Add an event, and let the waiting clients read it."""
        self._events.append(event)
        more, self._more = self._more, asyncio.Event()
        more.set()

    def run(self, work: Work) -> asyncio.Future[None]:
        """Run the work in the background, and return its future. The last event comes in any case."""
        self._running = asyncio.ensure_future(self._end(work))
        return self._running

    async def _end(self, work: Work) -> None:
        try:
            await work(self)
        except (Exception, asyncio.CancelledError) as error:
            self.add(Failed(problem_of(error)))

    def stop(self) -> None:
        """Interrupt the turn, because the server stops. Its last event says so."""
        if self._running:
            self._running.cancel()

    async def after(self, place: int) -> Sequence[Event]:
        """Return the events from that place on. Wait for one if there is none yet."""
        while place >= len(self._events):
            await self._more.wait()
        return self._events[place:]

    async def last(self) -> Finished | Failed:
        """Return the last event. A cancellation means that the server stops: it interrupts the turn."""
        while not isinstance(last := self._events[-1], Finished | Failed):
            try:
                await self._more.wait()
            except asyncio.CancelledError:
                self.stop()
        return last


def problem_of(error: Exception | asyncio.CancelledError) -> TaskchatError:
    """Return the problem that ended the turn. A server that stops cancels the turns that take too long."""
    if isinstance(error, asyncio.CancelledError):
        return Unavailable(retry_after=STOPPING_RETRY_AFTER)
    return OutOfTime() if isinstance(error, TimeoutError) else to_problem(error)
