"""Keep the events of a turn while it runs, for each client that reads them."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from chat.stream.events import Event, Failed, Finished


class Feed:
    """The list of a turn's events. It grows until the turn ends, and any number of clients read it from its start."""

    def __init__(self, *events: Event) -> None:
        """Begin with these events."""
        self._events: list[Event] = list(events)
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_complete(self) -> bool:
        """Tell if the last event is there."""
        return isinstance(self._events[-1], Finished | Failed)

    def add(self, event: Event) -> None:
        """Add an event, and let the waiting clients read it."""
        self._events.append(event)
        more, self._more = self._more, asyncio.Event()
        more.set()

    def run(self, turn: Callable[["Feed"], Awaitable[None]]) -> None:
        """Run the turn in a task of its own, which adds the last event in any case. No client ends it by leaving."""
        self._task = asyncio.ensure_future(turn(self))

    def stop(self) -> None:
        """Interrupt the turn, because the server stops. Its last event says so."""
        if self._task:
            self._task.cancel()

    async def after(self, place: int) -> Sequence[Event]:
        """Return the events from that place on, and wait for one if there is none yet."""
        while place >= len(self._events):
            await self._more.wait()
        return self._events[place:]
