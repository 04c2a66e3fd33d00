"""Turns and their history: one writer per conversation, each turn once.

A turn takes a lease on its conversation's row, with an expiry and a fencing number, and commits nothing without it.
Nothing here waits for a model: each function is one short transaction's worth of statements.
"""

import hashlib
import json
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Final, NoReturn
from uuid import UUID, uuid4, uuid5

from sqlalchemy import ARRAY, Interval, Row, Uuid, and_, any_, bindparam, case, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session, col

from taskchat import deadline
from taskchat.conversations.models import CONVERSATION, MESSAGE
from taskchat.database.engine import before_commit, undo
from taskchat.database.types import SafeText, Timestamp
from taskchat.errors import KeyReused, NotFound, TurnInProgress
from taskchat.text import as_data, as_json
from taskchat.toolcalls.models import ToolCall

LEASE_GRACE: Final = 5.0
"""Seconds by which a lease outlives its request's deadline: no living turn loses it, and a crashed one is soon over."""

MAX_LEASE: Final = 40.0
"""Seconds of a lease where no deadline is set."""

MAX_RETRY_AFTER: Final = 2
"""Seconds a caller is asked to wait at most: a turn that still runs is nearly always over by then."""

MAX_HISTORY_TURNS: Final = 50
"""Earlier turns the model reads at most: what is older rarely matters, and every one costs."""

CHARACTERS_PER_TOKEN: Final = 4
"""A rough measure, the same for every model: the budget needs a bound, not a bill."""

_NAMESPACE: Final = UUID("8c5f3f1e-0f0e-4f0b-9d53-1d7f0f7f6a52")  # of turn and conversation ids; random, made once
_TITLE_LENGTH: Final = 80


# Values come in as parameters, never inside a statement: SQLAlchemy keeps each statement it has compiled, and with it
# what the first person to use it said.
_NOW: Final = func.clock_timestamp()
_HERE: Final = and_(CONVERSATION.c.user_id == bindparam("of_user"), CONVERSATION.c.id == bindparam("of_id"))
_LEASED: Final = and_(_HERE, CONVERSATION.c.fence == bindparam("of_fence"), CONVERSATION.c.lease_until > _NOW)
# A fence alone would not do: what was rolled back gave its number back, and another process may hold the same one.
_OWN: Final = and_(
    CONVERSATION.c.turn_id == bindparam("of_turn"),
    CONVERSATION.c.lease_until == any_(bindparam("own_leases", type_=ARRAY(Timestamp))),
)
_FREE: Final = and_(_HERE, or_(CONVERSATION.c.lease_until.is_(None), CONVERSATION.c.lease_until <= _NOW, _OWN))
_THIS_TURN: Final = and_(MESSAGE.c.user_id == bindparam("of_user"), MESSAGE.c.turn_id == bindparam("of_turn"))
_SAID: Final = select(MESSAGE.c.position).where(_THIS_TURN, MESSAGE.c.role == "user").correlate(None)
_BEFORE: Final = func.coalesce(
    _SAID.scalar_subquery(), select(CONVERSATION.c.next_position - 2).where(_HERE).scalar_subquery()
)
_START: Final = select(CONVERSATION.c.history_start).where(_HERE).scalar_subquery()
_EARLIER: Final = and_(
    MESSAGE.c.user_id == bindparam("of_user"),
    MESSAGE.c.conversation_id == bindparam("of_id"),
    MESSAGE.c.position >= _START,
    MESSAGE.c.position < _BEFORE,
)
_NEWEST_FIRST: Final = MESSAGE.c.position.desc()
_MOST: Final = 4 * MAX_HISTORY_TURNS  # two messages a turn, and as many again: more than these are not kept anyway

