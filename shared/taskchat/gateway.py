"""API Gateway's events, made safe for Mangum to read."""

import logging
from base64 import b64encode
from typing import Any, Final

_UNUSED: Final = frozenset({"host", "x-forwarded-port"})
"""Mangum fails on them when they hold no plain host and port. Nobody here reads them."""

# Mangum logs every path, and a path is whatever its caller wrote.
logging.getLogger("mangum").setLevel(logging.WARNING)


def readable(event: dict[str, Any]) -> dict[str, Any]:
    """The event without what a caller could make Mangum fail with: odd hosts and ports, and text that is no Unicode."""
    headers = {name: value for name, value in event.get("headers", {}).items() if name.lower() not in _UNUSED}
    body = event.get("body") or ""
    if not event.get("isBase64Encoded"):
        body = b64encode(body.encode("utf-8", "surrogatepass")).decode()
    return event | {"headers": headers, "body": body, "isBase64Encoded": True}
