"""Begin and finish a turn: one writer per conversation, each turn once.

Each function executes the statements of one short transaction. None waits for a model.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid4, uuid5

from sqlalchemy import Integer, Row, Uuid, bindparam, literal, select
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Session

from taskchat.conversations.history import (
    CALLS_OF_TURN,
    CALLS_SHOWN,
    EARLIER_MESSAGES,
    MESSAGE_COLUMNS,
    MESSAGES_OF_TURN,
    Turn,
    join_turns,
    keep_within,
)
from taskchat.conversations.lease import (
    ACQUIRE_LEASE,
    HOLD_LEASE,
    LOCK_CONVERSATION,
    RELEASE_LEASE,
    RENEW_LEASE,
    Lease,
    lease_of,
    lease_parameters,
    refuse,
    require_lease,
)
from taskchat.conversations.models import CONVERSATION, MESSAGE, THIS_CONVERSATION
from taskchat.database.transaction import Batch, after_commit, roll_back
from taskchat.database.types import SafeJson, SafeText
from taskchat.errors import KeyReused, NotFound
from taskchat.toolcalls.models import ToolCall

_NAMESPACE: Final = UUID("8c5f3f1e-0f0e-4f0b-9d53-1d7f0f7f6a52")  # of turn and conversation ids; random, made once
_TITLE_LENGTH: Final = 80

_CREATE_CONVERSATION: Final = (
    insert(CONVERSATION)
    .values(user_id=bindparam("of_user"), id=bindparam("of_id"), title=bindparam("new_title"))
    .on_conflict_do_nothing()
)
_MESSAGE_OF_LEASE: Final[dict[str, Any]] = {
    "user_id": CONVERSATION.c.user_id,
    "conversation_id": CONVERSATION.c.id,
    "position": CONVERSATION.c.next_position - 2,
    "turn_id": CONVERSATION.c.turn_id,
    "role": literal("user"),
    "content": bindparam("new_content", type_=SafeText),
    "timezone": bindparam("new_timezone", type_=SafeText),
    "request_hash": bindparam("new_hash", type_=SafeText),
}
_STORE_MESSAGE: Final = (
    insert(MESSAGE)
    .from_select(
        list(_MESSAGE_OF_LEASE),
        select(*_MESSAGE_OF_LEASE.values()).where(THIS_CONVERSATION, CONVERSATION.c.turn_id == bindparam("of_turn")),
    )
    .on_conflict_do_nothing()
    .returning(*MESSAGE_COLUMNS)
)
_RELEASED: Final = RELEASE_LEASE.cte("released")
_REPLY_OF_LEASE: Final[dict[str, Any]] = {
    "user_id": _RELEASED.c.user_id,
    "conversation_id": _RELEASED.c.id,
    "position": bindparam("new_position", type_=Integer),
    "turn_id": bindparam("of_turn", type_=Uuid),
    "role": literal("assistant"),
    "content": bindparam("new_content", type_=SafeText),
    "usage": bindparam("new_usage", type_=SafeJson),
}
_RELEASE_AND_STORE_REPLY: Final = (
    insert(MESSAGE).from_select(list(_REPLY_OF_LEASE), select(*_REPLY_OF_LEASE.values())).returning(MESSAGE.c.position)
)

STATEMENTS: Final = (
    _CREATE_CONVERSATION,
    ACQUIRE_LEASE,
    MESSAGES_OF_TURN,
    EARLIER_MESSAGES,
    CALLS_SHOWN,
    _STORE_MESSAGE,
    HOLD_LEASE,
    RENEW_LEASE,
    _RELEASE_AND_STORE_REPLY,
)
"""The statements of nearly every turn. SQLAlchemy finds a compiled one again if it gets the same parameters' names."""


@dataclass(frozen=True)
class Request:
    """A user's request, checked and in its final form."""

    message: str
    conversation_id: UUID | None = None
    timezone: str | None = None
    makes_conversation: bool = False
    """True if the conversation is made when there is none of this id. It is the protocol's, and not in the hash."""

    @property
    def hash(self) -> str:
        """Return the same text for equal requests: a key that comes back must bring the same one."""
        fields = [self.message, self.conversation_id and str(self.conversation_id), self.timezone]
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()

    def conversation_of(self, turn_id: UUID) -> UUID:
        """Return the conversation of the turn: a new one has an id of the turn's own, the same in each attempt."""
        return self.conversation_id or uuid5(turn_id, "conversation")


