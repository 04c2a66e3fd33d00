"""Send the statements of a transaction together, with pg8000.

The driver sends each statement in parts and waits for every part. Here a statement is queued. It goes out with all that
was queued before it, closed by one Sync, as soon as the program needs an answer: to read a row, or to commit.

- Up to its Sync everything is one transaction on one server, so a pooler in transaction mode separates nothing. That
  holds without BEGIN too, where the driver's parts end up among other clients' statements.
- If nothing reads the answer of a statement, its error comes out at the next wait, and at the latest at the commit.
- An exchange that begins a transaction has no effect if no answer came. So it is repeated on a new connection: one that
  died while the process was frozen costs nothing but time. An exchange with a commit is never repeated.
- After any doubt about what was sent or read, the connection is closed.
- A cursor must tell at once whether its statement has rows, and which columns. So a statement is queued only once that
  is known. `describe` asks for it ahead; otherwise the first execution waits.
"""

import re
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple, Self, TypeVar

import pg8000  # type: ignore[import-untyped]
from pg8000 import converters, core, legacy
from pg8000.converters import TIMESTAMPTZ  # type: ignore[import-untyped]
from sqlalchemy import Connection
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.pg8000 import PGDialect_pg8000

TESTED_WITH: Final = "1.31.6"
"""The driver's version that this module was written for. With another one it is not used."""

URL: Final = "taskchat+pipeline://"
"""The URL with which SQLAlchemy's create_engine finds the dialect below."""

MAX_SHAPES: Final = 1_000
"""Statements to remember at most. A turn has a dozen, and some more for lists of several lengths."""

_INSIDE: Final = {
    converters: ("timestamptz_in",),
    core: ("Context", "make_params", "ci_unpack", "_read", "_write", "_flush", "_create_message", "SYNC_MSG"),
    core.CoreConnection: ("execute_unnamed", "execute_simple", "handle_messages"),
    legacy: ("convert_paramstyle",),
    legacy.Connection: ("_in_transaction",),
}
"""Undocumented names of the driver that this module uses."""

_BEGIN: Final = "begin transaction"
_COMMIT: Final = "commit"
_SHORT: Final = struct.Struct("!H")
_LONG: Final = struct.Struct("!i")
_EXECUTED: Final = frozenset({core.COMMAND_COMPLETE, core.EMPTY_QUERY_RESPONSE})
_DESCRIBED: Final = frozenset({core.ROW_DESCRIPTION, core.NO_DATA})
"""Types of the message that ends the answer to one statement."""
_DESCRIBE: Final = core._create_message(b"D", b"S\0")

registry.register(URL.removesuffix("://").replace("+", "."), __name__, "Dialect")


T = TypeVar("T")


class Shape(NamedTuple):
    """A statement in Postgres's spelling, and the columns of its answer; None if it returns no rows."""

    sql: str
    columns: list[dict[str, Any]] | None


Shapes = dict[str, Shape]


def is_supported() -> bool:
    """Tell if the installed driver is the one that this module was written for."""
    known = all(hasattr(owner, name) for owner, names in _INSIDE.items() for name in names)
    return known and pg8000.__version__ == TESTED_WITH


def connect_again(connect: Callable[[], T], renew: Callable[[Exception], bool]) -> T:
    """Connect, again after each driver's error for which `renew` returns True. Raises the error of the last try."""
    while True:
        try:
            return connect()
        except pg8000.Error as error:
            if not renew(error):
                raise


class TidyConnection(pg8000.Connection):  # type: ignore[misc]  # the driver has no types
    """The driver's connection, which leaves nothing behind when it is closed.

    pg8000 closes the socket and forgets the stream over it. The garbage collector then tries to send its unsent bytes.
    """

    longest_wait: float
    """Seconds. The engine sets it when it connects."""

    _sock: Any
    _usock: Any
    py_types: dict[type, Any]
    pg_types: dict[int, Any]

    def wait_at_most(self, seconds: float) -> None:
        """Bound every read from now on. The driver itself takes a bound only when it connects."""
        self._usock.settimeout(seconds)

    def close(self) -> None:
        """Close socket and stream. Raises InterfaceError when the connection is closed already or broken."""
        stream = self._sock
        try:
            super().close()
        finally:
            if stream is not None:
                with suppress(OSError, ValueError):  # what it still holds cannot be sent any more
                    stream.close()


