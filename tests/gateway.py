"""API Gateway as a handler sees it: HTTP API events (payload 2.0) in, status, headers and body out."""

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
    """The context of one invocation, with as much time left as the test says."""

    function_name = "taskchat"
    function_version = "1"
    memory_limit_in_mb = 1024
    invoked_function_arn = "arn:aws:lambda:eu-central-1:123456789012:function:taskchat"

    def __init__(self, seconds: float = 30) -> None:
        self.aws_request_id = str(uuid4())
        self._milliseconds = int(seconds * 1000)

    def get_remaining_time_in_millis(self) -> int:
        """Time left, in milliseconds."""
        return self._milliseconds


@dataclass(frozen=True)
class Response:
    """What the caller gets."""

    status: int
    headers: dict[str, str]
    body: str

    @cached_property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


def event(method: str, path: str, *, headers: dict[str, str] | None = None, body: bytes = b"") -> dict[str, Any]:
    """The event for a request to a deployed HTTP API."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
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
    """One invocation of a warm environment."""
    answer = handler(request, LambdaContext(seconds))
    body = base64.b64decode(answer["body"]).decode() if answer["isBase64Encoded"] else answer["body"]
    return Response(answer["statusCode"], answer["headers"], body)


@contextmanager
def runtime_log() -> Iterator[io.StringIO]:
    """What the Lambda runtime's own handler writes: all that reaches the root logger from INFO on, tracebacks included.

    Not pytest's caplog, which also sees what is kept from the root logger.
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
