"""Open short transactions, each on behalf of one user. The program uses the database in no other way.

Every transaction begins by telling Postgres the user's id (`app.user_id`), which row-level security then enforces.
The setting ends with the transaction, so it is safe behind a pooler in transaction mode.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import pg8000  # type: ignore[import-untyped]
from aws_lambda_powertools import Logger
from sqlalchemy import Executable, Row, Select, TextClause, UpdateBase, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlmodel import Session

from taskchat import deadline, measures
from taskchat.database.engine import create_engine_for, refuse_unsafe_role_or_schema
from taskchat.database.pg8000_pipeline import PipelinedConnection
from taskchat.errors import CommitOutcomeUnknown, DatabaseUnavailable

RETRY_AFTER: Final = 2
"""Seconds after which a caller may retry when the database is unavailable."""

LOOKUP_SECONDS: Final = 3.0
"""Seconds to find out the outcome of a commit that the database did not answer. The deadline may leave fewer."""

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 0.4
"""Seconds between two attempts to reach the database. Each pause is twice as long as the one before."""

Returned = TypeVar("Returned")
Statement = Select[Any] | TextClause | UpdateBase

_TEMPORARY_SQLSTATES: Final = ("08", "53", "57", "40", "55P03", "25P03", "28")
"""Connection lost, out of resources, shut down or timed out, deadlock, lock and idle timeout, wrong password."""

_BEFORE_COMMIT: Final = "taskchat.before_commit"
_AFTER_COMMIT: Final = "taskchat.after_commit"

SET_USER: Final = text("select set_config('app.user_id', :user_id, true)")

logger = Logger()


def before_commit(session: Session, check: Callable[[], None]) -> None:
    """Run `check` before the transaction commits. If it raises, the transaction rolls back.

    A check reads the answer to a statement of the transaction, if nothing else depends on that answer. By then it has
    come with other answers, so the check costs no roundtrip.
    """
    session.info.setdefault(_BEFORE_COMMIT, []).append(check)


def after_commit(session: Session, check: Callable[[], None]) -> None:
    """Run `check` once the transaction has committed. What it raises undoes nothing.

    A check reads the answer to a statement that changes nothing when it finds no row, so there is nothing to roll back.
    That answer comes with the commit's, so the check costs no roundtrip.
    """
    session.info.setdefault(_AFTER_COMMIT, []).append(check)


def roll_back(session: Session) -> None:
    """Roll back, and leave nothing to be checked or committed. What has been read stays readable."""
    session.expunge_all()
    session.rollback()
    session.info.clear()


async def retry_while_unavailable(attempt: Callable[[], Returned]) -> Returned:
    """Return the result of `attempt`. Repeat it while the database is unavailable and time remains."""
    end, pause = time.monotonic() + min(LOOKUP_SECONDS, deadline.remaining()), FIRST_PAUSE
    while True:
        try:
            return attempt()
        except DatabaseUnavailable:
            if time.monotonic() + pause >= end:
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


@dataclass
class BatchResult:
    """Postgres's answer to one statement of a batch. Empty until the batch is sent."""

    rows: list[Row[Any]] = field(default_factory=list)

    def first(self) -> Row[Any] | None:
        return self.rows[0] if self.rows else None


