"""The other side of the control routes, for tests and scripts."""

import http.client
import json
from typing import Any
from urllib.parse import quote, urlsplit

Json = dict[str, Any]


class StandIn:
    """A running stand-in, wherever it runs: `base_url` is what an OpenAI client takes."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url

    def requests(self, match: str | None = None) -> list[Json]:
        """The recorded requests, oldest first; with `match`, those whose last user message contains it."""
        found: list[Json] = self._control("GET", f"requests?match={quote(match or '')}")
        return found

    def reset(self) -> None:
        """Forget all recorded requests."""
        self._control("DELETE", "requests")

    def _control(self, method: str, path: str, body: Json | None = None) -> Any:
        connection = http.client.HTTPConnection(urlsplit(self.base_url).netloc, timeout=30)
        try:
            connection.request(method, f"/control/{path}", body=json.dumps(body) if body else None)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status >= 400:
            raise ValueError(content.decode())
        return json.loads(content) if content else None
