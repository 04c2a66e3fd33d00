"""Turns and their history: one writer per conversation, each turn once.

A turn takes a lease on its conversation's row, with an expiry and a fencing number, and commits nothing without it.
Nothing here waits for a model: each function is one short transaction's worth of statements.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, NoReturn
from uuid import UUID, uuid4, uuid5

from sqlalchemy import ColumnElement, and_, func, or_
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col, select, update

from taskchat.errors import KeyReused, NotFound, TurnInProgress
from taskchat.models import Conversation, Message, ToolCall

LEASE: Final = timedelta(seconds=40)
"""Longer than any request may take, so that no turn outlives its lease; short, so that a crashed one is soon over."""

MAX_HISTORY_TURNS: Final = 50
"""Earlier turns the model reads at most: what is older than this rarely matters to a task list, and every one costs."""

CHARACTERS_PER_TOKEN: Final = 4
"""A rough measure, the same for every model: the budget needs a bound, not a bill."""

_NAMESPACE: Final = UUID("8c5f3f1e-0f0e-4f0b-9d53-1d7f0f7f6a52")  # of turn and conversation ids; random, made once
_TITLE_LENGTH: Final = 80


class LeaseLost(TurnInProgress):
    """Raised when a turn's lease ran out or was taken over: it may write nothing any more."""


@dataclass(frozen=True)
class Request:
    """What a person asked for, checked and in its final form."""

    message: str
    conversation_id: UUID | None = None
    timezone: str | None = None

    @property
    def hash(self) -> str:
        """Equal for equal requests: a key that comes back must bring the same one."""
        fields = [self.message, self.conversation_id and str(self.conversation_id), self.timezone]
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


@dataclass(frozen=True)
class Lease:
    """A turn's right to write into its conversation."""

    user_id: str
    conversation_id: UUID
    turn_id: UUID
    fence: int

    def check(self, session: Session) -> None:
        """Hold the lease for the rest of the transaction. Raises LeaseLost."""
        statement = select(Conversation.fence).where(self._mine()).with_for_update(read=True)
        if session.exec(statement).one_or_none() is None:
            raise LeaseLost(retry_after=1)

    def release(self, session: Session) -> None:
        """Let the next turn in. Raises LeaseLost."""
        released = {"turn_id": None, "lease_until": None, "updated_at": func.clock_timestamp()}
        statement = update(Conversation).where(self._mine()).values(released).returning(col(Conversation.fence))
        if session.execute(statement).one_or_none() is None:
            raise LeaseLost(retry_after=1)

    def _mine(self) -> ColumnElement[bool]:
        return and_(
            col(Conversation.user_id) == self.user_id,
            col(Conversation.id) == self.conversation_id,
            col(Conversation.fence) == self.fence,
            col(Conversation.lease_until) > func.clock_timestamp(),
        )


@dataclass(frozen=True)
class Turn:
    """One turn as it stands in the database: what was said, the calls made, and the reply if there is one."""

    turn_id: UUID
    position: int
    message: str
    said_at: datetime
    timezone: str | None
    calls: list[ToolCall] = field(default_factory=list)
    reply: str | None = None

    @property
    def tokens(self) -> int:
        """About how much of a model's input this turn takes."""
        texts = [self.message, self.reply or ""]
        for call in self.calls:
            texts += [call.tool, json.dumps(call.arguments), json.dumps(call.result)]
        return sum(map(len, texts)) // CHARACTERS_PER_TOKEN


@dataclass(frozen=True)
class Begun:
    """A turn that may run now. `turn.calls` are those that an earlier, interrupted attempt already made."""

    lease: Lease
    turn: Turn
    history: list[Turn]


@dataclass(frozen=True)
class Finished:
    """A turn that is already done: its answer, as it was."""

    conversation_id: UUID
    turn: Turn


def turn_id_for(user_id: str, idempotency_key: str | None) -> UUID:
    """The same id for the same person's same key; a new one where there is no key."""
    return uuid4() if idempotency_key is None else uuid5(_NAMESPACE, f"{user_id}\n{idempotency_key}")


def begin(session: Session, user_id: str, turn_id: UUID, request: Request, history_tokens: int) -> Begun | Finished:
    """Take the lease, read the history, and store what the person said: once, however often the turn is tried.

    Raises NotFound, TurnInProgress, or KeyReused when `turn_id` belongs to another request.
    """
    said = _said(session, user_id, turn_id, request)
    if said and (finished := _finished(session, said)):
        return finished
    conversation_id = request.conversation_id or uuid5(turn_id, "conversation")
    if request.conversation_id is None:
        _create(session, user_id, conversation_id, request)
    conversation = _acquire(session, user_id, conversation_id, turn_id, is_new=said is None)
    lease = Lease(user_id, conversation_id, turn_id, conversation.fence)
    # Only now, with the lock held, can nobody have finished or begun this turn meanwhile.
    said = _said(session, user_id, turn_id, request)
    if said and (finished := _finished(session, said)):
        lease.release(session)
        return finished
    before = said.position if said else conversation.next_position - 2
    history = _history(session, conversation, before, history_tokens)
    said = said or _say(session, conversation, turn_id, request)
    return Begun(lease, _turns(session, user_id, [said])[0], history)


def finish(session: Session, begun: Begun, reply: str, usage: dict[str, Any]) -> None:
    """Store the reply and let the next turn in. Raises LeaseLost."""
    begun.lease.release(session)
    session.execute(
        insert(Message).values(
            user_id=begun.lease.user_id,
            conversation_id=begun.lease.conversation_id,
            position=begun.turn.position + 1,
            turn_id=begun.lease.turn_id,
            role="assistant",
            content=reply,
            usage=usage,
        )
    )


