"""The little HTTP that the development commands speak to the local server."""

import http.client
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

PATIENCE_SECONDS = 40  # longer than any turn may take


class UnreachableError(Exception):
    """Raised when nothing, or something that doesn't speak HTTP, is at the address."""


def call(
    url: str,
    path: str,
    body: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    patience: float = PATIENCE_SECONDS,
) -> tuple[int, Any]:
    """GET the path, or POST the body as JSON. Returns the status and the parsed answer; raises UnreachableError."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=patience)
    try:
        if body is None:
            connection.request("GET", path, headers=headers or {})
        else:
            content = {"Content-Type": "application/json", **(headers or {})}
            connection.request("POST", path, json.dumps(body).encode(), content)
        response = connection.getresponse()
        return response.status, _parsed(response.read())
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(f"{url} does not answer ({type(error).__name__}).") from error
    finally:
        connection.close()


def token(url: str) -> dict[str, Any]:
    """The developer's id and a fresh token, from the development server. Raises UnreachableError."""
    status, answer = call(url, "/dev/token")
    if status != HTTPStatus.OK or not isinstance(answer, dict):
        raise UnreachableError(f"{url} is not a development server of taskchat.")
    return answer


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None
