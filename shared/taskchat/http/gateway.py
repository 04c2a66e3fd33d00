"""Turn an ASGI app into a Lambda handler: check API Gateway's event, set the deadline, log and count the invocation."""

import re
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote
from uuid import uuid4

from mangum import Mangum
from mangum.types import ASGI, LambdaContext, LifespanMode
from pydantic import AfterValidator, AliasPath, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from starlette.types import Receive, Scope, Send

from taskchat import deadline, measures
from taskchat.errors import Malformed
from taskchat.http.middleware import SECURITY_HEADERS
from taskchat.http.problems import problem_response
from taskchat.http.telemetry import REQUEST_ID, Reporter, attempt, logger
from taskchat.measures import Measures, measuring

MAX_SECONDS: Final = 29.0
"""API Gateway gives up after 30 s, and a client without an answer cannot know what was done."""

MARGIN: Final = 1.5
"""Seconds by which the deadline is earlier than the end of MAX_SECONDS, or of the invocation. In them a turn releases
its lease and the app answers."""

_HOST: Final = re.compile(r"[A-Za-z0-9.-]+(:[0-9]{1,5})?")
"""Mangum fails on other values of Host, and no domain of this service has one. They are dropped."""

ID: Final = re.compile(r"[A-Za-z0-9=_-]{1,64}")
"""The ids of API Gateway and of Lambda. Any other text is replaced: it would go into headers and log lines."""

Handler = Callable[[dict[str, Any], Any], dict[str, Any]]

_Serve = Callable[["Event", dict[str, Any], LambdaContext], dict[str, Any]]


def _check_unicode(text: str) -> str:
    text.encode()  # a UnicodeEncodeError is a ValueError
    return text


_Text = Annotated[str, AfterValidator(_check_unicode)]


class Event(BaseModel):
    """The parts of an HTTP API's event (payload 2.0) that the app reads."""

    model_config = ConfigDict(alias_generator=to_camel, strict=True)

    version: Literal["2.0"]
    raw_query_string: _Text = ""
    headers: dict[_Text, _Text] = {}
    cookies: list[_Text] | None = None
    body: str | None = None
    is_base64_encoded: bool = False
    method: _Text = Field(validation_alias=AliasPath("requestContext", "http", "method"))
    path: _Text = Field(validation_alias=AliasPath("requestContext", "http", "path"))
    source_ip: _Text | None = Field(None, validation_alias=AliasPath("requestContext", "http", "sourceIp"))
    api_id: Annotated[str, Field(pattern=r"^[a-z0-9]{1,32}$")] | None = Field(
        None, validation_alias=AliasPath("requestContext", "apiId")
    )
    """API Gateway writes it: no caller can choose it, whatever host the request names."""
    time_epoch: int = Field(0, ge=0, lt=2**53, validation_alias=AliasPath("requestContext", "timeEpoch"))
    """Milliseconds."""

    def for_mangum(self) -> dict[str, Any]:
        """Return the event without anything that Mangum fails on. Raises ValueError for a body that is not base64."""
        body = (self.body or "").encode("utf-8", "surrogatepass")
        content = b64decode(body, validate=True) if self.is_base64_encoded else body
        headers = {name.lower(): value for name, value in self.headers.items()}
        headers.pop("x-forwarded-port", None)
        if not _HOST.fullmatch(headers.get("host", "")):
            headers.pop("host", None)
        # API Gateway has decoded the path. Mangum decodes it again, and a path that was encoded twice would change.
        http = {"method": self.method, "path": quote(self.path), "sourceIp": self.source_ip}
        return {
            "version": self.version,
            "rawQueryString": self.raw_query_string,
            "headers": headers,
            "cookies": self.cookies,
            "body": b64encode(content).decode(),
            "isBase64Encoded": True,
            "requestContext": {"http": http},
        }


def seconds_left(event: Event, context: LambdaContext) -> float:
    """Return the seconds that a request has left, by Lambda's clock and by API Gateway's, which counts a cold start."""
    return min(context.get_remaining_time_in_millis() / 1000, MAX_SECONDS - waited(event.time_epoch))


def waited(time_epoch: int) -> float:
    """Return the seconds since the gateway got a request. An event that was made by hand may hold any time: 0 then."""
    seconds = time.time() - time_epoch / 1000
    return seconds if 0 <= seconds <= MAX_SECONDS else 0.0


def usable_id(id: Any) -> str:
    """Return the gateway's id of a request, or a new one in place of any other value."""
    return id if isinstance(id, str) and ID.fullmatch(id) else str(uuid4())


def lambda_handler(app: ASGI, lifespan: LifespanMode, prepare: Callable[[Event], None] = lambda _: None) -> Handler:
    """Return Lambda's entry point to the app, with a log and metrics for each invocation.

    `prepare` gets each event before the app gets its request.
    """

    async def noting_scope(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            measures.current().scope = scope
        await app(scope, receive, send)

    def serve(event: Event, mangum_event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
        prepare(event)
        return adapter(mangum_event, context)

    adapter = Mangum(noting_scope, lifespan=lifespan, text_mime_types=["application/", "text/"])
    reporter = Reporter()

    def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
        request = Measures(usable_id(_id_in(event)))
        attempt(logger.clear_state)
        attempt(_add_ids_to_log, event, context)
        attempt(logger.set_correlation_id, request.request_id)
        with measuring(request):
            response = _answer(serve, event, context)
        response["headers"][REQUEST_ID.lower()] = request.request_id
        reporter.report(request, response["statusCode"], context)
        return response

    return handler


def _id_in(event: Any) -> Any:
    try:
        return event["requestContext"]["requestId"]
    except (TypeError, LookupError):
        return None


def _answer(serve: _Serve, event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Return the app's response to an event, or a 400 for an event that no gateway wrote."""
    try:
        request = Event.model_validate(event)
        mangum_event = request.for_mangum()
    except ValueError:
        refusal = problem_response(Malformed())
        headers = dict(refusal.headers) | {name.lower(): value for name, value in SECURITY_HEADERS.items()}
        body = bytes(refusal.body).decode()
        return {"statusCode": refusal.status_code, "headers": headers, "body": body, "isBase64Encoded": False}
    measures.current().arrived -= waited(request.time_epoch)
    with deadline.within(seconds_left(request, context) - MARGIN):
        return serve(request, mangum_event, context)


# Never log the event itself, whatever the environment says: it holds the caller's token.
@logger.inject_lambda_context(clear_state=True, log_event=False)
def _add_ids_to_log(_event: dict[str, Any], _context: LambdaContext) -> None:
    """Add the invocation's ids to each log line. The decorator does it."""
