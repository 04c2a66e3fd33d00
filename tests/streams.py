"""Read a turn's events over real HTTP, as they come."""

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from testing.callers import Caller

Event = tuple[str, Any]

SSE = "text/event-stream"
PATIENCE = 60
"""Seconds after which a test fails in place of hanging."""


@dataclass
class Stream:
    """A response whose body comes in pieces."""

    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse
    read: list[Event] = field(default_factory=list)
    """The events so far."""
    comments: int = 0

    @property
    def status(self) -> int:
        return self.response.status

    def header(self, name: str) -> str | None:
        return self.response.headers[name]

    @cached_property
    def json(self) -> Any:
        """The body of an answer that is no stream."""
        return json.loads(self.response.read())

    def events(self) -> Iterator[Event]:
        """Yield each event when it comes, until the end."""
        for frame in self._frames():
            if list(frame) == [""]:
                self.comments += 1
                continue
            assert frame["id"] == str(len(self.read))
            self.read.append((frame["event"], json.loads(frame["data"])))
            yield self.read[-1]

    def until(self, name: str) -> Event:
        """Return the next event of this name. Fails if the stream ends before."""
        return next(event for event in self.events() if event[0] == name)

    def all(self) -> list[Event]:
        """Return all events, once the stream has ended."""
        for _ in self.events():
            pass
        return self.read

    def leave(self) -> None:
        """Close the connection in the middle, as a browser tab does."""
        self.response.close()
        self.connection.close()

    def _frames(self) -> Iterator[dict[str, str]]:
        frame: dict[str, str] = {}
        while line := self.response.readline().decode():
            if line == "\n":
                yield frame
                frame = {}
            else:
                name, _, value = line.rstrip("\n").partition(":")
                frame[name] = value.removeprefix(" ")


def reply_of(events: list[Event]) -> str:
    """Return the text of the last message."""
    texts = [data for name, data in events if name == "text"]
    return "".join(data["text"] for data in texts if data["message"] == texts[-1]["message"])


@dataclass(frozen=True)
class Client:
    """A person's client at one server."""

    url: str
    caller: Caller

    @contextmanager
    def stream(self, body: Any, *, method: str = "POST", path: str = "/chat", **headers: str) -> Iterator[Stream]:
        """Send a request and yield its response, as far as its headers. The body is JSON, or bytes as they are."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=PATIENCE)
        sent = {"authorization": f"Bearer {self.caller.token}", "content-type": "application/json", "accept": SSE}
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, f"/api/{self.caller.id}{path}", raw, sent)
            yield Stream(connection, connection.getresponse())
        finally:
            connection.close()

    def say(self, message: str, key: str, conversation_id: str | None = None, **headers: str) -> Any:
        """Stream one turn in the protocol of its own."""
        return self.stream({"message": message, "conversation_id": conversation_id}, idempotency_key=key, **headers)

    def ask(self, message: str, key: str, conversation_id: str | None = None) -> Stream:
        """Take one turn as JSON."""
        with self.say(message, key, conversation_id, accept="application/json") as answer:
            assert answer.json
            return answer