@dataclass
class _Statement:
    """The messages of one statement, and the driver's record of the answer."""

    message: bytes
    context: Any
    operation: str | None = None
    """The statement as the cursor got it. None for a statement of the connection's own."""
    is_answered: bool = field(default=False, init=False)

    @property
    def error(self) -> Exception | None:
        """Return Postgres's error, of the class that the driver raises for it."""
        raised: Exception | None = self.context.error
        return raised if self.operation is None or raised is None else _as_cursors_raise(raised)

    def forget_answer(self) -> None:
        self.context.__init__(self.context.statement, stream=self.context.stream)


def _as_cursors_raise(error: Exception) -> Exception:
    """Return the error in the class that the driver's `execute` would raise."""
    if not isinstance(error, pg8000.DatabaseError):
        return error
    answer = error.args[0]
    classes = {"28000": pg8000.InterfaceError, "23505": pg8000.IntegrityError}
    raised: Exception = classes.get(answer["C"], pg8000.ProgrammingError)(answer)
    return raised


class PipelinedCursor(pg8000.Cursor):  # type: ignore[misc]
    """A cursor that waits when it is read. Until then its row count is -1, which stands for unknown."""

    _context: Any
    _row_iter: Iterator[Any] | None
    _input_oids: Sequence[int]
    _statement: _Statement | None = None
    _may_wait_later = True

    def execute(self, operation: str, args: Sequence[Any] = (), stream: Any = None) -> Self:
        """Queue a known statement with parameters in a transaction; execute any other one at once."""
        self._statement = None
        if self._c is None or self._c.autocommit or not isinstance(args, tuple | list) or not args or stream:
            super().execute(operation, args, stream)
            return self
        known = self._c.shapes.get(operation)
        sql = known.sql if known else legacy.convert_paramstyle(self.paramstyle, operation, args)[0]
        if not self._c._in_transaction:
            self._c.queue(_BEGIN)
        self._statement = self._c.queue(sql, args, self._input_oids, operation=operation)
        self._context, self._row_iter, self._input_oids = self._statement.context, None, ()
        self._context.columns = known and known.columns
        if not known or not self._may_wait_later:
            self._wait()
        return self

    def executemany(self, operation: str, param_sets: Sequence[Sequence[Any]]) -> Self:
        """Execute each at once, as the driver does: it adds up their row counts."""
        self._may_wait_later = False
        try:
            super().executemany(operation, param_sets)
        finally:
            self._may_wait_later = True
        return self

    def __next__(self) -> Any:
        """Return the next row; wait for it if need be. Raises the error of the statement or of one queued with it."""
        self._wait()
        return super().__next__()

    def _wait(self) -> None:
        if self._statement is None or self._row_iter is not None:
            return
        if not self._statement.is_answered and self._c is not None:
            self._c.flush()
        if not self._statement.is_answered:
            raise pg8000.InterfaceError("the statement was given up before there was an answer")
        if self._statement.error:
            raise self._statement.error
        self._row_iter = iter(self._context.rows or [])


