"""Make API Gateway's events (HTTP API, payload 2.0), and read a handler's responses."""

import base64
import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import uuid4

Handler = Callable[[dict[str, Any], Any], dict[str, Any]]


class LambdaContext:
    """Give the context of one invocation, with a remaining time that the caller sets."""

    function_name = "taskchat"
    function_version = "1"
    memory_limit_in_mb = 1024
    invoked_function_arn = "arn:aws:lambda:eu-central-1:123456789012:function:taskchat"

    def __init__(self, seconds: float = 30) -> None:
        self.aws_request_id = str(uuid4())
        self._milliseconds = int(seconds * 1000)

    def get_remaining_time_in_millis(self) -> int:
        """Return the remaining time in milliseconds."""
        return self._milliseconds


@dataclass(frozen=True)
class Response:
    """Hold a response as the client gets it."""

    status: int
    headers: dict[str, str]
    body: str

    @cached_property
    def json(self) -> Any:
        """Parse the body."""
        return json.loads(self.body)


def event(
    method: str, path: str, *, query: str = "", headers: dict[str, str] | None = None, body: bytes = b""
) -> dict[str, Any]:
    """Return the event of a request to a deployed HTTP API."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": query,
        "headers": {"host": "api.example.com", "x-forwarded-proto": "https", **(headers or {})},
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "api",
            "domainName": "api.example.com",
            "requestId": str(uuid4()),
            "http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1", "userAgent": "t"},
            "stage": "$default",
        },
        "body": base64.b64encode(body).decode(),
        "isBase64Encoded": True,
    }


def invoke(handler: Handler, request: dict[str, Any], *, seconds: float = 30) -> Response:
    """Invoke a handler once."""
    answer = handler(request, LambdaContext(seconds))
    body = base64.b64decode(answer["body"]).decode() if answer["isBase64Encoded"] else answer["body"]
    return Response(answer["statusCode"], answer["headers"], body)


@contextmanager
def runtime_log() -> Iterator[io.StringIO]:
    """Collect what the Lambda runtime's handler writes: all records of the root logger from INFO on, with tracebacks.

    Unlike pytest's caplog it does not see records that do not propagate to the root logger.
    """
    written, root = io.StringIO(), logging.getLogger()
    handler, before = logging.StreamHandler(written), root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield written
    finally:
        root.setLevel(before)
        root.removeHandler(handler)
