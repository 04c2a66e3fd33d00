"""pg8000 that waits once where the driver waits three times: what a transaction says is sent together.

The driver sends each statement in parts and waits for every part. Here a statement is put off: it goes out with all
that was put off before it, closed by one Sync, as soon as somebody needs an answer: to read a row, or to commit.

- Up to its Sync everything is one transaction on one server, so a pooler in transaction mode parts nothing. That holds
  without BEGIN too, where the driver's parts end up among other people's statements.
- The error of a statement whose answer nobody read comes out at the next wait, and so at the latest at the commit.
- A commit is never in the first exchange of its transaction. What is in that has not taken effect if no answer came, so
  it is repeated on a new connection: one that died while the process was frozen costs nothing but time.
- After any doubt about what was sent or read, the connection is closed.
- Who runs a statement learns at once whether it has rows, and which columns: it is put off only once that is known, so
  the first time that it is met it is waited for.
"""

import re
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple, Self

import pg8000  # type: ignore[import-untyped]
from pg8000 import converters, core, legacy
from pg8000.converters import TIMESTAMPTZ  # type: ignore[import-untyped]
from sqlalchemy import Connection
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.pg8000 import PGDialect_pg8000

TESTED_WITH: Final = "1.31.6"
"""The driver's version whose inside this knows. With another one it is not used."""

URL: Final = "taskchat+pipeline://"
"""What names the dialect below to SQLAlchemy's create_engine."""

MAX_SHAPES: Final = 1_000
"""Statements that are remembered. A turn has a dozen, and some more for lists of several lengths."""

_INSIDE: Final = {
    converters: ("timestamptz_in",),
    core: ("Context", "make_params", "ci_unpack", "_read", "_write", "_flush", "_create_message", "SYNC_MSG"),
    core.CoreConnection: ("execute_unnamed", "execute_simple", "handle_messages"),
    legacy: ("convert_paramstyle",),
    legacy.Connection: ("_in_transaction",),
}
"""What is used of the driver without its having promised it."""

_BEGIN: Final = "begin transaction"
_COMMIT: Final = "commit"
_SHORT: Final = struct.Struct("!H")
_LONG: Final = struct.Struct("!i")

registry.register(URL.removesuffix("://").replace("+", "."), __name__, "Dialect")


class Shape(NamedTuple):
    """A statement as Postgres takes it, and the columns of its answer as the server told them; None for no rows."""

    sql: str
    columns: list[dict[str, Any]] | None


Shapes = dict[str, Shape]


def is_supported() -> bool:
    """Whether the installed driver is the one that this module knows from inside."""
    known = all(hasattr(owner, name) for owner, names in _INSIDE.items() for name in names)
    return known and pg8000.__version__ == TESTED_WITH


class TidyConnection(pg8000.Connection):  # type: ignore[misc]  # the driver has no types
    """The driver's connection, which leaves nothing behind when it is closed.

    pg8000 closes the socket and forgets the stream over it, whose unsent bytes the collector then tries to send.
    """

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
                with suppress(OSError, ValueError):  # nobody is there to take what it still holds
                    stream.close()


@dataclass
class _Statement:
    """What goes over the wire for one statement, and the driver's record of what came back."""

    message: bytes
    context: Any
    operation: str | None = None
    """As a cursor was given it. None for what the connection says by itself."""
    is_answered: bool = field(default=False, init=False)

    @property
    def error(self) -> Exception | None:
        """The error it was answered with, of the class that the driver raises for it."""
        raised: Exception | None = self.context.error
        return raised if self.operation is None or raised is None else _as_cursors_raise(raised)

    def forget(self) -> None:
        """Make the record as if nothing had come back."""
        self.context.__init__(self.context.statement, stream=self.context.stream)