class PipelinedConnection(TidyConnection):
    """A connection that queues statements. Between two calls it is never in the middle of an answer."""

    def __init__(
        self,
        arguments: Callable[[], dict[str, Any]],
        timeout: Callable[[], float],
        check: Callable[[Any], None],
        shapes: Shapes,
        renew: Callable[[Exception], bool] = lambda _error: False,
    ) -> None:
        """Connect with what `arguments` returns, now and whenever a dead connection is replaced.

        `timeout` returns the seconds to wait for one answer. `check` raises when a connection that has just been made
        must not be used. Connections share `shapes`, which they fill with what they learn of statements. `renew`
        returns True when it makes sense to connect again after an error. Raises InterfaceError when the server cannot
        be reached, and what TLS, the server and `check` raise.
        """
        self._arguments, self._timeout, self._check, self._renew = arguments, timeout, check, renew
        self.shapes = shapes
        self._batch: list[_Statement] = []
        self._connect()

    def cursor(self) -> PipelinedCursor:
        return PipelinedCursor(self)

    def queue(
        self, sql: str, values: Sequence[Any] = (), oids: Sequence[int] = (), operation: str | None = None
    ) -> _Statement:
        """Queue a statement for the next exchange. Raises the error of a value that cannot be turned into text."""
        if self._usock is None:
            raise pg8000.InterfaceError("connection is closed")
        message = self._message(sql, core.make_params(self.py_types, values), oids)
        statement = _Statement(message, core.Context(sql), operation)
        self._batch.append(statement)
        return statement

    def flush(self) -> None:
        """Send what was queued and wait for the answers. Raises the first error, or what the socket raises."""
        batch, self._batch = self._batch, []
        if not batch:
            return
        try:
            self._exchange(batch)
        except (OSError, pg8000.InterfaceError):
            if not _can_repeat(batch):
                raise
            adapters = self.py_types, self.pg_types  # SQLAlchemy has registered some
            self._connect()
            self.py_types, self.pg_types = adapters
            self._exchange(batch)
        self._raise_error(batch)

    def describe(self, operations: Iterable[str]) -> None:
        """Learn the columns of statements, all in one exchange. Postgres parses them and executes none."""
        batch = []
        for operation in operations:
            sql = legacy.convert_paramstyle("format", operation, ())[0]
            batch.append(_Statement(self._parse(sql) + _DESCRIBE, core.Context(sql), operation))
        self._exchange(batch, last=_DESCRIBED)
        self._raise_error(batch)

    def execute_unnamed(self, statement: str, vals: Sequence[Any] = (), oids: Any = (), stream: Any = None) -> Any:
        """Execute a statement in one roundtrip, together with what was queued. The driver takes three."""
        context = self.queue(statement, vals, oids).context
        context.stream = stream
        self.flush()
        return context

    def execute_simple(self, statement: str) -> Any:
        """Send what was queued, then do as the driver does."""
        self.flush()
        if self._usock is None:
            raise pg8000.InterfaceError("connection is closed")
        query = core._create_message(b"Q", statement.encode(self._client_encoding) + b"\0")
        batch = [_Statement(query, core.Context(statement))]
        self._exchange(batch, sync=b"")
        self._raise_error(batch)
        return batch[0].context

    def commit(self) -> None:
        """Commit, together with what was queued. Raises the error of any of it; then all of it is rolled back."""
        try:
            super().commit()
        except pg8000.DatabaseError:
            self.rollback()  # a commit that is answered has ended the transaction, whatever the answer
            raise

    def rollback(self) -> None:
        """Roll back what was sent, and forget what is still queued."""
        self._batch = []
        super().rollback()

    @property
    def _in_transaction(self) -> bool:
        return bool(self._batch) or bool(super()._in_transaction)

    def _connect(self) -> None:
        connect_again(self._log_in, self._renew)

    def _log_in(self) -> None:
        arguments = self._arguments()
        opened = _open_socket(arguments["host"], arguments["port"], arguments["timeout"])
        try:
            super().__init__(**arguments, sock=opened)
        except BaseException:
            opened.close()
            raise
        self.register_in_adapter(TIMESTAMPTZ, _parse_timestamp)
        try:
            self._check(self)
        except BaseException:
            self._abort()
            raise

    def _message(self, sql: str, params: Sequence[str | None], oids: Sequence[int]) -> bytes:
        """Return Parse, Bind, Describe and Execute of an unnamed statement and portal, all in text."""
        values = b"".join(self._value(param) for param in params)
        return b"".join(
            (
                self._parse(sql, oids),
                core._create_message(b"B", b"\0\0\0\0" + _SHORT.pack(len(params)) + values + b"\0\0"),
                core._create_message(b"D", b"P\0"),
                core._create_message(b"E", b"\0\0\0\0\0"),
            )
        )

    def _parse(self, sql: str, oids: Sequence[int] = ()) -> bytes:
        types = b"".join(_LONG.pack(0 if oid == -1 else oid) for oid in oids)
        text = sql.encode(self._client_encoding)
        return bytes(core._create_message(b"P", b"\0" + text + b"\0" + _SHORT.pack(len(oids)) + types))

    def _value(self, param: str | None) -> bytes:
        if param is None:
            return _LONG.pack(-1)
        value = param.encode(self._client_encoding)
        return _LONG.pack(len(value)) + value

    def _exchange(
        self, batch: list[_Statement], sync: bytes = core.SYNC_MSG, last: frozenset[bytes] = _EXECUTED
    ) -> None:
        """Send, and read all answers until the server is ready. Raises what the socket raises, and closes it then."""
        for statement in batch:
            statement.forget_answer()
        try:
            self.wait_at_most(self._timeout())
            core._write(self._sock, b"".join(statement.message for statement in batch) + sync)
            core._flush(self._sock)
            self._receive(batch, last)
        except BaseException:
            self._abort()
            raise
        self._remember(batch)

    def _receive(self, batch: list[_Statement], last: frozenset[bytes]) -> None:
        contexts = iter([statement.context for statement in batch])
        context, code = next(contexts), None
        while code != core.READY_FOR_QUERY:
            code, size = core.ci_unpack(core._read(self._sock, 5))
            self.message_types[code](core._read(self._sock, size - 4), context)
            if code in last:
                context = next(contexts, context)

    def _remember(self, batch: list[_Statement]) -> None:
        error = None
        for statement in batch:
            statement.is_answered = True
            statement.context.error = error = error or statement.context.error  # the server skips what comes after one
            if error is None and statement.operation is not None:
                if len(self.shapes) >= MAX_SHAPES:
                    self.shapes.clear()
                self.shapes[statement.operation] = Shape(statement.context.statement, statement.context.columns)

    def _raise_error(self, batch: list[_Statement]) -> None:
        for statement in batch:
            if statement.error:
                raise statement.error

    def _abort(self) -> None:
        """Close without sending anything: the state of the protocol is unknown."""
        stream, opened, self._sock, self._usock = self._sock, self._usock, None, None
        if opened is None:
            return
        with suppress(OSError):
            opened.shutdown(socket.SHUT_RDWR)  # so that closing does not try to send what is left
        with suppress(OSError, ValueError):
            stream.close()
        opened.close()


