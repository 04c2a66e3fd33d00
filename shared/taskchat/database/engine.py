"""One engine, one connection, and one way to use it: a short transaction on behalf of one person.

Every transaction begins by telling Postgres who it is for (`app.user_id`), which row-level security then enforces.
The setting ends with the transaction, so it is safe behind a pooler in transaction mode; the session is never touched.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import pg8000  # type: ignore[import-untyped]
from aws_lambda_powertools import Logger
from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlmodel import Session, SQLModel

from taskchat import deadline
from taskchat.database import pg8000_pipeline as pipeline
from taskchat.errors import CommitOutcomeUnknown, DatabaseUnavailable
from taskchat.postgres_url import PostgresUrl, parse
from taskchat.settings import SettingsError

CONNECT_TIMEOUT: Final = 5.0
"""Seconds to connect, and to wait for one answer. A suspended Neon wakes well within it."""

RECYCLE_AFTER: Final = 240
"""Seconds until a connection is replaced: under the 300 after which Neon suspends and drops it."""

RETRY_AFTER: Final = 2
"""Seconds a caller is asked to wait when the database is away."""

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 0.4
"""Seconds between two attempts to reach a database that is away. Each pause is twice as long as the one before."""

ROUNDTRIPS: Final = {"connect": 6, "exchange": 2, "statement": 3}
"""How often the server is waited for in one step at most. The time that is left is shared out among them.

An exchange is waited for twice when a dead connection had to be replaced, a statement of stock pg8000 three times.
"""

T = TypeVar("T")

logger = Logger()

_PASSING_SQLSTATES: Final = ("08", "53", "57", "40", "55P03", "25P03", "28")
"""Connection lost, out of resources, shut down or timed out, deadlock, lock and idle timeout, wrong password."""


class UnsafeRole(SettingsError):
    """Raised when the role in DATABASE_URL could ignore row-level security: it would be served everybody's rows."""


def _tls(url: PostgresUrl) -> ssl.SSLContext | bool:
    """Return the TLS that the URL asks for, and never less: certificates are verified unless TLS is off."""
    return url.has_tls and ssl.create_default_context(cafile=url.authorities)


def connect_arguments(url: str) -> tuple[dict[str, Any], bool]:
    """Return pg8000's arguments for a libpq URL, and whether channel binding is required.

    Raises ValueError for a URL that cannot work.
    """
    parsed = parse(url)
    arguments = {
        "host": parsed.host,
        "port": parsed.port,
        "user": parsed.user,
        "password": parsed.password,
        "database": parsed.database,
        "ssl_context": _tls(parsed),
        "timeout": float(parsed.connect_timeout or CONNECT_TIMEOUT),  # there is no such thing as unlimited here
        "application_name": "taskchat",
    }
    return arguments, parsed.needs_channel_binding


def create_engine_for(url: str, patience: float | None = None, check: Callable[[Any], None] | None = None) -> Engine:
    """An engine for a libpq URL: one pooled connection, replaced in time.

    It waits for one answer no longer than `patience` seconds (CONNECT_TIMEOUT if left out), nor past the deadline.
    `check` raises when a connection that has just been made must not be used.
    """
    arguments, binding_required = connect_arguments(url)
    most: float = patience or arguments["timeout"]

    def accept(connection: Any) -> None:
        if binding_required and not str(connection.auth.mechanism_name).endswith("-PLUS"):
            raise pg8000.InterfaceError("the server did not offer the channel binding that DATABASE_URL requires")
        if check:
            check(connection)

    def connect_with() -> dict[str, Any]:
        return arguments | {"timeout": _patience(most, "connect")}

    engine = _pipelined(connect_with, most, accept) if pipeline.is_supported() else _stock(connect_with, most, accept)
    event.listen(engine, "handle_error", _distrust_connection)
    return engine


_POOL: Final[dict[str, Any]] = {
    "pool_size": 1,
    "max_overflow": 0,
    "pool_timeout": CONNECT_TIMEOUT,
    "pool_recycle": RECYCLE_AFTER,
    "hide_parameters": True,  # exceptions end in logs, parameters are people's words
}


def _pipelined(connect_with: Callable[[], dict[str, Any]], most: float, accept: Callable[[Any], None]) -> Engine:
    shapes: pipeline.Shapes = {}

    def connect() -> Any:
        return pipeline.PipelinedConnection(connect_with, lambda: _patience(most, "exchange"), accept, shapes)

    return create_engine(pipeline.URL, creator=connect, **_POOL)


def _stock(connect_with: Callable[[], dict[str, Any]], most: float, accept: Callable[[Any], None]) -> Engine:
    """What is left where the driver is not the one that was tested: every promise, at several times the roundtrips."""
    logger.warning("driver not pipelined", extra={"pg8000": pg8000.__version__, "tested_with": pipeline.TESTED_WITH})

    def connect() -> Any:
        connection = pipeline.TidyConnection(**connect_with())
        try:
            accept(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def limit(connection: Connection, *_: Any) -> None:
        driver: Any = connection.connection.dbapi_connection
        driver.wait_at_most(_patience(most, "statement"))

    engine = create_engine("postgresql+pg8000://", creator=connect, pool_pre_ping=True, **_POOL)
    event.listen(engine, "before_cursor_execute", limit)
    event.listen(engine, "commit", limit)
    return engine


def _patience(most: float, step: str) -> float:
    """Seconds to wait for one roundtrip, so that the whole step ends before the deadline."""
    return min(most, max(deadline.remaining(), 0.0) / ROUNDTRIPS[step] + 0.001)  # 0 would mean not to wait at all


def _distrust_connection(context: ExceptionContext) -> None:
    """Drop the connection after any error that is not the database's own answer: its protocol state is unknown."""
    if not isinstance(context.original_exception, pg8000.DatabaseError):
        context.is_disconnect = True


_COULD_BYPASS: Final = """
select exists (
    select from pg_roles r
    where (r.rolsuper or r.rolbypassrls) and pg_has_role(current_user, r.oid, 'member')
) or exists (
    select from pg_class c
    where c.relname in ({tables}) and c.relkind = 'r'
    and (pg_has_role(current_user, c.relowner, 'member') or not c.relrowsecurity or not c.relforcerowsecurity)
)
"""


def _refuse_unsafe_role(connection: Any) -> None:
    tables = ", ".join(f"'{name}'" for name in SQLModel.metadata.tables)  # of the program's own code, not of a request
    (unsafe,) = connection.execute_simple(_COULD_BYPASS.format(tables=tables)).rows[0]
    if unsafe:
        raise UnsafeRole(
            "Row-level security would not bind the role in DATABASE_URL: it is or may become a superuser, a role with "
            "BYPASSRLS or the owner of the tables, or the tables' security is off."
        )


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


def before_commit(session: Session, check: Callable[[], None]) -> None:
    """Have `check` run before the transaction commits, and not commit if it raises.

    That is the place to look at an answer which nothing else depends on: it need not be waited for on its own.
    """
    session.info.setdefault(_CHECKS, []).append(check)


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


class Database:
    """Transactions on behalf of a person. Holds no state but the engine's one connection."""

    def __init__(self, url: str) -> None:
        """`url` is the pooled endpoint's, with the runtime role. Raises ValueError when it is no Postgres URL."""
        self.engine = create_engine_for(url, check=_refuse_unsafe_role)

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
