"""Make an engine with one connection for a libpq URL. It waits only until the deadline, and refuses unsafe roles."""

import ssl
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import pg8000  # type: ignore[import-untyped]
from aws_lambda_powertools import Logger
from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event
from sqlmodel import SQLModel

from taskchat import deadline
from taskchat.database import pg8000_pipeline as pipeline
from taskchat.database.schema import NEEDED
from taskchat.postgres_url import PostgresUrl, parse
from taskchat.settings import SettingsError

CONNECT_TIMEOUT: Final = 5.0
"""Seconds to connect, and to wait for one answer. A suspended Neon wakes well within it."""

RECYCLE_AFTER: Final = 240
"""Seconds until a connection is replaced: under the 300 after which Neon suspends and drops it."""

ROUNDTRIPS: Final = {"connect": 6, "exchange": 2, "statement": 3}
"""Waits for the server in one step at most; the waits share the time that is left. An exchange waits twice when
it had to replace a dead connection, a statement of stock pg8000 three times."""

logger = Logger()


class UnsafeRole(SettingsError):
    """Raised when the role in a database URL could ignore row-level security, and so see every user's rows."""


class OldSchema(SettingsError):
    """Raised when the schema is older than this code. Its text names both revisions."""


@lru_cache(maxsize=1)
def _tls_context(authorities: str | None) -> ssl.SSLContext:
    """Return a TLS context that verifies certificates. It is kept: to read the system's authorities takes 20 ms."""
    return ssl.create_default_context(cafile=authorities)


def connect_arguments(url: PostgresUrl) -> dict[str, Any]:
    """Return pg8000's arguments. Certificates are verified unless the URL says that there is no TLS."""
    return {
        "host": url.host,
        "port": url.port,
        "user": url.user,
        "password": url.password,
        "database": url.database,
        "ssl_context": url.has_tls and _tls_context(url.authorities),
        "timeout": float(url.connect_timeout or CONNECT_TIMEOUT),  # without a limit is not possible here
        "application_name": "taskchat",
    }


def create_engine_for(
    url: Callable[[], str],
    seconds: float | None = None,
    check: Callable[[Any], None] | None = None,
    renew: Callable[[], bool] = lambda: False,
) -> Engine:
    """Return an engine with one pooled connection, replaced in time. It calls `url` for each new connection.

    It waits for one answer no longer than `seconds` (the URL's connect_timeout if left out), nor past the deadline.
    `check` raises when a connection that has just been made must not be used. When Postgres refuses the login, `renew`
    is called, and the engine connects again if it returns True. Connecting raises ValueError for an impossible URL.
    """
    is_pipelined = pipeline.is_supported()
    shapes: pipeline.Shapes = {}

    def connect() -> Any:
        login = _Login(url, seconds, check, renew)
        if not is_pipelined:
            return _connect_stock(login)
        return pipeline.PipelinedConnection(login.arguments, login.patience, login.accept, shapes, login.renew)

    engine = create_engine(pipeline.URL, creator=connect, **_POOL) if is_pipelined else _create_stock_engine(connect)
    event.listen(engine, "handle_error", _distrust_connection)
    return engine


_POOL: Final[dict[str, Any]] = {
    "pool_size": 1,
    "max_overflow": 0,
    "pool_timeout": CONNECT_TIMEOUT,
    "pool_recycle": RECYCLE_AFTER,
    "hide_parameters": True,  # exceptions end in logs, and parameters hold texts of users
}


class _Login:
    """The URL of one connection, read again for each attempt to connect, and what follows from it."""

    def __init__(
        self,
        url: Callable[[], str],
        seconds: float | None,
        check: Callable[[Any], None] | None,
        renew: Callable[[], bool],
    ) -> None:
        self._url, self._seconds, self._check, self._renew = url, seconds, check, renew
        self._target = parse(url())

    @property
    def longest(self) -> float:
        return self._seconds or self._target.connect_timeout or CONNECT_TIMEOUT

    def arguments(self) -> dict[str, Any]:
        self._target = parse(self._url())
        return connect_arguments(self._target) | {"timeout": _time_for("connect", self.longest)}

    def patience(self) -> float:
        return _time_for("exchange", self.longest)

    def accept(self, connection: Any) -> None:
        """Check a connection that has just been made. Raises InterfaceError, and what the check raises."""
        if self._target.needs_channel_binding and not str(connection.auth.mechanism_name).endswith("-PLUS"):
            raise pg8000.InterfaceError("the server did not offer the channel binding that DATABASE_URL requires")
        if self._check:
            self._check(connection)

    def renew(self, error: Exception) -> bool:
        """Return True if the error refuses the login, and to try again may help."""
        answer = error.args[0] if error.args else None
        return isinstance(answer, dict) and _refuses_login(answer) and self._renew()


