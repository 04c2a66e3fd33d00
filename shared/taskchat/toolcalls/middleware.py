"""What surrounds every tool call, through either door: its transaction, its record in the same commit, its audit line.

A call that fails leaves no effect, a record with `outcome: "error"`, and a plain sentence for the model.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, Literal
from uuid import UUID, uuid4

import mcp_types
from aws_lambda_powertools import Logger
from fastmcp.exceptions import FastMCPError, NotFoundError
from fastmcp.server.dependencies import get_access_token
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import ToolResult
from pydantic import ValidationError as PydanticValidationError
from sqlalchemy import bindparam, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session

from taskchat.database.engine import Database, retry_while_away
from taskchat.errors import CommitOutcomeUnknown, DatabaseUnavailable, TaskchatError, ToolFailure, Unauthenticated
from taskchat.logs import to_problem
from taskchat.text import storable
from taskchat.toolcalls.models import TOOL_CALL, ToolCall

SCHEMA: Final = "taskchat.audit/1"
"""Version of the audit line: a field may be added under it, never changed or taken away.

`outcome` is `ok` or `error`, as in the call's record, or `unknown`: the database did not answer the commit, and could
not be asked again in time. The call may have taken effect and have a record. If the process learns later how it ended,
it writes a second line with the same `call_id`.
"""

SETTLING: Final = 3.0
"""Seconds in which the outcome of a commit that was not answered may be found out."""

_RECORD: Final = insert(TOOL_CALL)
_RECORD_ONCE: Final = insert(TOOL_CALL).on_conflict_do_nothing()
_RECORDED: Final = select(TOOL_CALL).where(
    TOOL_CALL.c.user_id == bindparam("of_user"),
    TOOL_CALL.c.turn_id == bindparam("of_turn"),
    TOOL_CALL.c.call_id == bindparam("of_call"),
)

_NOT_TAKEN: Final = "Not done: the connection to the database broke. Nothing was changed. Make the call once more."
_MAY_BE_DONE: Final = (
    "The database did not answer: this may have been done, or may not. Look whether it was before you repeat it."
)

logger = Logger()

Outcome = Literal["ok", "error"]
Record = dict[str, Any]


def _no_guard(_session: Session) -> None:
    """A call outside any turn has no lease to lose."""


@dataclass(frozen=True)
class UnsettledCall:
    """A call whose commit the database did not answer."""

    record: Record
    """As it would be if the commit took effect."""
    described: dict[str, Any]
    """What may be logged of it."""

    @property
    def told(self) -> str:
        """What a client is told for as long as nothing else is known. A failed call has failed in any case."""
        return self.record["result"]["error"] if self.record["outcome"] == "error" else _MAY_BE_DONE

    def settle(self, session: Session) -> Record:
        """Make certain how the call ended, and return its record. The transaction must commit for that to hold.

        To look for the record would not do: the database may still be at work on the commit. The insert of another
        record under the same key waits for that. Then it finds the first one, or takes its place for good.
        """
        failed = {"outcome": "error", "result": {"error": _NOT_TAKEN}} if self.record["outcome"] == "ok" else {}
        session.execute(_RECORD_ONCE, self.record | failed)
        key = {"of_user": self.record["user_id"], "of_turn": self.record["turn_id"], "of_call": self.record["call_id"]}
        return dict(session.execute(_RECORDED, key).mappings().one())

    def report(self, outcome: Outcome | Literal["unknown"]) -> None:
        """Write the call's audit line."""
        _report(self.record | {"outcome": outcome}, self.described)


@dataclass(frozen=True)
class Call:
    """On whose behalf a tool is called, and where the call belongs. Never chosen by a model or a client."""

    user_id: str
    door: Literal["chat", "mcp"]
    turn_id: UUID
    call_id: str
    position: int = 0
    conversation_id: UUID | None = None
    scopes: frozenset[str] | None = None
    """The scopes of an MCP client's token. None for a person who chats: they may do everything."""
    guard: Callable[[Session], None] = _no_guard
    """Run first in the call's transaction: raises when the turn has lost its lease."""
    refusal: str | None = None
    """Why the call must not reach its tool, in a plain sentence."""
    records: list[ToolCall] = field(default_factory=list)
    """Where the committed record goes, for the answer. Holds those of the turn's earlier calls."""
    unsettled: list[UnsettledCall] = field(default_factory=list)
    """Where a call is put when its outcome could not be found out."""
    max_destructive: int | None = None
    """How many destructive calls the turn may make. None for an MCP client, which decides on each call by itself."""


_call: ContextVar[Call] = ContextVar("call")
_open_session: ContextVar[Callable[[], Session]] = ContextVar("open_session")