_CREATE: Final = insert(CONVERSATION).on_conflict_do_nothing()
_ACQUIRE: Final = (
    update(CONVERSATION)
    .where(_FREE)
    .values(
        turn_id=bindparam("of_turn"),
        lease_until=_NOW + bindparam("lease", type_=Interval),
        fence=CONVERSATION.c.fence + 1,
        next_position=CONVERSATION.c.next_position + case((_SAID.exists(), 0), else_=2),
    )
    .returning(CONVERSATION)
)
_LOCK: Final = select(CONVERSATION.c.fence).where(_HERE).with_for_update()
_HELD_FOR: Final = select(CONVERSATION.c.lease_until - _NOW, CONVERSATION.c.id).where(_HERE)
_CHECK: Final = select(CONVERSATION.c.fence).where(_LEASED).with_for_update(read=True)
_RELEASE: Final = (
    update(CONVERSATION)
    .where(_LEASED)
    .values(turn_id=None, lease_until=None, updated_at=_NOW)
    .returning(CONVERSATION.c.fence)
)
_CUT: Final = update(CONVERSATION).where(_HERE).values(history_start=bindparam("start"))
_READ: Final = [MESSAGE.c[name] for name in ("turn_id", "position", "role", "content", "created_at", "timezone")]
_OF_REQUEST: Final = [MESSAGE.c.conversation_id, MESSAGE.c.request_hash]
_SAYING: Final[dict[str, Any]] = {
    "user_id": CONVERSATION.c.user_id,
    "conversation_id": CONVERSATION.c.id,
    "position": CONVERSATION.c.next_position - 2,
    "turn_id": CONVERSATION.c.turn_id,
    "role": literal("user"),
    "content": bindparam("said", type_=SafeText),
    "timezone": bindparam("said_in", type_=SafeText),
    "request_hash": bindparam("asked", type_=SafeText),
}
_SAY: Final = (
    insert(MESSAGE)
    .from_select(list(_SAYING), select(*_SAYING.values()).where(_HERE, CONVERSATION.c.turn_id == bindparam("of_turn")))
    .on_conflict_do_nothing()
    .returning(*_READ)
)
_ANSWER: Final = insert(MESSAGE)
_OF_TURN: Final = select(*_READ, *_OF_REQUEST).where(_THIS_TURN)
_HISTORY: Final = select(*_READ).where(_EARLIER).order_by(_NEWEST_FIRST).limit(_MOST)
_OWN_CALLS: Final = select(ToolCall).where(col(ToolCall.user_id) == bindparam("of_user"))
_IN_ORDER: Final = (col(ToolCall.turn_id), col(ToolCall.position))
_EARLIER_TURNS: Final = func.array(
    select(MESSAGE.c.turn_id).where(_EARLIER).order_by(_NEWEST_FIRST).limit(_MOST).correlate(None).scalar_subquery()
)
_CALLS: Final = _OWN_CALLS.where(
    col(ToolCall.turn_id) == any_(func.array_append(_EARLIER_TURNS, bindparam("of_turn", type_=Uuid)))
).order_by(*_IN_ORDER)
_RECORDED: Final = _OWN_CALLS.where(col(ToolCall.turn_id) == bindparam("of_turn")).order_by(*_IN_ORDER)


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
    until: datetime
    """By the database's clock, to the microsecond: no two leases of one turn have the same."""

    def check(self, session: Session) -> None:
        """Hold the lease for the rest of the transaction, which raises LeaseLost before it commits if it is lost."""
        held = session.execute(_CHECK, self._key())

        def confirm() -> None:
            if held.one_or_none() is None:
                raise LeaseLost(retry_after=1)

        before_commit(session, confirm)

    def release(self, session: Session) -> None:
        """Let the next turn in. Raises LeaseLost."""
        if session.execute(_RELEASE, self._key()).one_or_none() is None:
            raise LeaseLost(retry_after=1)

    def _key(self) -> dict[str, Any]:
        return {"of_user": self.user_id, "of_id": self.conversation_id, "of_fence": self.fence}


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

    @cached_property
    def tokens(self) -> int:
        """About how much of a model's input this turn takes."""
        texts = [self.message, self.reply or ""]
        for call in self.calls:
            texts += [call.tool, as_json(call.arguments), as_data(call.result)]
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


def begin(
    session: Session,
    user_id: str,
    turn_id: UUID,
    request: Request,
    history_tokens: int,
    own: Sequence[Lease] = (),
) -> Begun | Finished:
    """Take the lease, read the history, and store what the person said: once, however often the turn is tried.

    A lease among `own` is taken over. The caller names those that it was given itself, by commits of unknown outcome.
    Raises NotFound, TurnInProgress, or KeyReused when `turn_id` belongs to another request.
    """
    here = {"of_user": user_id, "of_turn": turn_id, "of_id": request.conversation_id or uuid5(turn_id, "conversation")}
    if request.conversation_id is None:
        _create(session, here, request)
    if own:  # a commit of theirs may be under way: what comes after the lock sees what it did
        session.execute(_LOCK, here)
    own_leases = [lease.until for lease in own]
    acquired = session.execute(_ACQUIRE, {**here, "lease": _lease(), "own_leases": own_leases})
    # Each statement sees what was committed before it began; with the lock held, nobody begins or finishes this turn.
    of_turn = session.execute(_OF_TURN, here)
    earlier = session.execute(_HISTORY, here)
    calls = session.scalars(_CALLS, here)
    stored = session.execute(_SAY, {**here, **_said(request)})
    # All of them are sent by the time that the first is read.
    messages, made = {message.role: message for message in of_turn}, _by_turn(calls)
    if "user" in messages and messages["user"].request_hash != request.hash:
        raise KeyReused
    if "assistant" in messages:
        return _finished(session, messages, made)
    conversation = acquired.one_or_none() or _refuse(session, here)
    said = messages.get("user") or stored.one_or_none()
    if said is None:  # another transaction has said something else under this key since we looked
        raise KeyReused
    (turn,) = _turns([said], made)
    history = _history(session, conversation, _turns(earlier.all()[::-1], made), turn.position, history_tokens)
    lease = Lease(user_id, conversation.id, turn_id, conversation.fence, conversation.lease_until)
    return Begun(lease, turn, history)


