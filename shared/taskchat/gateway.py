"""Between API Gateway and an ASGI app: events made safe to read, the time a request has, the Lambda handler."""

import logging
import time
from base64 import b64encode
from collections.abc import Callable
from typing import Any, Final

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.logging import correlation_paths
from aws_lambda_powertools.metrics import MetricUnit
from mangum import Mangum
from mangum.types import ASGI, LambdaContext, LifespanMode

from taskchat import deadline

MAX_SECONDS: Final = 29.0
"""API Gateway gives up after 30 s, and a person who got no answer cannot know what was done."""

MARGIN: Final = 1.5
"""Seconds kept back from the deadline, to store how far the turn came and to answer."""

_UNUSED: Final = frozenset({"host", "x-forwarded-port"})
"""Mangum fails on them when they hold no plain host and port. Nobody here reads them."""

Handler = Callable[[dict[str, Any], Any], dict[str, Any]]

logger = Logger()
metrics = Metrics()

# Mangum logs every path, and a path is whatever its caller wrote.
logging.getLogger("mangum").setLevel(logging.WARNING)


def seconds_left(event: dict[str, Any], context: LambdaContext) -> float:
    """How long a request may still take: by Lambda's clock, and by the gateway's, which began before a cold start."""
    waited = time.time() - event["requestContext"].get("timeEpoch", 0) / 1000
    # An event that was made by hand bears any time at all.
    in_gateway = MAX_SECONDS - waited if 0 <= waited <= MAX_SECONDS else MAX_SECONDS
    return min(context.get_remaining_time_in_millis() / 1000, in_gateway)


def lambda_handler(app: ASGI, lifespan: LifespanMode) -> Handler:
    """Lambda's entry point to the app, for API Gateway's HTTP API events (payload 2.0)."""
    adapter = Mangum(app, lifespan=lifespan, text_mime_types=["application/", "text/"])

    @logger.inject_lambda_context(correlation_id_path=correlation_paths.API_GATEWAY_HTTP, clear_state=True)
    @metrics.log_metrics(capture_cold_start_metric=True)
    def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
        with deadline.within(seconds_left(event, context) - MARGIN):
            response = adapter(_readable(event), context)
        metrics.add_metric(name=f"Status{response['statusCode'] // 100}xx", unit=MetricUnit.Count, value=1)
        return response

    decorated: Handler = handler
    return decorated


def _readable(event: dict[str, Any]) -> dict[str, Any]:
    """The event without what a caller could make Mangum fail with: odd hosts and ports, and text that is no Unicode."""
    headers = {name: value for name, value in event.get("headers", {}).items() if name.lower() not in _UNUSED}
    body = event.get("body") or ""
    if not event.get("isBase64Encoded"):
        body = b64encode(body.encode("utf-8", "surrogatepass")).decode()
    return event | {"headers": headers, "body": body, "isBase64Encoded": True}