def user_with(scope: str) -> Callable[[], str]:
    """Return a dependency that gives a tool the caller's user id, if the caller has the scope.

    It raises Unauthenticated outside a call, and ToolFailure when the scope is missing.
    """

    def user_id() -> str:
        call = _call.get(None)
        if call is None:
            raise Unauthenticated
        if call.scopes is not None and scope not in call.scopes:
            raise ToolFailure(f"Insufficient scope: this tool needs {scope}.")
        return call.user_id

    return user_id


def session() -> Session:
    """The transaction of the running call, begun at first use.

    Not sooner: FastMCP gives way to other requests while it looks the tool up, and a transaction that is open then
    could hold a lock for which the next request blocks the whole loop. From here to the commit nothing gives way.
    """
    return _open_session.get()()


@contextmanager
def calling(call: Call) -> Iterator[Call]:
    """Name the call that the tool invocation inside the block is."""
    token = _call.set(call)
    try:
        yield call
    finally:
        _call.reset(token)


def _call_from_token() -> Call:
    """The call of an MCP client: person and scopes are its verified token's. Raises Unauthenticated."""
    token = get_access_token()
    if token is None or not token.subject:
        raise Unauthenticated
    return Call(token.subject, "mcp", turn_id=uuid4(), call_id=uuid4().hex, scopes=frozenset(token.scopes))


class AuditMiddleware(Middleware):
    """Gives each tool call its transaction, its record and its audit line."""

    def __init__(self, database: Callable[[], Database], destructive: frozenset[str]) -> None:
        """Call `database` for each transaction. Limit the calls of the tools that `destructive` names."""
        self._database, self._destructive = database, destructive

    async def on_call_tool(
        self,
        context: MiddlewareContext[mcp_types.CallToolRequestParams],
        call_next: CallNext[mcp_types.CallToolRequestParams, ToolResult],
    ) -> ToolResult:
        """Run one call. In a turn, raises what is no failure of the tool: nobody to act for, no database, no lease."""
        call = _call.get(None)
        if call is not None:
            return await self._run(call, context, call_next)
        with calling(_call_from_token()) as call:
            try:
                return await self._run(call, context, call_next)
            except CommitOutcomeUnknown:
                return ToolResult(content=call.unsettled[-1].told, is_error=True)
            except Exception as error:  # told as any other failure: the library would quote what it does not know
                return ToolResult(content=str(to_problem(error)), is_error=True)

    async def _run(
        self, call: Call, context: MiddlewareContext[Any], call_next: CallNext[Any, ToolResult]
    ) -> ToolResult:
        tool, arguments = context.message.name, context.message.arguments or {}
        properties = await _properties(context, tool)
        described = _describe(tool, arguments, properties)
        started = time.perf_counter()
        try:
            with self._transaction(call) as open_session:
                self._refuse(call, tool)
                result = await _reach_tool(context, call_next)
                record = _record(call, tool, arguments, "ok", result.structured_content or {}, started)
                open_session().execute(_RECORD, record)
        except CommitOutcomeUnknown:
            record = await self._settle(call, UnsettledCall(record, described))
        except (FastMCPError, NotFoundError, ToolFailure, SQLAlchemyError) as error:
            failure = _sentence(error, properties or {})
            record = _record(call, tool, arguments, "error", {"error": failure}, started)
            record = await self._keep(call, UnsettledCall(record, described))
        call.records.append(ToolCall(**record))
        _report(record, described)
        return result if record["outcome"] == "ok" else ToolResult(content=record["result"]["error"], is_error=True)

    async def _keep(self, call: Call, failed: UnsettledCall) -> Record:
        """Commit the record of a call that failed, and return it."""
        try:
            with self._transaction(call) as open_session:
                open_session().execute(_RECORD, failed.record)
        except CommitOutcomeUnknown:
            return await self._settle(call, failed)
        return failed.record

    async def _settle(self, call: Call, unsettled: UnsettledCall) -> Record:
        """Find out how the call ended. Raises CommitOutcomeUnknown or LeaseLost, and keeps the call then."""

        def attempt() -> Record:
            with self._transaction(call) as open_session:
                return unsettled.settle(open_session())

        try:
            return await retry_while_away(attempt, SETTLING)
        except BaseException as error:
            call.unsettled.append(unsettled)
            unsettled.report("unknown")
            if isinstance(error, DatabaseUnavailable):
                raise CommitOutcomeUnknown(retry_after=error.retry_after) from error
            raise

    def _refuse(self, call: Call, tool: str) -> None:
        """Raise ToolFailure for a call that must not reach its tool."""
        if call.refusal:
            raise ToolFailure(call.refusal)
        made = sum(record.tool in self._destructive and record.outcome == "ok" for record in call.records)
        if tool in self._destructive and call.max_destructive is not None and made >= call.max_destructive:
            raise ToolFailure(
                f"Not done: one message may do this {call.max_destructive} times at most. "
                "Tell the person what is left, and ask whether to go on."
            )

    @contextmanager
    def _transaction(self, call: Call) -> Iterator[Callable[[], Session]]:
        """What begins the call's transaction when asked. Commits at the end of the block, if it was begun."""
        with ExitStack() as stack:

            @cache
            def open_session() -> Session:
                session = stack.enter_context(self._database().transaction(call.user_id))
                call.guard(session)
                return session

            token = _open_session.set(open_session)
            try:
                yield open_session
            finally:
                _open_session.reset(token)


