"""The lease of a conversation: an expiry and a fencing token on its row, so that one turn at a time may write."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NoReturn
from uuid import UUID

from sqlalchemy import ARRAY, Interval, Result, and_, any_, bindparam, case, func, or_, select, update
from sqlmodel import Session

from taskchat import deadline
from taskchat.conversations.models import CONVERSATION, POSITION_OF_TURN, THIS_CONVERSATION
from taskchat.database.transaction import before_commit
from taskchat.database.types import Timestamp, at_least_zero
from taskchat.errors import NotFound, TurnInProgress

LEASE_GRACE: Final = 5.0
"""Seconds by which a lease outlives its request's deadline: no live turn loses it, and a crashed one soon does."""

MAX_LEASE: Final = 40.0
"""Seconds of a lease where no deadline is set."""

MAX_RETRY_AFTER: Final = 2
"""Seconds a caller is asked to wait at most: a running turn nearly always ends within them."""

_NOW: Final = func.clock_timestamp()
# A fence alone is not enough: a rollback frees its number, and a conversation that was deleted and begun anew counts
# from 0 again. Another process may hold the same number, but no lease that ends at the same microsecond.
_LEASED: Final = and_(
    THIS_CONVERSATION,
    CONVERSATION.c.fence == bindparam("of_fence"),
    CONVERSATION.c.lease_until == bindparam("of_until", type_=Timestamp),
    CONVERSATION.c.lease_until > _NOW,
)
_OWN: Final = and_(
    CONVERSATION.c.turn_id == bindparam("of_turn"),
    CONVERSATION.c.lease_until == any_(bindparam("own_leases", type_=ARRAY(Timestamp))),
)
_FREE: Final = and_(
    THIS_CONVERSATION, or_(CONVERSATION.c.lease_until.is_(None), CONVERSATION.c.lease_until <= _NOW, _OWN)
)

ACQUIRE_LEASE: Final = (
    update(CONVERSATION)
    .where(_FREE)
    .values(
        turn_id=bindparam("of_turn"),
        lease_until=_NOW + bindparam("lease", type_=Interval),
        fence=CONVERSATION.c.fence + 1,
        next_position=CONVERSATION.c.next_position + case((POSITION_OF_TURN.exists(), 0), else_=2),
    )
    .returning(CONVERSATION)
)
LOCK_CONVERSATION: Final = select(CONVERSATION.c.fence).where(THIS_CONVERSATION).with_for_update()
_REMAINING_LEASE: Final = select(at_least_zero(CONVERSATION.c.lease_until - _NOW)).where(THIS_CONVERSATION)
LOCK_REMAINING: Final = _REMAINING_LEASE.with_for_update()
HOLD_LEASE: Final = select(CONVERSATION.c.fence).where(_LEASED).with_for_update(read=True)
RELEASE_LEASE: Final = (
    update(CONVERSATION)
    .where(_LEASED)
    .values(turn_id=None, lease_until=None, updated_at=_NOW)
    .returning(CONVERSATION.c.user_id, CONVERSATION.c.id)
)


class LeaseLost(TurnInProgress):
    """Raised when a turn's lease ran out or was taken over: it may write nothing any more."""


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
        """Hold the lease until the transaction ends. If the lease is lost, it rolls back and raises LeaseLost."""
        held = session.execute(HOLD_LEASE, self.key())
        before_commit(session, lambda: require_lease(held))

    def release(self, session: Session) -> None:
        """Release the lease. Raises LeaseLost."""
        require_lease(session.execute(RELEASE_LEASE, self.key()))

    def key(self) -> dict[str, Any]:
        """Return the parameters of the statements that hold or release this lease."""
        return {"of_user": self.user_id, "of_id": self.conversation_id, "of_fence": self.fence, "of_until": self.until}


def require_lease(result: Result[Any]) -> None:
    """Raise LeaseLost if a statement that needs the lease returned no row."""
    if result.one_or_none() is None:
        raise LeaseLost(retry_after=1)


def lease_parameters(own: Sequence[Lease]) -> dict[str, Any]:
    """Return ACQUIRE_LEASE's parameters: the length of the lease, and the leases that it may take over."""
    seconds = min(deadline.remaining() + LEASE_GRACE, MAX_LEASE)
    return {"lease": timedelta(seconds=seconds), "own_leases": [lease.until for lease in own]}


def refuse(session: Session, here: dict[str, Any]) -> NoReturn:
    """Raise TurnInProgress for a conversation that another turn holds, or NotFound where there is none."""
    remaining = _read_remaining(session.execute(_REMAINING_LEASE, here))
    raise TurnInProgress(retry_after=_retry_after(remaining))  # if none remains, the other turn has just ended


def lock_free(session: Session, here: dict[str, Any]) -> None:
    """Lock a conversation in which no turn runs, until the transaction ends. Raises NotFound or TurnInProgress."""
    remaining = _read_remaining(session.execute(LOCK_REMAINING, here))
    if remaining > timedelta():
        raise TurnInProgress(retry_after=_retry_after(remaining))


def _read_remaining(found: Result[Any]) -> timedelta:
    row = found.one_or_none()
    if row is None:
        raise NotFound
    remaining: timedelta = row[0]
    return remaining


def _retry_after(remaining: timedelta) -> int:
    return min(max(1, math.ceil(remaining.total_seconds())), MAX_RETRY_AFTER)