def finish(session: Session, begun: Begun, reply: str, usage: dict[str, Any]) -> None:
    """Store the reply and let the next turn in. Raises LeaseLost."""
    begun.lease.release(session)
    answered = {
        "user_id": begun.lease.user_id,
        "conversation_id": begun.lease.conversation_id,
        "position": begun.turn.position + 1,
        "turn_id": begun.lease.turn_id,
        "role": "assistant",
        "content": reply,
        "usage": usage,
    }
    session.execute(_ANSWER, answered)


def recorded_calls(session: Session, lease: Lease) -> list[ToolCall]:
    """The calls of the turn that took effect or failed, as they are committed."""
    return list(session.scalars(_RECORDED, {"of_user": lease.user_id, "of_turn": lease.turn_id}))


def _finished(session: Session, messages: dict[str, Row[Any]], made: dict[UUID, list[ToolCall]]) -> Finished:
    """The turn as it was. The lease that was taken to look at it is not kept, nor is anything else of this attempt."""
    (turn,) = _turns(list(messages.values()), made)
    undo(session)
    return Finished(messages["user"].conversation_id, turn)


def _create(session: Session, here: dict[str, Any], request: Request) -> None:
    title = request.message.split("\n")[0][:_TITLE_LENGTH]
    session.execute(_CREATE, {"user_id": here["of_user"], "id": here["of_id"], "title": title})


def _said(request: Request) -> dict[str, Any]:
    return {"said": request.message, "said_in": request.timezone, "asked": request.hash}


def _lease() -> timedelta:
    return timedelta(seconds=min(deadline.remaining() + LEASE_GRACE, MAX_LEASE))


def _refuse(session: Session, here: dict[str, Any]) -> NoReturn:
    held = session.execute(_HELD_FOR, here).one_or_none()
    if held is None:
        raise NotFound
    remaining: timedelta = held[0] or timedelta()  # the other turn may just have ended
    raise TurnInProgress(retry_after=min(max(1, math.ceil(remaining.total_seconds())), MAX_RETRY_AFTER))


def _history(session: Session, conversation: Row[Any], turns: list[Turn], before: int, budget: int) -> list[Turn]:
    """Whole turns within the budget. Its start is kept in the row and moves in large steps."""
    turns = [_shorten(turn, budget // 2) for turn in turns]
    kept = _cut(turns, budget)
    if len(kept) < len(turns):
        here = {"of_user": conversation.user_id, "of_id": conversation.id}
        session.execute(_CUT, {**here, "start": kept[0].position if kept else before})
    return kept


def _cut(turns: list[Turn], budget: int) -> list[Turn]:
    """All turns while they fit; else the newest that fit half the budget, so that the next cut is many turns away."""
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
    """The turn, its texts cut to equal shares where it is larger than the budget; always to the same."""
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
    """The value, or as much of its beginning as is no longer than `length` when it is written."""
    if len(write(value)) <= length:
        return value
    text = as_json(value)
    fitting = bisect_right(range(1, length), length, key=lambda end: len(write({"shortened": text[:end]})))
    return {"shortened": text[:fitting]}


def _turns(messages: Sequence[Row[Any]], made: dict[UUID, list[ToolCall]]) -> list[Turn]:
    """Messages put together into turns, in order, with the calls of each. Words nobody said begin no turn."""
    replies = {message.turn_id: message.content for message in messages if message.role == "assistant"}
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


def _by_turn(calls: Iterable[ToolCall]) -> dict[UUID, list[ToolCall]]:
    found: dict[UUID, list[ToolCall]] = defaultdict(list)
    for call in calls:
        found[call.turn_id].append(call)
    return found