def _said(session: Session, user_id: str, turn_id: UUID, request: Request) -> Message | None:
    """The user message of this turn, if it was begun before. Raises KeyReused."""
    said = session.exec(
        select(Message).where(Message.user_id == user_id, Message.turn_id == turn_id, Message.role == "user")
    ).one_or_none()
    if said and said.request_hash != request.hash:
        raise KeyReused
    return said


def _finished(session: Session, said: Message) -> Finished | None:
    (turn,) = _turns(session, said.user_id, [said, *_answers(session, said)])
    return Finished(said.conversation_id, turn) if turn.reply is not None else None


def _answers(session: Session, said: Message) -> Sequence[Message]:
    return session.exec(
        select(Message).where(
            Message.user_id == said.user_id, Message.turn_id == said.turn_id, Message.role == "assistant"
        )
    ).all()


def _create(session: Session, user_id: str, conversation_id: UUID, request: Request) -> None:
    title = request.message.strip().split("\n")[0][:_TITLE_LENGTH]
    statement = insert(Conversation).values(user_id=user_id, id=conversation_id, title=title)
    session.execute(statement.on_conflict_do_nothing())


def _acquire(session: Session, user_id: str, conversation_id: UUID, turn_id: UUID, *, is_new: bool) -> Conversation:
    """Take the lease, if nobody holds it. A new turn reserves two positions: what is said, and the reply."""
    now = func.clock_timestamp()
    here = and_(col(Conversation.user_id) == user_id, col(Conversation.id) == conversation_id)
    free = or_(col(Conversation.lease_until).is_(None), col(Conversation.lease_until) <= now)
    statement = (
        update(Conversation)
        .where(here, free)
        .values(
            turn_id=turn_id,
            lease_until=now + LEASE,
            fence=Conversation.fence + 1,
            next_position=Conversation.next_position + (2 if is_new else 0),
        )
        .returning(Conversation)
    )
    conversation = session.scalars(statement).one_or_none()
    if conversation is None:
        _refuse(session, here)
    return conversation


def _refuse(session: Session, here: ColumnElement[bool]) -> NoReturn:
    held = session.execute(
        select(col(Conversation.lease_until) - func.clock_timestamp(), Conversation.id).where(here)
    ).one_or_none()
    if held is None:
        raise NotFound
    remaining: timedelta = held[0] or timedelta()  # the other turn may just have ended
    raise TurnInProgress(retry_after=max(1, math.ceil(remaining.total_seconds())))


def _say(session: Session, conversation: Conversation, turn_id: UUID, request: Request) -> Message:
    statement = (
        insert(Message)
        .values(
            user_id=conversation.user_id,
            conversation_id=conversation.id,
            position=conversation.next_position - 2,
            turn_id=turn_id,
            role="user",
            content=request.message,
            timezone=request.timezone,
            request_hash=request.hash,
        )
        .returning(Message)
    )
    return session.scalars(statement).one()


def _history(session: Session, conversation: Conversation, before: int, budget: int) -> list[Turn]:
    """Whole turns within the budget. Its start is kept in the row and moves in large steps."""
    messages = session.exec(
        select(Message)
        .where(
            Message.user_id == conversation.user_id,
            Message.conversation_id == conversation.id,
            Message.position >= conversation.history_start,
            Message.position < before,
        )
        .order_by(col(Message.position))
    ).all()
    turns = _turns(session, conversation.user_id, messages)
    kept = _cut(turns, budget)
    if len(kept) < len(turns):
        start = kept[0].position if kept else before
        here = and_(col(Conversation.user_id) == conversation.user_id, col(Conversation.id) == conversation.id)
        session.execute(update(Conversation).where(here).values(history_start=start))
    return kept


def _cut(turns: list[Turn], budget: int) -> list[Turn]:
    """All turns while they fit; else the newest that fit half the budget, so that the next cut is many turns away."""
    if len(turns) <= MAX_HISTORY_TURNS and sum(turn.tokens for turn in turns) <= budget:
        return turns
    kept: list[Turn] = []
    room = budget // 2
    for turn in reversed(turns[-MAX_HISTORY_TURNS // 2 :]):
        room -= turn.tokens
        if room < 0:
            break
        kept.insert(0, turn)
    return kept


def _turns(session: Session, user_id: str, messages: Sequence[Message]) -> list[Turn]:
    """Messages put together into turns, in order, with the calls of each. Words nobody said begin no turn."""
    replies = {message.turn_id: message.content for message in messages if message.role == "assistant"}
    calls = _calls(session, user_id, [message.turn_id for message in messages])
    return [
        Turn(
            turn_id=said.turn_id,
            position=said.position,
            message=said.content,
            said_at=said.created_at,
            timezone=said.timezone,
            calls=calls[said.turn_id],
            reply=replies.get(said.turn_id),
        )
        for said in messages
        if said.role == "user"
    ]


def _calls(session: Session, user_id: str, turn_ids: list[UUID]) -> dict[UUID, list[ToolCall]]:
    found: dict[UUID, list[ToolCall]] = defaultdict(list)
    if turn_ids:
        statement = select(ToolCall).where(ToolCall.user_id == user_id, col(ToolCall.turn_id).in_(set(turn_ids)))
        for call in session.exec(statement.order_by(col(ToolCall.turn_id), col(ToolCall.position))):
            found[call.turn_id].append(call)
    return found
