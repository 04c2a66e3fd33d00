"""Limit each user at an entry point: a burst of requests, then a steady rate, and model tokens by the day.

One row holds a user's use, and one statement both checks and changes it, so the count is exact under any concurrency.
The rate limit is a token bucket. The row stores the time at which the bucket is full again. Each request moves that
time by the seconds in which one token comes back. Postgres refuses a request that would move it further into the future
than an empty bucket takes to fill.
"""

import math
import time
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final, Literal

from aws_lambda_powertools import Logger
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Index,
    Interval,
    and_,
    bindparam,
    case,
    cast,
    func,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlmodel import Field, Session, SQLModel

from taskchat import measures
from taskchat.database.transaction import before_commit
from taskchat.database.types import SafeText, Timestamp, at_least_zero, declare, expires, runtime_rights
from taskchat.errors import TooManyRequests


class Allowance(SQLModel, table=True):
    """A user's recent use of an entry point."""

    __table_args__ = (
        CheckConstraint("door in ('chat', 'mcp', 'data')", name="allowance_door_check"),
        Index("allowance_day_idx", "day"),
        # An operator may have set `full_at` to a day to come, to refuse the user until then.
        declare(runtime_rights("select, insert, update, delete"), expires("day", "full_at")),
    )

    user_id: str = Field(sa_type=SafeText, primary_key=True)
    door: str = Field(sa_type=SafeText, primary_key=True)
    full_at: datetime = Field(sa_type=Timestamp)
    """When the user's bucket is full again if they take nothing more from it. In the past for a full one."""
    day: date
    """The day, by UTC, that `model_tokens` are of."""
    model_tokens: int = Field(sa_column=Column(BigInteger, nullable=False))
    """Input and output together, of all models."""


ALLOWANCE: Final = SQLModel.metadata.tables["allowance"]

_NO_RATE_LIMIT: Final = {"interval": timedelta(), "bucket": timedelta(days=36_500)}
"""Parameters that disable the rate limit, whatever the stored row says."""

_NO_QUOTA: Final = 2**63 - 1

# Values are parameters, as in history.py. Postgres reads the clock once it has locked the row, because a request may
# have waited for others until then. The clock is the database's, so that all processes know the same midnight.
_NOW: Final = func.clock_timestamp()
_UTC: Final = func.timezone("UTC", _NOW)
_TODAY: Final = cast(_UTC, Date)
_INTERVAL: Final = bindparam("interval", type_=Interval)
_BUCKET: Final = bindparam("bucket", type_=Interval)
_QUOTA: Final = bindparam("quota", type_=BigInteger)
_FULL_AT: Final = func.greatest(ALLOWANCE.c.full_at, _NOW) + _INTERVAL
_USED_TODAY: Final = case((ALLOWANCE.c.day == _TODAY, ALLOWANCE.c.model_tokens), else_=0)
_ROW: Final = {"user_id": bindparam("of_user"), "door": bindparam("of_door"), "day": _TODAY}
_KEY: Final = ["user_id", "door"]
_DAY: Final = timedelta(days=1)

_SPEND: Final = (
    insert(ALLOWANCE)
    .values(_ROW | {"full_at": _NOW + _INTERVAL, "model_tokens": 0})
    .on_conflict_do_update(
        index_elements=_KEY,
        set_={"full_at": _FULL_AT, "day": _TODAY, "model_tokens": _USED_TODAY},
        where=and_(_FULL_AT <= _NOW + _BUCKET, _USED_TODAY < _QUOTA),
    )
    .returning(ALLOWANCE.c.model_tokens, cast(ALLOWANCE.c.day + _DAY, DateTime) - _UTC)
)
_THIS_ROW: Final = and_(ALLOWANCE.c.user_id == bindparam("of_user"), ALLOWANCE.c.door == bindparam("of_door"))
# Only an update: a turn that was running while its person was erased must write no row.
_RECORD: Final = (
    update(ALLOWANCE)
    .where(_THIS_ROW)
    .values(day=_TODAY, model_tokens=_USED_TODAY + bindparam("used", type_=BigInteger))
)
_REFUSED_FOR: Final = select(
    at_least_zero(ALLOWANCE.c.full_at + _INTERVAL - _BUCKET - _NOW),
    case((_USED_TODAY >= _QUOTA, cast(_TODAY + _DAY, DateTime) - _UTC)),
).where(_THIS_ROW)

