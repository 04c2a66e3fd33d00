"""Run each tool call in a transaction that also stores its record, and write its audit line.

A call that fails has no effect. It leaves a record with `outcome: "error"` and a plain sentence for the model.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import mcp_types
from aws_lambda_powertools import Logger
from fastmcp.exceptions import FastMCPError, NotFoundError
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.tools import ToolResult
from pydantic import ValidationError as PydanticValidationError
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session

from taskchat import measures
from taskchat.database.transaction import Database, retry_while_unavailable
from taskchat.errors import CommitOutcomeUnknown, DatabaseUnavailable, TaskchatError, ToolFailure
from taskchat.logs import to_problem
from taskchat.text import make_storable
from taskchat.toolcalls import audit_log
from taskchat.toolcalls.call import CallContext, calling, context_from_token, current_call, open_session
from taskchat.toolcalls.models import ToolCall
from taskchat.toolcalls.record import STORE_RECORD, Outcome, Record, UnsettledCall

logger = Logger()


class AuditMiddleware(Middleware):
    """Adds the transaction, the record and the audit line to each tool call."""

    def __init__(self, database: Callable[[], Database], destructive: frozenset[str]) -> None:
        """Call `database` for each transaction. Count the calls of the tools that `destructive` names."""
        self._database, self._destructive = database, destructive

    async def on_call_tool(
        self,
        context: MiddlewareContext[mcp_types.CallToolRequestParams],
        call_next: CallNext[mcp_types.CallToolRequestParams, ToolResult],
    ) -> ToolResult:
        """Run one call. In a turn, raises DatabaseUnavailable and LeaseLost, which are no failures of the tool."""
        call = current_call.get(None)
        if call is not None:
            return await self._run(call, context, call_next)
        with calling(context_from_token()) as call:
            try:
                return await self._run(call, context, call_next)
            except CommitOutcomeUnknown:
                return ToolResult(content=call.unsettled[-1].text_for_client, is_error=True)
            except Exception as error:  # FastMCP would quote an exception that it does not know
                return ToolResult(content=str(to_problem(error)), is_error=True)

    async def _run(
        self, call: CallContext, context: MiddlewareContext[Any], call_next: CallNext[Any, ToolResult]
    ) -> ToolResult:
        tool, arguments = context.message.name, context.message.arguments or {}
        properties = await _read_properties(context, tool)
        described = audit_log.describe(tool, arguments, properties)
        started = time.perf_counter()
        try:
            with self._transaction(call) as begin:
                self._refuse(call, tool)
                result = await _call_tool(context, call_next)
                record = _make_record(call, tool, arguments, "ok", result.structured_content or {}, started)
                begin().execute(STORE_RECORD, record)
        except CommitOutcomeUnknown:
            record = await self._settle(call, UnsettledCall(record, described))
        except (FastMCPError, NotFoundError, ToolFailure, SQLAlchemyError) as error:
            failure = _describe_failure(error, properties or {})
            record = _make_record(call, tool, arguments, "error", {"error": failure}, started)
            record = await self._keep(call, UnsettledCall(record, described))
        call.records.append(ToolCall(**record))
        audit_log.report(record, described)
        return result if record["outcome"] == "ok" else ToolResult(content=record["result"]["error"], is_error=True)

    async def _keep(self, call: CallContext, failed: UnsettledCall) -> Record:
        """Commit the record of a call that failed, and return it."""
        try:
            with self._transaction(call) as begin:
                begin().execute(STORE_RECORD, failed.record)
        except CommitOutcomeUnknown:
            return await self._settle(call, failed)
        return failed.record

    async def _settle(self, call: CallContext, unsettled: UnsettledCall) -> Record:
        """Return the record of the call, once its outcome is known. Raises CommitOutcomeUnknown or LeaseLost."""

        def attempt() -> Record:
            with self._transaction(call) as begin:
                return unsettled.settle(begin())

        try:
            return await retry_while_unavailable(attempt)
        except BaseException as error:
            call.unsettled.append(unsettled)
            unsettled.report("unknown")
            if isinstance(error, DatabaseUnavailable):
                raise CommitOutcomeUnknown(retry_after=error.retry_after) from error
            raise

    def _refuse(self, call: CallContext, tool: str) -> None:
        """Raise ToolFailure for a call that must not reach its tool."""
        if call.refusal:
            raise ToolFailure(call.refusal)
        made = sum(record.tool in self._destructive and record.outcome == "ok" for record in call.records)
        if tool in self._destructive and made >= call.deletions_per_turn:
            raise ToolFailure(
                f"Not done: one message may do this {call.deletions_per_turn} times at most. "
                "Tell the person what is left, and ask whether to go on."
            )

    @contextmanager
    def _transaction(self, call: CallContext) -> Iterator[Callable[[], Session]]:
        """Yield a function that begins the call's transaction. Commit at the end of the block, if it was begun."""
        with ExitStack() as stack:

            @cache
            def begin() -> Session:
                session = stack.enter_context(self._database().transaction(call.user_id))
                if call.check_lease:
                    call.check_lease(session)
                return session

            token = open_session.set(begin)
            try:
                yield begin
            finally:
                open_session.reset(token)


async def _call_tool(context: MiddlewareContext[Any], call_next: CallNext[Any, ToolResult]) -> ToolResult:
    """Run the tool, and raise what it raised. FastMCP wraps that once, and twice what a dependency raised."""
    try:
        return await call_next(context)
    except FastMCPError as error:
        cause = error.__cause__
        if isinstance(cause, RuntimeError) and isinstance(cause.__cause__, ToolFailure):
            raise cause.__cause__ from None
        if isinstance(cause, TaskchatError | SQLAlchemyError | OSError):
            raise cause from None
        raise


def _describe_failure(error: Exception, properties: dict[str, Any]) -> str:
    """Return a sentence for the model. It names the fields at fault, and quotes no exception."""
    if isinstance(error, ToolFailure):
        return str(error)
    if isinstance(error, NotFoundError):
        return "There is no such tool."
    if isinstance(error.__cause__, PydanticValidationError):
        faults = error.__cause__.errors(include_url=False, include_input=False, include_context=False)
        reasons = [f"{_field(fault['loc'], properties)}: {fault['msg']}" for fault in faults[:5]]
        return "Invalid arguments: " + "; ".join(reasons) + "."
    logger.error("tool raised", extra={"error": type(error.__cause__ or error).__name__})
    return "The tool failed. Nothing was changed."


def _field(location: tuple[int | str, ...], properties: dict[str, Any]) -> str:
    """Return the field at fault. The name of an unknown field is the caller's text, and is not sent back."""
    return str(location[0]) if location and location[0] in properties else "unknown"


async def _read_properties(context: MiddlewareContext[Any], tool: str) -> dict[str, Any] | None:
    """Return the arguments in the tool's schema. None for an unknown tool."""
    server = context.fastmcp_context and context.fastmcp_context.fastmcp
    known = await server.get_tool(tool) if server else None
    return known.parameters["properties"] if known else None


def _make_record(
    call: CallContext, tool: str, arguments: Mapping[str, Any], outcome: Outcome, result: dict[str, Any], started: float
) -> Record:
    return {
        "user_id": call.user_id,
        "turn_id": call.turn_id,
        "call_id": call.call_id,
        "position": len(call.records),
        "conversation_id": call.conversation_id,
        "request_id": measures.current().request_id,
        "door": call.door,
        "tool": make_storable(tool[:64]),
        "arguments": make_storable(dict(arguments)),
        "outcome": outcome,
        "result": result,
        "duration_ms": round((time.perf_counter() - started) * 1000, 3),
    }
