"""Report a turn as its events: each call when it is made and when it is recorded, and the model's text as it comes."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from chat.model_call import TextDelta
from chat.reply_text import ReplyText
from chat.schemas import ChatResponse, view_calls
from chat.stream.events import Finished, Text, ToolFinished, ToolStarted
from chat.stream.feed import Feed
from taskchat.conversations.history import Turn
from taskchat.text import make_storable
from taskchat.toolcalls.models import ToolCall


class TurnReport:
    """Adds the events of one turn to its feed, each once."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._started: set[str] = set()
        self._finished: set[str] = set()
        self._messages = 0
        self._place: object = None
        self._message = ReplyText()

    def start_call(self, call_id: str, tool: str, arguments: dict[str, Any] | None) -> None:
        self._end_message()
        self._started.add(call_id)
        self._feed.add(ToolStarted(call_id, make_storable(tool[:64]), make_storable(arguments or {})))

    def add_calls(self, calls: Sequence[ToolCall]) -> None:
        """Report the recorded calls that were not reported before."""
        for call in calls:
            if call.call_id in self._finished:
                continue
            if call.call_id not in self._started:
                self.start_call(call.call_id, call.tool, call.arguments)
            self._finished.add(call.call_id)
            self._feed.add(ToolFinished(*view_calls([call])))

    def begin_answer(self) -> None:
        """Begin a new message: the model answers again."""
        self._end_message()

    def add_text(self, delta: TextDelta) -> None:
        """Add a piece of the model's text. Each part of an answer is a message of its own."""
        place = (delta.type, delta.output_index, delta.content_index)
        if place != self._place:
            self._end_message()
            self._place = place
        self._show(self._message.add(delta.delta))

    def finish(self, conversation_id: UUID, turn: Turn) -> None:
        """Report the rest of a turn that is stored, and its end."""
        self.add_calls(turn.calls)
        self._add_reply(str(turn.reply))
        ids = {"conversation_id": conversation_id, "turn_id": turn.turn_id}
        self._feed.add(Finished(ChatResponse(**ids, response=str(turn.reply), tool_calls=view_calls(turn.calls))))

    def _add_reply(self, reply: str) -> None:
        """Complete the last message to the reply, or add the reply as a message if the model showed another text."""
        if not reply.startswith(self._message.shown):
            self._end_message()
        self._show(reply[len(self._message.shown) :])

    def _end_message(self) -> None:
        self._show(self._message.end())
        self._messages += bool(self._message.shown)
        self._message, self._place = ReplyText(), None

    def _show(self, text: str) -> None:
        if text:
            self._feed.add(Text(self._messages, text))
