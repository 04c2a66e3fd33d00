"""The middleware around every tool call: its transaction, its record in the same commit, its audit line.

A call that fails leaves no effect, a record with `outcome: "error"`, and a plain sentence for the model.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, Final

import mcp_types
from aws_lambda_powertools import Logger
from fastmcp.exceptions import FastMCPError, NotFoundError
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import ToolResult
from pydantic import ValidationError as PydanticValidationError
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session

from taskchat.database.transaction import Database, retry_while_away
from taskchat.errors import CommitOutcomeUnknown, DatabaseUnavailable, TaskchatError, ToolFailure
from taskchat.logs import to_problem
from taskchat.text import storable
from taskchat.toolcalls import audit_log
from taskchat.toolcalls.call import Call, call_from_token, calling, current_call, open_session
from taskchat.toolcalls.models import ToolCall
from taskchat.toolcalls.record import STORE_RECORD, Outcome, Record, UnsettledCall

SETTLING: Final = 3.0
"""Seconds in which the outcome of a commit that was not answered may be found out."""

logger = Logger()


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
        call = current_call.get(None)
        if call is not None:
            return await self._run(call, context, call_next)
        with calling(call_from_token()) as call:
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
        described = audit_log.describe(tool, arguments, properties)
        started = time.perf_counter()
        try:
            with self._transaction(call) as begin:
                self._refuse(call, tool)
                result = await _reach_tool(context, call_next)
                record = _record(call, tool, arguments, "ok", result.structured_content or {}, started)
                begin().execute(STORE_RECORD, record)
        except CommitOutcomeUnknown:
            record = await self._settle(call, UnsettledCall(record, described))
        except (FastMCPError, NotFoundError, ToolFailure, SQLAlchemyError) as error:
            failure = _sentence(error, properties or {})
            record = _record(call, tool, arguments, "error", {"error": failure}, started)
            record = await self._keep(call, UnsettledCall(record, described))
        call.records.append(ToolCall(**record))
        audit_log.report(record, described)
        return result if record["outcome"] == "ok" else ToolResult(content=record["result"]["error"], is_error=True)

    async def _keep(self, call: Call, failed: UnsettledCall) -> Record:
        """Commit the record of a call that failed, and return it."""
        try:
            with self._transaction(call) as begin:
                begin().execute(STORE_RECORD, failed.record)
        except CommitOutcomeUnknown:
            return await self._settle(call, failed)
        return failed.record

    async def _settle(self, call: Call, unsettled: UnsettledCall) -> Record:
        """Find out how the call ended. Raises CommitOutcomeUnknown or LeaseLost, and keeps the call then."""

        def attempt() -> Record:
            with self._transaction(call) as begin:
                return unsettled.settle(begin())

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
            def begin() -> Session:
                session = stack.enter_context(self._database().transaction(call.user_id))
                call.guard(session)
                return session

            token = open_session.set(begin)
            try:
                yield begin
            finally:
                open_session.reset(token)


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


async def _properties(context: MiddlewareContext[Any], tool: str) -> dict[str, Any] | None:
    """The arguments that the tool's schema knows, or None where there is no such tool."""
    server = context.fastmcp_context and context.fastmcp_context.fastmcp
    known = await server.get_tool(tool) if server else None
    return known.parameters["properties"] if known else None


def _record(
    call: Call, tool: str, arguments: Mapping[str, Any], outcome: Outcome, result: dict[str, Any], started: float
) -> Record:
    """Return the row that is kept of a call."""
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