_REFUSED_BY_POOLER: Final = ("SASL authentication failed", "password authentication failed", "no such user")
"""Texts with which PgBouncer refuses a login. It has SQLSTATE 08P01 for these and for other errors."""


def _refuses_login(answer: dict[str, str]) -> bool:
    """Tell if the answer is for a wrong password, an unknown role, or one that may not log in."""
    return answer.get("C", "").startswith("28") or answer.get("M") in _REFUSED_BY_POOLER


def _connect_stock(login: _Login) -> Any:
    return pipeline.connect_again(lambda: _accepted(pipeline.TidyConnection(**login.arguments()), login), login.renew)


def _accepted(connection: Any, login: _Login) -> Any:
    connection.longest_wait = login.longest
    try:
        login.accept(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _create_stock_engine(connect: Callable[[], Any]) -> Engine:
    """Return an engine for a driver of another version. It keeps every promise, at several times the roundtrips."""
    logger.warning("driver not pipelined", extra={"pg8000": pg8000.__version__, "tested_with": pipeline.TESTED_WITH})

    def limit(connection: Connection, *_: Any) -> None:
        driver: Any = connection.connection.dbapi_connection
        driver.wait_at_most(_time_for("statement", driver.longest_wait))

    engine = create_engine("postgresql+pg8000://", creator=connect, pool_pre_ping=True, **_POOL)
    event.listen(engine, "before_cursor_execute", limit)
    event.listen(engine, "commit", limit)
    return engine


def _time_for(step: str, longest: float) -> float:
    """Return the seconds to wait for one roundtrip, so that the whole step ends before the deadline."""
    return min(longest, max(deadline.remaining(), 0.0) / ROUNDTRIPS[step] + 0.001)  # 0 would mean not to wait at all


def _distrust_connection(context: ExceptionContext) -> None:
    """Drop the connection after any error but Postgres's own answer: the state of the protocol is unknown."""
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

_REVISION: Final = "(select max(version_num) from alembic_version)"

_UNREADABLE: Final = ("42P01", "42501")
"""SQLSTATEs for a table that is not there, or that the role may not read: no `make migrate` of this code has run."""


def refuse_unsafe_role(connection: Any, variable: str = "DATABASE_URL") -> None:
    """Raise UnsafeRole when the connection's role, which `variable` names, could ignore row-level security."""
    (unsafe,) = connection.execute_simple(_could_bypass()).rows[0]
    _refuse_if(unsafe, variable)


def refuse_unsafe_role_or_schema(connection: Any) -> None:
    """Raise UnsafeRole as above, and OldSchema when the schema is older than this code. Both take one roundtrip."""
    try:
        unsafe, revision = connection.execute_simple(f"{_could_bypass()}, {_REVISION}").rows[0]
    except pg8000.DatabaseError as error:
        if error.args[0].get("C") not in _UNREADABLE:
            raise
        refuse_unsafe_role(connection)
        unsafe, revision = False, None
    _refuse_if(unsafe, "DATABASE_URL")
    if (revision or "") < NEEDED:
        raise OldSchema(
            f"The schema is older than this code: it is at revision {revision or 'unknown'}, and the code needs "
            f"{NEEDED}. Run `make migrate` before you deploy the functions."
        )


def _could_bypass() -> str:
    tables = ", ".join(f"'{name}'" for name in SQLModel.metadata.tables)  # of the program's own code, not of a request
    return _COULD_BYPASS.format(tables=tables).rstrip()


def _refuse_if(unsafe: bool, variable: str) -> None:
    if unsafe:
        raise UnsafeRole(
            f"Row-level security would not bind the role in {variable}: it is or may become a superuser, a role with "
            "BYPASSRLS or the owner of the tables, or the tables' security is off."
        )