async def _reach_tool(context: MiddlewareContext[Any], call_next: CallNext[Any, ToolResult]) -> ToolResult:
    """Run the tool, and raise what it raised: FastMCP wraps that, and twice what a dependency raises."""
    try:
        return await call_next(context)
    except FastMCPError as error:
        cause = error.__cause__
        if isinstance(cause, RuntimeError) and isinstance(cause.__cause__, ToolFailure):
            raise cause.__cause__ from None
        if isinstance(cause, TaskchatError | SQLAlchemyError | OSError):
            raise cause from None
        raise


def _sentence(error: Exception, properties: dict[str, Any]) -> str:
    """What the model is told. Names the fields at fault, and nothing it could not know."""
    if isinstance(error, ToolFailure):
        return str(error)
    if isinstance(error, NotFoundError):
        return "There is no such tool."
    if isinstance(error.__cause__, PydanticValidationError):
        faults = error.__cause__.errors(include_url=False, include_input=False, include_context=False)
        told = [f"{_place(fault['loc'], properties)}: {fault['msg']}" for fault in faults[:5]]
        return "Invalid arguments: " + "; ".join(told) + "."
    logger.error("tool raised", extra={"error": type(error.__cause__ or error).__name__})
    return "The tool failed for a reason of its own. Nothing was changed."


def _place(location: tuple[int | str, ...], properties: dict[str, Any]) -> str:
    """The field at fault. The name of an unknown one is the model's or the client's own text, and is not sent back."""
    return str(location[0]) if location and location[0] in properties else "unknown"


def _record(
    call: Call, tool: str, arguments: Mapping[str, Any], outcome: Outcome, result: dict[str, Any], started: float
) -> Record:
    return {
        "user_id": call.user_id,
        "turn_id": call.turn_id,
        "call_id": call.call_id,
        "position": call.position,
        "conversation_id": call.conversation_id,
        "door": call.door,
        "tool": storable(tool[:64]),
        "arguments": storable(dict(arguments)),
        "outcome": outcome,
        "result": result,
        "duration_ms": round((time.perf_counter() - started) * 1000, 3),
    }


async def _properties(context: MiddlewareContext[Any], tool: str) -> dict[str, Any] | None:
    """The arguments that the tool's schema knows, or None where there is no such tool."""
    server = context.fastmcp_context and context.fastmcp_context.fastmcp
    known = await server.get_tool(tool) if server else None
    return known.parameters["properties"] if known else None


def _describe(tool: str, arguments: Mapping[str, Any], properties: dict[str, Any] | None) -> dict[str, Any]:
    """What may be logged of a call: no name that the caller made up, and no argument that can carry a person's text."""
    if properties is None:
        return {"tool": "unknown", "tool_arguments": {}}
    impersonal = [name for name in properties if _is_impersonal(arguments.get(name), properties[name])]
    return {"tool": tool, "tool_arguments": {name: arguments[name] for name in impersonal}}


def _is_impersonal(value: Any, schema: dict[str, Any]) -> bool:
    """Numbers, truth values, and the choices that the schema itself names."""
    kinds = {kind.get("type") for kind in schema.get("anyOf", [schema])}
    return value in schema.get("enum", ()) or (isinstance(value, int | float) and "string" not in kinds)


def _report(record: Mapping[str, Any], described: dict[str, Any]) -> None:
    logger.info(
        "tool call",
        extra={
            "schema": SCHEMA,
            "request_id": logger.get_correlation_id(),
            "turn_id": str(record["turn_id"]),
            "conversation_id": record["conversation_id"] and str(record["conversation_id"]),
            "actor": record["user_id"],
            "door": record["door"],
            "call_id": record["call_id"],
            **described,
            "outcome": record["outcome"],
            "duration_ms": record["duration_ms"],
        },
    )