@dataclass(frozen=True)
class Begun:
    """A turn that may run now. `turn.calls` are the calls of an earlier, interrupted attempt."""

    lease: Lease
    turn: Turn
    history: list[Turn]


@dataclass(frozen=True)
class Finished:
    """A turn that is already done, with its answer as it was."""

    conversation_id: UUID
    turn: Turn


def turn_id_for(user_id: str, idempotency_key: str | None) -> UUID:
    """Return the same id for the same user and key, and a new one if there is no key."""
    return uuid4() if idempotency_key is None else uuid5(_NAMESPACE, f"{user_id}\n{idempotency_key}")


def begin(
    session: Session,
    user_id: str,
    turn_id: UUID,
    request: Request,
    history_tokens: int,
    own: Sequence[Lease] = (),
) -> Begun | Finished:
    """Take the lease, read the history, and store the message: once, however often the turn is tried.

    It takes over a lease among `own`: leases that the same process got by commits of unknown outcome.
    Raises NotFound, also for a turn whose conversation was deleted after its first call, TurnInProgress, or KeyReused
    when `turn_id` belongs to another request.
    """
    this_turn = {"of_user": user_id, "of_turn": turn_id}
    here = this_turn | {"of_id": request.conversation_of(turn_id)}
    batch = Batch(session)
    if request.conversation_id is None or request.makes_conversation:
        title = request.message.split("\n")[0][:_TITLE_LENGTH]
        batch.add(_CREATE_CONVERSATION, {"of_user": user_id, "of_id": here["of_id"], "new_title": title})
    if own:  # their commit may be under way: statements after the lock see its effects
        batch.add(LOCK_CONVERSATION, here)
    acquired = batch.add(ACQUIRE_LEASE, here | lease_parameters(own))
    # Each statement sees what was committed before it began. With the lock held, no other process changes this turn.
    of_turn = batch.add(MESSAGES_OF_TURN, this_turn)
    earlier = batch.add(EARLIER_MESSAGES, here)
    shown = batch.add(CALLS_SHOWN, here)
    new = {"new_content": request.message, "new_timezone": request.timezone, "new_hash": request.hash}
    stored = batch.add(_STORE_MESSAGE, here | new)
    batch.send()

    calls = [row[0] for row in shown.rows]
    messages = {row.role: row for row in of_turn.rows}
    if "user" in messages and messages["user"].request_hash != request.hash:
        raise KeyReused
    if "assistant" in messages:
        return _finished(session, messages, calls)
    conversation = acquired.first() or refuse(session, here)
    if "user" not in messages and any(call.turn_id == turn_id for call in calls):
        raise NotFound  # the turn was done, and its conversation deleted since
    message = messages.get("user") or stored.first()
    if message is None:  # another transaction has stored another message under this key since we looked
        raise KeyReused
    (turn,) = join_turns([message], calls)
    history = join_turns(earlier.rows[::-1], calls)
    kept = keep_within(session, conversation, history, turn.position, history_tokens)
    return Begun(lease_of(conversation, turn_id), turn, kept)


def finish(session: Session, lease: Lease, turn: Turn, reply: str, usage: dict[str, Any]) -> None:
    """Store the turn's reply and release the lease. The end of the transaction raises LeaseLost.

    One statement does both, so that it stores nothing without the lease, and nothing need be read before the commit.
    """
    new = {"of_turn": turn.turn_id, "new_position": turn.position + 1, "new_content": reply, "new_usage": usage}
    stored = session.execute(_RELEASE_AND_STORE_REPLY, lease.key() | new)
    after_commit(session, lambda: require_lease(stored))


def recorded_calls(session: Session, lease: Lease) -> list[ToolCall]:
    """Return the committed calls of the turn, those that failed too."""
    return list(session.scalars(CALLS_OF_TURN, {"of_user": lease.user_id, "of_turn": lease.turn_id}))


def _finished(session: Session, messages: dict[str, Row[Any]], calls: list[ToolCall]) -> Finished:
    """Return the turn as it was, and roll back: the lease was taken only to look at it."""
    (turn,) = join_turns(list(messages.values()), calls)
    roll_back(session)
    return Finished(messages["user"].conversation_id, turn)