def _can_repeat(batch: list[_Statement]) -> bool:
    """Tell if the batch is a transaction's beginning without its commit: it has no effect if no answer came."""
    first, last = batch[0].context.statement, batch[-1].context.statement
    return bool(first == _BEGIN and last != _COMMIT)


def _parse_timestamp(text: str) -> Any:
    """Return a timestamptz in a twentieth of the driver's time. The driver parses those that Python cannot hold."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return converters.timestamptz_in(text)


def _open_socket(host: str, port: int, timeout: float) -> socket.socket:
    """Return a socket that sends at once. The driver's own waits for the answer to what it sent before."""
    try:
        opened = socket.create_connection((host, port), timeout)
    except OSError as error:
        raise pg8000.InterfaceError(f"Can't create a connection to port {port}") from error
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return opened


class Dialect(PGDialect_pg8000):
    """SQLAlchemy's dialect for the driver, for statements that may not have been answered yet."""

    supports_statement_cache = True
    # The row count of a queued statement is not known, and SQLAlchemy must not conclude anything from it.
    supports_sane_rowcount = False
    supports_sane_multi_rowcount = False

    def initialize(self, connection: Connection) -> None:
        """Set from the server's parameters at connect time what SQLAlchemy would ask for in eight roundtrips."""
        parameters: dict[str, str] = connection.connection.dbapi_connection.parameter_statuses  # type: ignore[union-attr]
        numbers = re.findall(r"\d+", parameters["server_version"].split()[0])
        self.server_version_info = tuple(map(int, numbers))
        self._backslash_escapes = parameters["standard_conforming_strings"] != "on"
        self.default_isolation_level = "READ COMMITTED"  # to go back to after a migration's autocommit