def _as_cursors_raise(error: Exception) -> Exception:
    """The driver's own distinction, which it makes inside `execute`."""
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
    _is_patient = True

    def execute(self, operation: str, args: Sequence[Any] = (), stream: Any = None) -> Self:
        """Put a statement off that has parameters, is in a transaction and is known; any other one is waited for."""
        self._statement = None
        if self._c is None or self._c.autocommit or not isinstance(args, tuple | list) or not args or stream:
            super().execute(operation, args, stream)
            return self
        known = self._c.shapes.get(operation)
        sql = known.sql if known else legacy.convert_paramstyle(self.paramstyle, operation, args)[0]
        if not self._c._in_transaction:
            self._c.put_off(_BEGIN)
        self._statement = self._c.put_off(sql, args, self._input_oids, operation=operation)
        self._context, self._row_iter, self._input_oids = self._statement.context, None, ()
        self._context.columns = known and known.columns
        if not known or not self._is_patient:
            self._wait()
        return self

    def executemany(self, operation: str, param_sets: Sequence[Sequence[Any]]) -> Self:
        """As the driver does it: each is waited for, since their row counts are added up."""
        self._is_patient = False
        try:
            super().executemany(operation, param_sets)
        finally:
            self._is_patient = True
        return self

    def __next__(self) -> Any:
        """The next row, waited for if need be. Raises what the statement, or one put off with it, was answered with."""
        self._wait()
        return super().__next__()

    def _wait(self) -> None:
        if self._statement is None or self._row_iter is not None:
            return
        if not self._statement.is_answered and self._c is not None:
            self._c.settle()
        if not self._statement.is_answered:
            raise pg8000.InterfaceError("the statement was given up before there was an answer")
        if self._statement.error:
            raise self._statement.error
        self._row_iter = iter(self._context.rows or [])


class PipelinedConnection(TidyConnection):
    """A connection that is not in the middle of an answer, ever: it is settled, has something to send, or is closed."""

    def __init__(
        self,
        arguments: Callable[[], dict[str, Any]],
        patience: Callable[[], float],
        check: Callable[[Any], None],
        shapes: Shapes,
    ) -> None:
        """Connect with what `arguments` returns, now and whenever a dead connection is replaced.

        It waits for one answer as many seconds as `patience` says at that time. `check` raises when a connection that
        has just been made must not be used. `shapes` is what is known of statements, to be shared between connections.
        Raises InterfaceError when nobody can be reached, and what TLS, the server and `check` raise.
        """
        self._arguments, self._patience, self._check, self.shapes = arguments, patience, check, shapes
        self._batch: list[_Statement] = []
        self._connect()

    def cursor(self) -> PipelinedCursor:
        """A cursor of this connection."""
        return PipelinedCursor(self)

    def put_off(self, sql: str, values: Sequence[Any] = (), oids: Sequence[int] = (), **noted: Any) -> _Statement:
        """Send a statement with the next exchange, and note what else is known of it.

        Raises what a value raises that cannot be written down: nothing of it is sent then.
        """
        if self._usock is None:
            raise pg8000.InterfaceError("connection is closed")
        message = self._message(sql, core.make_params(self.py_types, values), oids)
        statement = _Statement(message, core.Context(sql), **noted)
        self._batch.append(statement)
        return statement

    def settle(self) -> None:
        """Send what was put off and wait for the answers. Raises the first error of those, and what the wire raises."""
        batch, self._batch = self._batch, []
        if not batch:
            return
        try:
            self._exchange(batch)
        except (OSError, pg8000.InterfaceError):
            if not _can_repeat(batch):
                raise
            self._connect_again()
            self._exchange(batch)
        self._raise_error(batch)

    def execute_unnamed(self, statement: str, vals: Sequence[Any] = (), oids: Any = (), stream: Any = None) -> Any:
        """What the driver does in three roundtrips, in one, together with what was put off."""
        context = self.put_off(statement, vals, oids).context
        context.stream = stream
        self.settle()
        return context

    def execute_simple(self, statement: str) -> Any:
        """As the driver's, once everything before it is settled."""
        self.settle()
        if self._usock is None:
            raise pg8000.InterfaceError("connection is closed")
        query = core._create_message(b"Q", statement.encode(self._client_encoding) + b"\0")
        batch = [_Statement(query, core.Context(statement))]
        self._exchange(batch, sync=b"")
        self._raise_error(batch)
        return batch[0].context

    def commit(self) -> None:
        """Commit, together with what was put off. Raises the error of any of it; then all of it is rolled back."""
        try:
            super().commit()
        except pg8000.DatabaseError:
            self.rollback()  # a commit that is answered has ended the transaction, whatever the answer
            raise

    def rollback(self) -> None:
        """Roll back what was sent, and forget what was not."""
        self._batch = []
        super().rollback()

    @property
    def _in_transaction(self) -> bool:
        return bool(self._batch) or bool(super()._in_transaction)

    def _connect(self) -> None:
        arguments = self._arguments()
        wire = _wire(arguments["host"], arguments["port"], arguments["timeout"])
        try:
            super().__init__(**arguments, sock=wire)
        except BaseException:
            wire.close()
            raise
        self.register_in_adapter(TIMESTAMPTZ, _moment)
        try:
            self._check(self)
        except BaseException:
            self._cut()
            raise

    def _connect_again(self) -> None:
        adapters = self.py_types, self.pg_types  # SQLAlchemy has registered some
        self._connect()
        self.py_types, self.pg_types = adapters

    def _message(self, sql: str, params: Sequence[str | None], oids: Sequence[int]) -> bytes:
        """Parse, Bind, Describe and Execute of an unnamed statement and portal, all in text."""
        text = sql.encode(self._client_encoding)
        types = b"".join(_LONG.pack(0 if oid == -1 else oid) for oid in oids)
        values = b"".join(self._value(param) for param in params)
        return b"".join(
            (
                core._create_message(b"P", b"\0" + text + b"\0" + _SHORT.pack(len(oids)) + types),
                core._create_message(b"B", b"\0\0\0\0" + _SHORT.pack(len(params)) + values + b"\0\0"),
                core._create_message(b"D", b"P\0"),
                core._create_message(b"E", b"\0\0\0\0\0"),
            )
        )

    def _value(self, param: str | None) -> bytes:
        if param is None:
            return _LONG.pack(-1)
        value = param.encode(self._client_encoding)
        return _LONG.pack(len(value)) + value

    def _exchange(self, batch: list[_Statement], sync: bytes = core.SYNC_MSG) -> None:
        """Send, and read all answers up to the server's being ready. Raises what the wire raises: it is closed then."""
        for statement in batch:
            statement.forget()
        try:
            self.wait_at_most(self._patience())
            core._write(self._sock, b"".join(statement.message for statement in batch) + sync)
            core._flush(self._sock)
            self._receive(batch)
        except BaseException:
            self._cut()
            raise
        self._remember(batch)

    def _receive(self, batch: list[_Statement]) -> None:
        contexts = iter([statement.context for statement in batch])
        context, code = next(contexts), None
        while code != core.READY_FOR_QUERY:
            code, size = core.ci_unpack(core._read(self._sock, 5))
            self.message_types[code](core._read(self._sock, size - 4), context)
            if code in (core.COMMAND_COMPLETE, core.EMPTY_QUERY_RESPONSE):
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

    def _cut(self) -> None:
        """Close without a word: the state of the wire is unknown."""
        stream, wire, self._sock, self._usock = self._sock, self._usock, None, None
        if wire is None:
            return
        with suppress(OSError):
            wire.shutdown(socket.SHUT_RDWR)  # so that closing does not try to send what is left
        with suppress(OSError, ValueError):
            stream.close()
        wire.close()