class Batch:
    """Statements that go to the database together, in one roundtrip. Each sees the effects of those before it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._waiting: list[tuple[Executable, dict[str, Any], BatchResult]] = []

    def add(self, statement: Executable, parameters: dict[str, Any]) -> BatchResult:
        """Add a statement. Return its result, which `send` fills."""
        result = BatchResult()
        self._waiting.append((statement, parameters, result))
        return result

    def send(self) -> None:
        """Send the statements and wait for all answers. Raises the first error of any of them."""
        sent = [(self._session.execute(statement, values), result) for statement, values, result in self._waiting]
        self._waiting = []
        for answer, result in sent:
            result.rows = list(answer.all()) if getattr(answer, "returns_rows", True) else []  # an insert need not


class Database:
    """Transactions on behalf of a user. One engine with one connection, which `close` gives back."""

    def __init__(self, url: Callable[[], str], renew: Callable[[], bool] = lambda: False) -> None:
        """Call `url` for each new connection. It returns the pooled endpoint's URL, with the runtime role.

        When Postgres refuses the login, call `renew`, and connect again if it returns True.
        """
        self.engine = create_engine_for(url, check=refuse_unsafe_role_or_schema, renew=renew)
        self._is_prepared = False

    @contextmanager
    def transaction(self, user_id: str) -> Iterator[Session]:
        """Open a transaction that sees only `user_id`'s rows. Commit at the end, roll back on any exception.

        Raises DatabaseUnavailable when the database cannot be reached or gives up: nothing was done then. Raises
        CommitOutcomeUnknown when the connection is lost during the commit: everything was done, will be, or nothing.
        """
        is_committing, request = False, measures.current()
        try:
            with (
                request.timing("database_ms"),
                Session(self.engine, expire_on_commit=False, autoflush=False) as session,
            ):
                session.execute(SET_USER, {"user_id": user_id})
                yield session
                _run_checks(session, _BEFORE_COMMIT)
                is_committing = True
                session.commit()
                _run_checks(session, _AFTER_COMMIT)
        except (SQLAlchemyError, OSError) as error:
            if not _is_temporary(error):
                raise
            request.database_refused += 1
            is_unknown = is_committing and not _is_answer(error)
            logger.error("database unavailable", extra={"reason": _kind(error), "commit_outcome_unknown": is_unknown})
            raise (CommitOutcomeUnknown if is_unknown else DatabaseUnavailable)(retry_after=RETRY_AFTER) from error

    def prepare_statements(self, statements: Sequence[Statement]) -> None:
        """Connect. The first time, compile the statements and learn the columns of each; none is executed.

        Raises what connecting raises, and Postgres's error for a statement that it cannot parse.
        """
        with Session(self.engine) as session:
            connection: Any = session.connection().connection.dbapi_connection
            if not self._is_prepared and isinstance(connection, PipelinedConnection):  # stock pg8000 would execute them
                self._prepare(session, connection, [SET_USER, *statements])

    def _prepare(self, session: Session, connection: PipelinedConnection, statements: Sequence[Statement]) -> None:
        compiled = [statement.compile(dialect=self.engine.dialect) for statement in statements]
        connection.describe(str(one) for one in compiled)
        for statement, one in zip(statements, compiled, strict=True):
            required = [name for name, parameter in one.binds.items() if parameter.required]
            session.execute(statement, dict.fromkeys(required))  # queued, and given up with the session
        self._is_prepared = True

    def close(self) -> None:
        """Give the connection back, as before a snapshot or at the end of a test. The next use connects again."""
        self.engine.dispose()


def _run_checks(session: Session, moment: str) -> None:
    for check in session.info.get(moment, ()):
        check()


def _is_temporary(error: SQLAlchemyError | OSError) -> bool:
    """Tell if the same transaction may succeed later."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, OSError | PoolTimeout)
    if error.connection_invalidated or not _is_answer(error):
        return True
    return not _fields(error) or _fields(error).get("C", "").startswith(_TEMPORARY_SQLSTATES)


def _is_answer(error: SQLAlchemyError | OSError) -> bool:
    """Tell if the error is Postgres's own answer, after which a commit has definitely not taken effect."""
    return isinstance(error, DBAPIError) and isinstance(error.orig, pg8000.DatabaseError)


def _fields(error: Exception | None) -> dict[str, str]:
    """Return the fields of Postgres's answer, of which C is the SQLSTATE. Empty for any other error."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    answer = cause.args[0] if cause and cause.args else None
    return answer if isinstance(answer, dict) else {}


def _kind(error: Exception) -> str:
    """Return the error's kind and SQLSTATE. Its text may quote values."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    return f"{type(cause).__name__} {_fields(error).get('C', '')}".strip()
