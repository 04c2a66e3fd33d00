"""Keep the turns that run in this process, so that a client who left can read their events again."""

import asyncio
from uuid import UUID

from chat.stream.feed import Feed, Work
from taskchat.conversations.turns import Request
from taskchat.errors import KeyReused


class LiveTurns:
    """Holds each turn of this process while it runs, and nothing of it afterwards."""

    def __init__(self) -> None:
        self._feeds: dict[tuple[str, UUID], tuple[str, Feed]] = {}

    def run(self, user_id: str, turn_id: UUID, request: Request, feed: Feed, work: Work) -> None:
        """Run the turn in a task of its own. No client ends it by leaving."""
        self._feeds[user_id, turn_id] = request.hash, feed
        feed.run(work).add_done_callback(lambda _: self._feeds.pop((user_id, turn_id)))

    def find(self, user_id: str, turn_id: UUID, request: Request) -> Feed | None:
        """Return the events of the turn if it runs here. Raises KeyReused if it has another request."""
        request_hash, feed = self._feeds.get((user_id, turn_id), (request.hash, None))
        if request_hash != request.hash:
            raise KeyReused
        return feed

    def find_in(self, user_id: str, conversation_id: UUID) -> Feed | None:
        """Return the events of the turn that runs in the conversation."""
        for (owner, _), (_, feed) in self._feeds.items():
            if owner == user_id and feed.accepted.conversation_id == conversation_id:
                return feed
        return None

    async def close(self) -> None:
        """Interrupt all turns, and wait for their ends."""
        feeds = [feed for _, feed in self._feeds.values()]
        for feed in feeds:
            feed.stop()
        await asyncio.gather(*(feed.last() for feed in feeds))