def _can_repeat(batch: list[_Statement]) -> bool:
    """Tell if the batch is a transaction's beginning without its commit: it has no effect if no answer came."""
    return batch[0].context.statement == _BEGIN and batch[-1].context.statement != _COMMIT


def _moment(text: str) -> Any:
    """A timestamptz as the driver reads it, in a twentieth of the time; it reads itself what Python has no date for."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return converters.timestamptz_in(text)


def _wire(host: str, port: int, timeout: float) -> socket.socket:
    """A socket that sends at once what it is given, where the driver's waits for the answer to what went before."""
    try:
        wire = socket.create_connection((host, port), timeout)
    except OSError as error:
        raise pg8000.InterfaceError(f"Can't create a connection to port {port}") from error
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return wire


class Dialect(PGDialect_pg8000):
    """SQLAlchemy's dialect for the driver, for statements that may not have been answered yet."""

    supports_statement_cache = True
    # Where a statement was put off its row count is not known, and SQLAlchemy must not conclude anything from it.
    supports_sane_rowcount = False
    supports_sane_multi_rowcount = False

    def initialize(self, connection: Connection) -> None:
        """Take from what the server told when it was connected to what SQLAlchemy asks for in eight roundtrips."""
        told: dict[str, str] = connection.connection.dbapi_connection.parameter_statuses  # type: ignore[union-attr]
        numbers = re.findall(r"\d+", told["server_version"].split()[0])
        self.server_version_info = tuple(map(int, numbers))
        self._backslash_escapes = told["standard_conforming_strings"] != "on"
