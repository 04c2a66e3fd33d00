"""Write the events of a turn as they are: named server-sent events, numbered from 0."""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, ClassVar, Final

from pydantic_core import to_json

from chat.stream.encoding import write_json
from chat.stream.events import Accepted, Event, Failed, Finished, Text, ToolFinished, ToolStarted
from taskchat.http.problems import problem_content

NAMES: Final[dict[type[Any], str]] = {
    Accepted: "accepted",
    ToolStarted: "tool_started",
    ToolFinished: "tool_finished",
    Text: "text",
    Finished: "finished",
    Failed: "failed",
}


class SseEncoder:
    """Writes each event under its name, with its number."""

    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self) -> None:
        self._numbers = count()

    def encode(self, event: Event) -> Iterator[bytes]:
        """Yield one frame. A problem's waiting time comes as the stream's own `retry`, in milliseconds."""
        retry = (
            f"retry: {event.problem.retry_after}000\n"
            if isinstance(event, Failed) and event.problem.retry_after
            else ""
        )
        head = f"event: {NAMES[type(event)]}\nid: {next(self._numbers)}\n{retry}data: "
        yield head.encode() + _data(event) + b"\n\n"


def _data(event: Event) -> bytes:
    match event:
        case ToolFinished(call):
            return call.model_dump_json().encode()
        case Finished(response):
            return response.model_dump_json().encode()
        case Failed(problem):
            return write_json(problem_content(problem)).encode()
    return to_json(event)
