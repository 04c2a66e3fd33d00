"""One engine with one connection, for a libpq URL: how it connects, how long it waits, whom it refuses to be."""

import ssl
from collections.abc import Callable
from typing import Any, Final

import pg8000  # type: ignore[import-untyped]
from aws_lambda_powertools import Logger
from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event
from sqlmodel import SQLModel

from taskchat import deadline
from taskchat.database import pg8000_pipeline as pipeline
from taskchat.postgres_url import PostgresUrl, parse
from taskchat.settings import SettingsError

CONNECT_TIMEOUT: Final = 5.0
"""Seconds to connect, and to wait for one answer. A suspended Neon wakes well within it."""

RECYCLE_AFTER: Final = 240
"""Seconds until a connection is replaced: under the 300 after which Neon suspends and drops it."""


ROUNDTRIPS: Final = {"connect": 6, "exchange": 2, "statement": 3}
"""How often the server is waited for in one step at most. The time that is left is shared out among them.

An exchange is waited for twice when a dead connection had to be replaced, a statement of stock pg8000 three times.
"""


logger = Logger()


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


def refuse_unsafe_role(connection: Any) -> None:
    """Raise UnsafeRole when the connection's role could ignore row-level security."""
    tables = ", ".join(f"'{name}'" for name in SQLModel.metadata.tables)  # of the program's own code, not of a request
    (unsafe,) = connection.execute_simple(_COULD_BYPASS.format(tables=tables)).rows[0]
    if unsafe:
        raise UnsafeRole(
            "Row-level security would not bind the role in DATABASE_URL: it is or may become a superuser, a role with "
            "BYPASSRLS or the owner of the tables, or the tables' security is off."
        )
