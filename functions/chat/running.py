"""Run each turn in the background, and give its events to the clients that ask for it, wherever it runs.

A client that leaves does not end its turn. One that comes back with the same key reads all events from the first.
"""

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Final
from uuid import UUID

from chat.schemas import ChatResponse
from chat.stream.events import Accepted, Failed
from chat.stream.feed import Feed
from chat.stream.report import TurnReport
from chat.turn import TurnRunner
from taskchat import deadline
from taskchat.conversations.running import running_turn, stored_turn
from taskchat.conversations.turns import Finished, Request
from taskchat.errors import KeyReused, TurnInProgress, Unavailable

LOOK_SECONDS: Final = 1.0
"""Seconds between two looks at a turn that another process runs."""

INTERRUPTED: Final = "The turn was interrupted. The same request goes on from there."


@dataclass(frozen=True)
class TurnResult:
    """The response of a turn. `replayed` is true if an earlier request did the turn."""

    response: ChatResponse
    replayed: bool


class RunningTurns:
    """Runs turns, and holds the events of each while it runs in this process, and nothing of it afterwards."""

    def __init__(self, runner: TurnRunner) -> None:
        """Run turns with `runner`."""
        self.runner = runner
        self._here: dict[tuple[str, UUID], tuple[str, Feed]] = {}

    async def run(self, user_id: str, turn_id: UUID, request: Request) -> TurnResult:
        """Run the turn once, before the deadline, however often it is requested.

        Raises any TaskchatError. Once the message is known to be stored, the error names conversation, turn and calls.
        """
        feed = await self._begin(user_id, turn_id, request, is_streamed=False)
        last = await feed.last()
        if isinstance(last, Failed):
            raise last.problem
        return TurnResult(last.response, feed.accepted.replayed)

    async def stream(self, user_id: str, turn_id: UUID, request: Request) -> Feed:
        """Begin the turn, or find it where it runs or is stored, and return its events. Raises all that refuses it.

        While another process runs it, the events go on when that process has ended it.
        """
        request_hash, feed = self._here.get((user_id, turn_id), (request.hash, None))
        if request_hash != request.hash:
            raise KeyReused
        if feed:
            return feed
        try:
            return await self._begin(user_id, turn_id, request, is_streamed=True)
        except TurnInProgress:
            conversation_id = request.conversation_of(turn_id)
            with self.runner.database.transaction(user_id) as session:
                if running_turn(session, user_id, conversation_id) != turn_id:
                    raise
                # It counts as a turn: on Lambda each client that waits holds a process of its own.
                self.runner.limits.spend(session, user_id)
        feed = Feed(Accepted(conversation_id, turn_id, replayed=False))
        self._keep(user_id, request, feed, feed.run(partial(self._pick_up, user_id, request)))
        return feed

    def follow(self, user_id: str, conversation_id: UUID, turn_id: UUID) -> Feed:
        """Return the events of a turn that runs, here or in another process. The turn is only read."""
        _, feed = self._here.get((user_id, turn_id), (None, None))
        if feed is None:
            feed = Feed(Accepted(conversation_id, turn_id, replayed=False))
            feed.run(partial(self._read, user_id))
        return feed

    async def close(self) -> None:
        """Interrupt all turns, wait for their ends, and close the agent."""
        feeds = [feed for _, feed in self._here.values()]
        for feed in feeds:
            feed.stop()
        await asyncio.gather(*(feed.last() for feed in feeds))
        await self.runner.agent.close()

    async def _begin(self, user_id: str, turn_id: UUID, request: Request, *, is_streamed: bool) -> Feed:
        begun, left = await self.runner.begin(user_id, turn_id, request)
        if isinstance(begun, Finished):
            feed = Feed(Accepted(begun.conversation_id, turn_id, replayed=True))
            TurnReport(feed).finish(begun.conversation_id, begun.turn)
            return feed
        feed = Feed(Accepted(begun.lease.conversation_id, turn_id, replayed=False))
        work = partial(self.runner.run, begun, left, request, is_streamed=is_streamed)
        self._keep(user_id, request, feed, feed.run(work))
        return feed

    def _keep(self, user_id: str, request: Request, feed: Feed, work: "asyncio.Future[None]") -> None:
        """Keep the events until the turn ends."""
        key, kept = (user_id, feed.accepted.turn_id), (request.hash, feed)
        self._here[key] = kept

        def drop(_: object) -> None:
            if self._here.get(key) is kept:  # else another attempt at the turn runs here by now
                del self._here[key]

        work.add_done_callback(drop)

    async def _pick_up(self, user_id: str, request: Request, feed: Feed) -> None:
        """Wait while another process runs the turn, and report what it did. If it was interrupted, go on with it."""
        await self._wait_for_end(user_id, feed)
        begun, left = await self.runner.begin(user_id, feed.accepted.turn_id, request)
        if isinstance(begun, Finished):
            return TurnReport(feed).finish(begun.conversation_id, begun.turn)
        return await self.runner.run(begun, left, request, feed, is_streamed=True)

    async def _read(self, user_id: str, feed: Feed) -> None:
        """Wait while another process runs the turn, and report what it did."""
        await self._wait_for_end(user_id, feed)
        with self.runner.database.transaction(user_id) as session:
            done = stored_turn(session, user_id, feed.accepted.turn_id)
        if done is None:
            raise Unavailable(INTERRUPTED, retry_after=1)
        TurnReport(feed).finish(done.conversation_id, done.turn)

    async def _wait_for_end(self, user_id: str, feed: Feed) -> None:
        """Wait until no process runs the turn. Raises TurnInProgress at the deadline."""
        while self._find_running(user_id, feed.accepted.conversation_id) == feed.accepted.turn_id:
            if deadline.remaining() <= LOOK_SECONDS:
                raise TurnInProgress(retry_after=1)
            await asyncio.sleep(LOOK_SECONDS)

    def _find_running(self, user_id: str, conversation_id: UUID) -> UUID | None:
        with self.runner.database.transaction(user_id) as session:
            return running_turn(session, user_id, conversation_id)
