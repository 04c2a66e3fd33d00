"""The history of a conversation as the model reads it: whole turns, bounded, with a start that moves rarely."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, Uuid, and_, any_, bindparam, func, select, update
from sqlmodel import Session, col

from taskchat.conversations.models import CONVERSATION, MESSAGE, POSITION_OF_TURN, THIS_CONVERSATION, THIS_TURN
from taskchat.text import as_data, as_json
from taskchat.toolcalls.models import ToolCall

MAX_HISTORY_TURNS: Final = 50
"""Earlier turns the model reads at most: older ones rarely matter, and each costs."""

CHARACTERS_PER_TOKEN: Final = 4
"""A rough measure, the same for every model: the budget needs a bound, not a bill."""

# Values are parameters, never part of a statement: SQLAlchemy keeps each compiled statement, and would keep with it
# the text of the first user.
_BEFORE: Final = func.coalesce(
    POSITION_OF_TURN.scalar_subquery(),
    select(CONVERSATION.c.next_position - 2).where(THIS_CONVERSATION).scalar_subquery(),
)
_START: Final = select(CONVERSATION.c.history_start).where(THIS_CONVERSATION).scalar_subquery()
_EARLIER: Final = and_(
    MESSAGE.c.user_id == bindparam("of_user"),
    MESSAGE.c.conversation_id == bindparam("of_id"),
    MESSAGE.c.position >= _START,
    MESSAGE.c.position < _BEFORE,
)
_NEWEST_FIRST: Final = MESSAGE.c.position.desc()
_MOST: Final = 4 * MAX_HISTORY_TURNS  # twice the messages of the turns that can be kept
_EARLIER_TURNS: Final = func.array(
    select(MESSAGE.c.turn_id).where(_EARLIER).order_by(_NEWEST_FIRST).limit(_MOST).correlate(None).scalar_subquery()
)
_CALLS_OF_PERSON: Final = select(ToolCall).where(col(ToolCall.user_id) == bindparam("of_user"))
_IN_ORDER: Final = (col(ToolCall.turn_id), col(ToolCall.position))

MESSAGE_COLUMNS: Final = [
    MESSAGE.c[name] for name in ("turn_id", "position", "role", "content", "created_at", "timezone")
]
"""The columns of a message that a turn needs."""

MESSAGES_OF_TURN: Final = select(*MESSAGE_COLUMNS, MESSAGE.c.conversation_id, MESSAGE.c.request_hash).where(THIS_TURN)
EARLIER_MESSAGES: Final = select(*MESSAGE_COLUMNS).where(_EARLIER).order_by(_NEWEST_FIRST).limit(_MOST)
CALLS_SHOWN: Final = _CALLS_OF_PERSON.where(
    col(ToolCall.turn_id) == any_(func.array_append(_EARLIER_TURNS, bindparam("of_turn", type_=Uuid)))
).order_by(*_IN_ORDER)
CALLS_OF_TURN: Final = _CALLS_OF_PERSON.where(col(ToolCall.turn_id) == bindparam("of_turn")).order_by(*_IN_ORDER)
_MOVE_START: Final = update(CONVERSATION).where(THIS_CONVERSATION).values(history_start=bindparam("start"))


@dataclass(frozen=True)
class Turn:
    """Hold a turn as the database has it: the message, the calls, and the reply if there is one."""

    turn_id: UUID
    position: int
    message: str
    said_at: datetime
    timezone: str | None
    calls: list[ToolCall] = field(default_factory=list)
    reply: str | None = None

    @cached_property
    def tokens(self) -> int:
        """Estimate the tokens that this turn takes of a model's input."""
        texts = [self.message, self.reply or ""]
        for call in self.calls:
            texts += [call.tool, as_json(call.arguments), as_data(call.result)]
        return sum(map(len, texts)) // CHARACTERS_PER_TOKEN


def join_turns(messages: Sequence[Row[Any]], calls: Iterable[ToolCall]) -> list[Turn]:
    """Put messages together into turns, in order, with the calls of each. A reply without a message begins no turn."""
    replies = {message.turn_id: message.content for message in messages if message.role == "assistant"}
    made: dict[UUID, list[ToolCall]] = defaultdict(list)
    for call in calls:
        made[call.turn_id].append(call)
    return [
        Turn(
            turn_id=said.turn_id,
            position=said.position,
            message=said.content,
            said_at=said.created_at,
            timezone=said.timezone,
            calls=made[said.turn_id],
            reply=replies.get(said.turn_id),
        )
        for said in messages
        if said.role == "user"
    ]


def keep_within(session: Session, conversation: Row[Any], turns: list[Turn], before: int, budget: int) -> list[Turn]:
    """Return whole turns within the budget of tokens. The row keeps where they start; that moves in large steps."""
    turns = [_shorten(turn, budget // 2) for turn in turns]
    kept = _cut(turns, budget)
    if len(kept) < len(turns):
        here = {"of_user": conversation.user_id, "of_id": conversation.id}
        session.execute(_MOVE_START, {**here, "start": kept[0].position if kept else before})
    return kept


def _cut(turns: list[Turn], budget: int) -> list[Turn]:
    """Return all turns if they fit, else the newest within half the budget: the next cut is then many turns away."""
    if len(turns) <= MAX_HISTORY_TURNS and sum(turn.tokens for turn in turns) <= budget:
        return turns
    kept: list[Turn] = []
    room = budget // 2
    for turn in reversed(turns[-MAX_HISTORY_TURNS // 2 :]):
        room -= turn.tokens
        if room < 0 and kept:
            break
        kept.insert(0, turn)
    return kept


def _shorten(turn: Turn, budget: int) -> Turn:
    """Return the turn. If it exceeds the budget, cut its texts to equal shares, always in the same way."""
    if turn.tokens <= budget:
        return turn
    share = budget * CHARACTERS_PER_TOKEN // (2 * len(turn.calls) + 2)
    calls = [
        call.model_copy(
            update={
                "arguments": _cut_json(call.arguments, share, as_json),
                "result": _cut_json(call.result, share, as_data),
            }
        )
        for call in turn.calls
    ]
    return replace(turn, message=turn.message[:share], calls=calls, reply=turn.reply and turn.reply[:share])


def _cut_json(value: dict[str, Any], length: int, write: Callable[[Any], str]) -> dict[str, Any]:
    """Return the value, or as much of its beginning as fits `length` characters when written."""
    if len(write(value)) <= length:
        return value
    text = as_json(value)
    fitting = bisect_right(range(1, length), length, key=lambda end: len(write({"shortened": text[:end]})))
    return {"shortened": text[:fitting]}