STATEMENTS: Final = (_SPEND, _RECORD)
"""The statements of nearly every turn."""

_DAY_USED_UP: Final = "The day's model tokens are used up."

logger = Logger()


@dataclass
class DayLeft:
    """The tokens left of a user's day when a request began. Set once its transaction has committed."""

    model_tokens: float = math.inf
    ends_at: float = math.inf
    """The moment, by time.monotonic, at which the database's day ends and the quota is whole again."""

    def check(self, used: int) -> None:
        """Raise TooManyRequests if the request, which has used `used` tokens by now, may use no more."""
        seconds = self.ends_at - time.monotonic()
        if used >= self.model_tokens and seconds > 0:
            measures.current().refused_by_limit += 1
            raise TooManyRequests(_DAY_USED_UP, retry_after=math.ceil(seconds))


@dataclass(frozen=True)
class Limits:
    """The limits of each user at an entry point. 0 stands for no limit."""

    door: Literal["chat", "mcp", "data"]
    """`data` is for the routes on which a person reads and manages their own data."""
    burst: int
    per_minute: int
    daily_model_tokens: int = 0

    @property
    def any(self) -> bool:
        return bool(self.daily_model_tokens or self._has_bucket)

    def spend(self, session: Session, user_id: str) -> DayLeft:
        """Take one request from the user's limits, in the caller's transaction. Return the rest of their day.

        The transaction raises TooManyRequests before it commits, if nothing is left.
        """
        left = DayLeft()
        if not self.any:
            return left
        taken = session.execute(_SPEND, self._values(user_id))

        def confirm() -> None:
            row = taken.one_or_none()
            if row is None:
                raise self._refusal(session, user_id)
            if self.daily_model_tokens:
                used, until_midnight = row
                left.model_tokens = self.daily_model_tokens - used
                left.ends_at = time.monotonic() + until_midnight.total_seconds()

        before_commit(session, confirm)
        return left

    def record(self, session: Session, user_id: str, model_tokens: int) -> None:
        """Add to the day's model tokens, in the caller's transaction. `spend` made the row when the request began."""
        if self.daily_model_tokens and model_tokens:
            session.execute(_RECORD, {"of_user": user_id, "of_door": self.door, "used": model_tokens})

    @property
    def _has_bucket(self) -> bool:
        return self.burst > 0 and self.per_minute > 0

    def _values(self, user_id: str) -> dict[str, Any]:
        interval = timedelta(minutes=1) / max(self.per_minute, 1)
        bucket = {"interval": interval, "bucket": self.burst * interval} if self._has_bucket else _NO_RATE_LIMIT
        return {"of_user": user_id, "of_door": self.door, "quota": self.daily_model_tokens or _NO_QUOTA, **bucket}

    def _refusal(self, session: Session, user_id: str) -> TooManyRequests:
        """Return the reason and the time to wait. They still hold: the statement that refused has locked the row."""
        until_token, until_midnight = session.execute(_REFUSED_FOR, self._values(user_id)).one()
        wait = max(until_token, until_midnight or until_token)
        retry_after = max(1, math.ceil(wait.total_seconds()))
        measures.current().refused_by_limit += 1
        logger.warning("limit reached", extra={"actor": user_id, "door": self.door, "retry_after": retry_after})
        detail = _DAY_USED_UP if until_midnight else "Too many at once."
        return TooManyRequests(detail, retry_after=retry_after)
