"""A short transaction on behalf of one person: the only way in which the program uses the database.

Every transaction begins by telling Postgres whom it is for (`app.user_id`), which row-level security then enforces.
The setting ends with the transaction, so it is safe behind a pooler in transaction mode; the session is never touched.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import pg8000  # type: ignore[import-untyped]
from aws_lambda_powertools import Logger
from sqlalchemy import Executable, Row, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlmodel import Session

from taskchat import deadline
from taskchat.database.engine import create_engine_for, refuse_unsafe_role
from taskchat.errors import CommitOutcomeUnknown, DatabaseUnavailable

RETRY_AFTER: Final = 2
"""Seconds a caller is asked to wait when the database is away."""

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 0.4
"""Seconds between two attempts to reach a database that is away. Each pause is twice as long as the one before."""

T = TypeVar("T")

_PASSING_SQLSTATES: Final = ("08", "53", "57", "40", "55P03", "25P03", "28")
"""Connection lost, out of resources, shut down or timed out, deadlock, lock and idle timeout, wrong password."""

logger = Logger()


def _is_passing(error: SQLAlchemyError | OSError) -> bool:
    if not isinstance(error, DBAPIError):
        return isinstance(error, OSError | PoolTimeout)
    if error.connection_invalidated or not isinstance(error.orig, pg8000.DatabaseError):
        return True
    answer = error.orig.args[0] if error.orig.args else None
    return not isinstance(answer, dict) or str(answer.get("C", "")).startswith(_PASSING_SQLSTATES)


def _is_answered(error: SQLAlchemyError | OSError) -> bool:
    """Whether the error is the database's own answer, after which a commit has definitely not taken effect."""
    return isinstance(error, DBAPIError) and isinstance(error.orig, pg8000.DatabaseError)


_ACT_FOR: Final = text("select set_config('app.user_id', :user_id, true)")


def _kind(error: Exception) -> str:
    """The error's kind and SQLSTATE: its text may quote values."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    answer = cause.args[0] if cause.args else None
    return f"{type(cause).__name__} {answer.get('C', '')}".strip() if isinstance(answer, dict) else type(cause).__name__


_CHECKS: Final = "taskchat.checks"
_CHECKS_AFTER: Final = "taskchat.checks_after"


def before_commit(session: Session, check: Callable[[], None]) -> None:
    """Have `check` run before the transaction commits, and not commit if it raises.

    That is the place to look at an answer which nothing else depends on: it need not be waited for on its own.
    """
    session.info.setdefault(_CHECKS, []).append(check)


def after_commit(session: Session, check: Callable[[], None]) -> None:
    """Have `check` run after the transaction has committed. It may raise, which undoes nothing.

    That is the place to look at an answer to a statement that did nothing if it found nothing.
    """
    session.info.setdefault(_CHECKS_AFTER, []).append(check)


def undo(session: Session) -> None:
    """Roll back, and leave nothing to be checked or committed. What has been read stays readable."""
    session.expunge_all()
    session.rollback()
    session.info.pop(_CHECKS, None)


async def retry_while_away(attempt: Callable[[], T], seconds: float) -> T:
    """Return what `attempt` returns. Repeat it while the database is away, so many seconds long or to the deadline.

    Raises what the last attempt raised.
    """
    end, pause = time.monotonic() + min(seconds, deadline.remaining()), FIRST_PAUSE
    while True:
        try:
            return attempt()
        except DatabaseUnavailable:
            if time.monotonic() + pause >= end:
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


@dataclass
class Answer:
    """What the database answered to a statement of a batch. Empty until the batch is sent."""

    rows: list[Row[Any]] = field(default_factory=list)

    def first(self) -> Row[Any] | None:
        """Return the first row, or None."""
        return self.rows[0] if self.rows else None

    def objects(self) -> list[Any]:
        """Return the first column of each row: the objects of a statement that selects a model."""
        return [row[0] for row in self.rows]


class Batch:
    """Statements that go to the database together, in one roundtrip. Each sees what those before it did."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._waiting: list[tuple[Executable, dict[str, Any], Answer]] = []

    def add(self, statement: Executable, parameters: dict[str, Any]) -> Answer:
        """Return where the answer will be once the batch is sent."""
        answer = Answer()
        self._waiting.append((statement, parameters, answer))
        return answer

    def send(self) -> None:
        """Send the statements and wait for all answers. Raises the first error of any of them."""
        sent = [(self._session.execute(statement, values), answer) for statement, values, answer in self._waiting]
        self._waiting = []
        for result, answer in sent:
            answer.rows = list(result.all()) if getattr(result, "returns_rows", True) else []  # an insert need not


class Database:
    """Transactions on behalf of a person. Holds no state but the engine's one connection."""

    def __init__(self, url: str) -> None:
        """`url` is the pooled endpoint's, with the runtime role. Raises ValueError when it is no Postgres URL."""
        self.engine = create_engine_for(url, check=refuse_unsafe_role)

    @contextmanager
    def transaction(self, user_id: str) -> Iterator[Session]:
        """One transaction in which only `user_id`'s rows exist. Commits at the end, rolls back on any exception.

        Raises DatabaseUnavailable when the database cannot be reached or gives up: nothing was done then. Raises
        CommitOutcomeUnknown when the connection is lost while it commits: all of it was done, will be, or nothing.
        """
        is_committing = False
        try:
            with self._begin(user_id) as session:
                yield session
                for check in session.info.get(_CHECKS, ()):
                    check()
                is_committing = True
                session.commit()
                for check in session.info.get(_CHECKS_AFTER, ()):
                    check()
        except (SQLAlchemyError, OSError) as error:
            if not _is_passing(error):
                raise
            is_unknown = is_committing and not _is_answered(error)
            logger.error("database unavailable", extra={"reason": _kind(error), "commit_outcome_unknown": is_unknown})
            raise (CommitOutcomeUnknown if is_unknown else DatabaseUnavailable)(retry_after=RETRY_AFTER) from error

    def _begin(self, user_id: str) -> Session:
        """A session in a transaction of the person's. It goes out with the first statement that is waited for."""
        session = Session(self.engine, expire_on_commit=False, autoflush=False)
        try:
            session.execute(_ACT_FOR, {"user_id": user_id})
        except BaseException:
            session.close()
            raise
        return session

    def connect(self) -> None:
        """Have the connection ready. Raises what connecting raises."""
        with self.engine.connect():
            pass

    def close(self) -> None:
        """Give the connection back, as before a snapshot or at the end of a test."""
        self.engine.dispose()
