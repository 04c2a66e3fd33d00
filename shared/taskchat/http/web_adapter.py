"""Serve an ASGI app behind the AWS Lambda Web Adapter: set the deadline, log and count requests, answer CORS.

The adapter turns each invocation into an HTTP request to this process. It writes two headers, over the client's own:
API Gateway's request context and Lambda's context, both as JSON.
"""

import re
from functools import partial
from typing import Annotated, Any, Final
from uuid import uuid4

from aws_lambda_powertools import Logger
from pydantic import AliasPath, BaseModel, Field
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskchat import deadline
from taskchat.http.gateway import MARGIN
from taskchat.http.middleware import answer_safely
from taskchat.http.telemetry import attempt, count

REQUEST_CONTEXT: Final = "x-amzn-request-context"
LAMBDA_CONTEXT: Final = "x-amzn-lambda-context"

_Cors: Final = partial(
    CORSMiddleware,
    allow_methods=("GET", "POST", "PATCH", "DELETE"),
    allow_headers=("authorization", "content-type", "confirm", "idempotency-key"),
    expose_headers=("idempotent-replayed", "retry-after", "www-authenticate"),
    max_age=3600,
)
"""The same as the HTTP API's CorsConfiguration, less the headers of MCP clients."""

logger = Logger()

_Id = Annotated[str, Field(pattern=re.compile(r"\A[A-Za-z0-9=_-]{1,64}\Z"))]


class RequestContext(BaseModel):
    """The part of API Gateway's request context that log lines hold."""

    request_id: _Id = Field(validation_alias="requestId")


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
    is_cold = True

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal is_cold
        if scope["type"] != "http" or REQUEST_CONTEXT not in (headers := Headers(scope=scope)):
            await app(scope, receive, send)  # the adapter asks in this way whether the process is ready
            return
        context = _context(headers)
        attempt(_add_ids_to_log, headers, context, is_cold)
        is_cold = False

        async def send_counted(message: Message) -> None:
            # At the response's beginning: after its last byte Lambda freezes the process.
            if message["type"] == "http.response.start":
                count(message["status"], context)
            await send(message)

        with deadline.within(seconds - MARGIN):
            await app(scope, receive, send_counted)

    return serve


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


def _add_ids_to_log(headers: Headers, context: LambdaContext, is_cold: bool) -> None:
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
    logger.thread_safe_append_keys(cold_start=is_cold, correlation_id=_correlation_id(headers), **known)


def _correlation_id(headers: Headers) -> str:
    """Return API Gateway's id of the request, or a new id if the header holds none."""
    try:
        return RequestContext.model_validate_json(headers[REQUEST_CONTEXT]).request_id
    except ValueError:
        return str(uuid4())
