"""Call the control routes of a stand-in, for tests and scripts."""

import http.client
import json
from typing import Any
from urllib.parse import quote, urlsplit

from .conversation import Json

TIMEOUT = 30  # seconds; no control route takes as long


class StandIn:
    """A running stand-in, in this process or another. An OpenAI client takes its `base_url`."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url

    def fault(self, name: str, /, **parameters: Any) -> None:
        """Set a fault: `match`, `times`, `after_calls` and its own parameters. Raises ValueError if one is unknown."""
        self._control("POST", "faults", {"fault": name, **parameters})

    def accept(self, *keys: str) -> None:
        """Accept these API keys and no other, or any key if none is given."""
        self._control("POST", "keys", {"keys": keys or None})

    def requests(self, match: str | None = None) -> list[Json]:
        """Return the recorded requests, oldest first; with `match`, those whose last user message contains it."""
        found: list[Json] = self._control("GET", f"requests?match={quote(match or '')}")
        return found

    def waiting(self, at_least: int = 0) -> int:
        """Return how many requests hang or pause; with `at_least`, wait until that many do."""
        number: int = self._control("GET", f"waiting?at_least={at_least}")["waiting"]
        return number

    def release(self) -> None:
        """Let these requests go on."""
        self._control("POST", "release")

    def reset(self) -> None:
        """Forget all faults and recorded requests, accept any key, and let the hanging requests go on."""
        self.accept()
        self._control("DELETE", "faults")
        self._control("DELETE", "requests")
        self.release()

    def _control(self, method: str, path: str, body: Json | None = None) -> Any:
        connection = http.client.HTTPConnection(urlsplit(self.base_url).netloc, timeout=TIMEOUT)
        try:
            connection.request(method, f"/control/{path}", body=json.dumps(body) if body else None)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status >= http.client.BAD_REQUEST:
            raise ValueError(json.loads(content)["error"]["message"])
        return json.loads(content) if content else None
