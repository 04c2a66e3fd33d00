"""Call the local server over HTTP, for the development commands."""

import contextlib
import http.client
import json
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 40  # longer than any turn may take


class UnreachableError(Exception):
    """Raised when no HTTP server answers at the address."""


def call(
    url: str,
    path: str,
    body: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    timeout: float = TIMEOUT_SECONDS,
) -> tuple[int, Any]:
    """GET the path, or POST the body as JSON. Return the status and the parsed answer. Raises UnreachableError."""
    with opened(url, path, body, headers, timeout=timeout) as response:
        return response.status, _parsed(response.read())


@contextlib.contextmanager
def opened(
    url: str,
    path: str,
    body: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    timeout: float = TIMEOUT_SECONDS,
) -> Iterator[http.client.HTTPResponse]:
    """Send as `call` does, and yield the response to read from. Raises UnreachableError, in the block too."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout)
    content = None if body is None else json.dumps(body).encode()
    json_type = {} if body is None else {"Content-Type": "application/json"}
    try:
        connection.request("GET" if body is None else "POST", path, content, {**json_type, **(headers or {})})
        yield connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise UnreachableError(f"{url} does not answer ({type(error).__name__}).") from error
    finally:
        connection.close()


def token(url: str) -> dict[str, Any]:
    """Return the developer's id and fresh tokens from the development server. Raises UnreachableError."""
    status, answer = call(url, "/dev/token")
    if status != HTTPStatus.OK or not isinstance(answer, dict):
        raise UnreachableError(f"The server at {url} is not a development server of taskchat.")
    return answer


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None
