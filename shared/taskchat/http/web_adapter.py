"""Serve an ASGI app behind the AWS Lambda Web Adapter: set the deadline, log and count requests, answer CORS.

The adapter turns each invocation into an HTTP request to this process. It writes two headers, over the client's own:
API Gateway's request context and Lambda's context, both as JSON.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Final

from aws_lambda_powertools import Logger
from pydantic import AliasPath, BaseModel, Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskchat import deadline
from taskchat.http.gateway import ID, MARGIN, usable_id, waited
from taskchat.http.middleware import answer_safely
from taskchat.http.telemetry import REQUEST_ID, Reporter, attempt
from taskchat.measures import Measures, measuring

REQUEST_CONTEXT: Final = "x-amzn-request-context"
LAMBDA_CONTEXT: Final = "x-amzn-lambda-context"

_Cors: Final = partial(
    CORSMiddleware,
    allow_methods=("GET", "POST", "PATCH", "DELETE"),
    allow_headers=("authorization", "content-type", "confirm", "idempotency-key"),
    expose_headers=("idempotent-replayed", "retry-after", "www-authenticate", "x-request-id"),
    max_age=3600,
)
"""The same as the HTTP API's CorsConfiguration, less the headers of MCP clients."""

logger = Logger()

_Id = Annotated[str, Field(pattern=re.compile(rf"\A{ID.pattern}\Z"))]


class LambdaContext(BaseModel):
    """The parts of Lambda's context that log lines and metrics hold."""

    request_id: _Id
    invoked_function_arn: str
    function_name: str = Field(validation_alias=AliasPath("env_config", "function_name"))
    memory: int = Field(validation_alias=AliasPath("env_config", "memory"))


UNKNOWN: Final = LambdaContext.model_construct(function_name="unknown")
"""The context of a request without a usable one."""


def observe(app: ASGIApp, seconds: float) -> ASGIApp:
    """Return the app with a deadline `seconds` from each request, with ids in its log lines, and with its metrics.

    Several requests may run at once, so the ids are in the request's context and not in the logger.
    """
    is_cold, reporter = True, Reporter()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal is_cold
        if scope["type"] != "http" or REQUEST_CONTEXT not in (headers := Headers(scope=scope)):
            await app(scope, receive, send)  # the adapter asks in this way whether the process is ready
            return
        context, measures = _context(headers), _begin_measures(headers, scope)
        attempt(_add_ids_to_log, measures, context, is_cold)
        is_cold = False
        response = _Response(send, measures, lambda status: reporter.report(measures, status, context))
        with deadline.within(seconds - MARGIN), measuring(measures):
            try:
                await app(scope, receive, response.send)
            finally:
                response.report()

    return serve


class _Response:
    """Adds the request's id to a response, and reports it before its last byte: after that, Lambda freezes all."""

    def __init__(self, send: Send, measures: Measures, report: Callable[[int], None]) -> None:
        self._send, self._measures, self._report = send, measures, report
        self._status, self._is_reported = 500, False  # the server's status for a response that does not begin

    async def send(self, message: Message) -> None:
        """Send a part of the response."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            MutableHeaders(scope=message)[REQUEST_ID] = str(self._measures.request_id)
        elif not message.get("more_body", False):
            self.report()
        elif self._measures.first_event_ms is None:
            self._measures.first_event_ms = self._measures.elapsed_ms()
        await self._send(message)

    def report(self) -> None:
        """Report the request, unless that is done. A client that has left does not get the last byte."""
        if not self._is_reported:
            self._is_reported = True
            self._report(self._status)


def allow_origins(app: ASGIApp, origins: frozenset[str]) -> ASGIApp:
    """Return the app with CORS for pages of these origins, on errors too. A REST API has none of its own."""
    if not origins:
        return app
    return answer_safely(_Cors(app, allow_origins=origins))


def _context(headers: Headers) -> LambdaContext:
    try:
        return LambdaContext.model_validate_json(headers.get(LAMBDA_CONTEXT, ""))
    except ValueError:
        return UNKNOWN


def _add_ids_to_log(measures: Measures, context: LambdaContext, is_cold: bool) -> None:
    """Add to the request's log lines the keys that Powertools adds to those of a Lambda handler."""
    known: dict[str, Any] = (
        {}
        if context is UNKNOWN
        else {
            "function_name": context.function_name,
            "function_memory_size": context.memory,
            "function_arn": context.invoked_function_arn,
            "function_request_id": context.request_id,
        }
    )
    logger.thread_safe_clear_keys()
    logger.thread_safe_append_keys(cold_start=is_cold, correlation_id=measures.request_id, **known)


def _begin_measures(headers: Headers, scope: Scope) -> Measures:
    """Return figures with API Gateway's id of the request, or a new id, and with the time of its arrival."""
    try:
        context = json.loads(headers[REQUEST_CONTEXT])
    except ValueError:
        context = None
    known = context if isinstance(context, dict) else {}
    measures, arrived = Measures(usable_id(known.get("requestId")), scope), known.get("requestTimeEpoch")
    if isinstance(arrived, int) and 0 <= arrived < 2**53:
        measures.arrived -= waited(arrived)
    return measures
