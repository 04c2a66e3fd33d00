"""Between API Gateway and an ASGI app: events made safe to read, the time a request has, the Lambda handler."""

import re
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.logging import correlation_paths
from aws_lambda_powertools.metrics import MetricUnit
from mangum import Mangum
from mangum.types import ASGI, LambdaContext, LifespanMode
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from taskchat import deadline
from taskchat.errors import Malformed
from taskchat.http.middleware import SECURITY_HEADERS
from taskchat.http.problems import problem_response

MAX_SECONDS: Final = 29.0
"""API Gateway gives up after 30 s, and a person who got no answer cannot know what was done."""

MARGIN: Final = 1.5
"""Seconds kept back from the deadline, to store how far the turn came and to answer."""

NAMESPACE: Final = "taskchat"
"""The metrics' namespace where POWERTOOLS_METRICS_NAMESPACE names none."""

_HOST: Final = re.compile(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?")
"""Mangum fails on others. No domain of ours is written otherwise, so that they are as good as none."""

Handler = Callable[[dict[str, Any], Any], dict[str, Any]]

logger = Logger()
metrics = Metrics()
metrics.namespace = metrics.namespace or NAMESPACE


def _unicode(text: str) -> str:
    text.encode()  # a UnicodeEncodeError is a ValueError
    return text


_Text = Annotated[str, AfterValidator(_unicode)]


class _Part(BaseModel):
    """A part of an event, in the words of API Gateway; what is not read here is left out."""

    model_config = ConfigDict(alias_generator=to_camel, strict=True)


class _Http(_Part):
    method: _Text
    path: _Text
    source_ip: _Text | None = None


class _RequestContext(_Part):
    http: _Http
    time_epoch: int = Field(default=0, ge=0, lt=2**53)
    """Milliseconds."""


class Event(_Part):
    """A request as API Gateway's HTTP APIs write it down (payload 2.0), as far as anybody here reads it."""

    version: Literal["2.0"]
    raw_query_string: _Text = ""
    headers: dict[_Text, _Text] = {}
    cookies: list[_Text] | None = None
    body: str | None = None
    is_base64_encoded: bool = False
    request_context: _RequestContext

    def readable(self) -> dict[str, Any]:
        """The event for Mangum, without what it fails on. Raises ValueError when the body is no base64."""
        body = (self.body or "").encode("utf-8", "surrogatepass")
        content = b64decode(body, validate=True) if self.is_base64_encoded else body
        headers = {name.lower(): value for name, value in self.headers.items()}
        headers.pop("x-forwarded-port", None)
        if not _HOST.fullmatch(headers.get("host", "")):
            headers.pop("host", None)
        readable = {"headers": headers, "body": b64encode(content).decode(), "is_base64_encoded": True}
        event = self.model_copy(update=readable).model_dump(by_alias=True)
        # The gateway has decoded the path. Mangum decodes it again, and what was encoded twice would be another path.
        event["requestContext"]["http"]["path"] = quote(self.request_context.http.path)
        return event


def seconds_left(event: Event, context: LambdaContext) -> float:
    """How long a request may still take: by Lambda's clock, and by the gateway's, which began before a cold start."""
    waited = time.time() - event.request_context.time_epoch / 1000
    # An event that was made by hand bears any time at all.
    in_gateway = MAX_SECONDS - waited if 0 <= waited <= MAX_SECONDS else MAX_SECONDS
    return min(context.get_remaining_time_in_millis() / 1000, in_gateway)


def _answering(app: ASGI, lifespan: LifespanMode) -> Handler:
    """Return a function that turns an event of API Gateway's HTTP APIs (payload 2.0) into the app's response."""
    adapter = Mangum(app, lifespan=lifespan, text_mime_types=["application/", "text/"])

    def answer(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
        try:
            request = Event.model_validate(event)
            readable = request.readable()
        except ValueError:
            return _refusal()
        with deadline.within(seconds_left(request, context) - MARGIN):
            return adapter(readable, context)

    return answer


def lambda_handler(app: ASGI, lifespan: LifespanMode) -> Handler:
    """Return Lambda's entry point to the app, with a log and metrics for each invocation."""
    answer = _answering(app, lifespan)

    def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
        _beside(logger.clear_state)
        _beside(_name_lines, event, context)
        response = answer(event, context)
        _beside(_measure, response, context)
        _beside(metrics.clear_metrics)  # what could not be told is not told with the next request
        return response

    return handler


def _beside(step: Callable[..., object], *about: Any) -> None:
    """Take a step that only tells of a request. A failure is logged, if that can be done, and changes nothing."""
    try:
        step(*about)
    except Exception as error:
        with suppress(Exception):
            logger.error("not told", extra={"reason": type(error).__name__})


# Never the event itself, whatever the environment says: it holds its caller's token.
@logger.inject_lambda_context(correlation_id_path=correlation_paths.API_GATEWAY_HTTP, clear_state=True, log_event=False)
def _name_lines(_event: dict[str, Any], _context: LambdaContext) -> None:
    """Give the log lines of an invocation its ids: the decorator does."""


@metrics.log_metrics(capture_cold_start_metric=True)
def _measure(response: dict[str, Any], _context: LambdaContext) -> None:
    """Count an invocation by its status. The decorator writes the metrics."""
    metrics.add_metric(name=f"Status{response['statusCode'] // 100}xx", unit=MetricUnit.Count, value=1)


def _refusal() -> dict[str, Any]:
    """What is answered to an event that no gateway wrote."""
    response = problem_response(Malformed())
    headers = dict(response.headers) | {name.lower(): value for name, value in SECURITY_HEADERS.items()}
    body = bytes(response.body).decode()
    return {"statusCode": response.status_code, "headers": headers, "body": body, "isBase64Encoded": False}
