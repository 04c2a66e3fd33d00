"""Define an encoder of a turn's events, and the texts that the encoders share."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final, Protocol

from chat.stream.events import Event
from taskchat.errors import TaskchatError
from taskchat.text import make_storable

MEDIA_TYPE: Final = "text/event-stream"

_write: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Encoder(Protocol):
    """Write a turn's events in one protocol. It belongs to one response, and never raises."""

    headers: ClassVar[Mapping[str, str]]
    """The protocol's headers of the response, besides its media type."""

    def encode(self, event: Event) -> Iterable[bytes]:
        """Return what to send for the event."""
        ...


def write_json(value: Any) -> str:
    """Return JSON in one line. Every UTF-8 encoder and JSON parser takes it, whatever the model wrote."""
    return _write(make_storable(value))


def explain(problem: TaskchatError) -> str:
    """Return the problem's title and detail, for a protocol that has one text for both."""
    return f"{problem.title} {problem.detail}" if problem.detail else problem.title
