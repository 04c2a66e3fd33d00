"""Take a turn of the running server for `make chat`, event by event."""

import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from dev import client
from dev.client import UnreachableError

Event = tuple[str, dict[str, Any]]
"""Name and data of an event. `failed` may have `retry_after`, in seconds, besides the members of its problem."""


@dataclass(frozen=True)
class Message:
    """A message on its way. Sent again, it is the same turn."""

    text: str
    conversation: str | None
    key: str = field(default_factory=lambda: str(uuid.uuid4()))


def take(url: str, message: Message) -> Iterator[Event]:
    """Send the message and yield the turn's events. A refused request is one `failed` event. Raises UnreachableError.

    Closing the iterator leaves the turn, which goes on.
    """
    identity = client.token(url)
    headers = {
        "Authorization": f"Bearer {identity['token']}",
        "Idempotency-Key": message.key,
        "Accept": "text/event-stream",
    }
    body = {"message": message.text, "conversation_id": message.conversation}
    with client.opened(url, f"/api/{identity['user_id']}/chat", body, headers) as response:
        if response.status != HTTPStatus.OK:
            yield "failed", _problem(response.status, response.read(), response.headers["Retry-After"])
            return
        yield from _until_the_end(_events(response), url)


def _until_the_end(events: Iterable[Event], url: str) -> Iterator[Event]:
    """Yield the events up to the last one. Raises UnreachableError if it does not come."""
    for event in events:
        yield event
        if event[0] in ("finished", "failed"):
            return
    raise UnreachableError(f"{url} broke off its answer.")


def _problem(status: int, content: bytes, retry_after: str | None) -> dict[str, Any]:
    try:
        problem = json.loads(content)
    except ValueError:
        problem = {"title": "The answer is not JSON."}
    return {"status": status, **problem} | ({"retry_after": int(retry_after)} if retry_after else {})


def _events(lines: Iterable[bytes]) -> Iterator[Event]:
    """Parse server-sent events: lines with a field each, and an empty line behind each event."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            waiting = {"retry_after": int(fields["retry"]) // 1000} if "retry" in fields else {}
            yield fields["event"], json.loads(fields["data"]) | waiting
            fields = {}
