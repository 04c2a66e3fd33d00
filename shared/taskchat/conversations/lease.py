"""The lease of a conversation: an expiry and a fencing token on its row, so that one turn at a time may write."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, NoReturn
from uuid import UUID

from sqlalchemy import ARRAY, Interval, Result, Row, and_, any_, bindparam, case, func, or_, select, update
from sqlmodel import Session

from taskchat import deadline
from taskchat.conversations.models import CONVERSATION, POSITION_OF_TURN, THIS_CONVERSATION
from taskchat.database.transaction import after_commit, before_commit
from taskchat.database.types import Timestamp, at_least_zero
from taskchat.errors import NotFound, TurnInProgress

LEASE_SECONDS: Final = 15.0
"""Seconds of a lease from each renewal: after a crash the conversation is open again so soon."""

LEASE_GRACE: Final = 5.0
"""Seconds by which a lease may outlive its request's deadline: the turn still stores its end then."""

MAX_RETRY_AFTER: Final = 2
"""Seconds a caller is asked to wait at most: a running turn nearly always ends within them."""

_NOW: Final = func.clock_timestamp()
# A fence alone is not enough: a rollback frees its number, and a conversation that was deleted and begun anew counts
# from 0 again. Another process may hold the same number, but no lease that ends at the same microsecond.
_LEASED: Final = and_(
    THIS_CONVERSATION,
    CONVERSATION.c.fence == bindparam("of_fence"),
    CONVERSATION.c.lease_until == any_(bindparam("of_ends", type_=ARRAY(Timestamp))),
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
RENEW_LEASE: Final = (
    update(CONVERSATION)
    .where(_LEASED)
    .values(lease_until=bindparam("new_until", type_=Timestamp))
    .returning(CONVERSATION.c.fence)
)
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
    ends: tuple[datetime, ...]
    """The ends that it may have by now, the latest last: more than one while a renewal's commit has no answer.

    By the database's clock, to the microsecond: no two leases of one turn have the same.
    """
    ends_at: float
    """The latest end by this process's time of day, which goes on while Lambda freezes the process."""

    def check(self, session: Session) -> None:
        """Hold the lease until the transaction ends. If the lease is lost, it rolls back and raises LeaseLost."""
        held = session.execute(HOLD_LEASE, self.key())
        before_commit(session, lambda: require_lease(held))

    def release(self, session: Session) -> None:
        """Release the lease. Raises LeaseLost."""
        require_lease(session.execute(RELEASE_LEASE, self.key()))

    def extended(self) -> "Lease":
        """Return the lease with one more end, so much later as time has passed. `renew` stores that end.

        Postgres does not choose the end: after a commit without an answer, the process must know both possible ends.
        """
        ends_at = time.time() + _lease_seconds()
        later = timedelta(seconds=min(max(0.0, ends_at - self.ends_at), LEASE_SECONDS))  # a clock may have been set
        return replace(self, ends=(*self.ends, self.ends[-1] + later), ends_at=ends_at)

    def renew(self, session: Session) -> "Lease":
        """Store the latest end, and return the lease that has no other. The end of the transaction raises LeaseLost."""
        renewed = session.execute(RENEW_LEASE, self.key() | {"new_until": self.ends[-1]})
        after_commit(session, lambda: require_lease(renewed))
        return replace(self, ends=self.ends[-1:])

    def key(self) -> dict[str, Any]:
        """Return the parameters of the statements that hold, renew or release this lease."""
        of = {"of_user": self.user_id, "of_id": self.conversation_id}
        return of | {"of_fence": self.fence, "of_ends": list(self.ends)}


def require_lease(result: Result[Any]) -> None:
    """Raise LeaseLost if a statement that needs the lease returned no row."""
    if result.one_or_none() is None:
        raise LeaseLost(retry_after=1)


def lease_parameters(own: Sequence[Lease]) -> dict[str, Any]:
    """Return ACQUIRE_LEASE's parameters: the length of the lease, and the ends of those that it may take over."""
    length = timedelta(seconds=_lease_seconds())
    return {"lease": length, "own_leases": [end for lease in own for end in lease.ends]}


def _lease_seconds() -> float:
    return min(deadline.remaining() + LEASE_GRACE, LEASE_SECONDS)


def lease_of(conversation: Row[Any], turn_id: UUID) -> Lease:
    """Return the lease that ACQUIRE_LEASE has just given to the turn."""
    ends_at = time.time() + _lease_seconds()
    ends = (conversation.lease_until,)
    return Lease(conversation.user_id, conversation.id, turn_id, conversation.fence, ends, ends_at)


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
