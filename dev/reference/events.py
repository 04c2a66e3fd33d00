"""Write docs/events.md from the classes of a turn's events."""

from typing import Any, Final

from pydantic import TypeAdapter

from chat.schemas import ChatResponse, ToolCallView, TurnProblem
from chat.stream.events import Failed, Finished, ToolFinished
from chat.stream.sse import NAMES
from dev.reference.markdown import Schema, code, fill, kind, table
from dev.reference.source import attribute_docstrings, in_one_line

_DATA: Final[dict[type[Any], type[Any]]] = {ToolFinished: ToolCallView, Finished: ChatResponse, Failed: TurnProblem}
"""The classes whose fields `data` has, of the events that have one field."""


def page() -> str:
    """Return the page."""
    return fill("events", "\n".join(map(_section, NAMES)).strip())


def _section(event: type[Any]) -> str:
    data = _DATA.get(event, event)
    schema = TypeAdapter(data).json_schema(mode="serialization")
    meanings = attribute_docstrings(data)
    rows = [
        [code(name), kind(described, schema.get("$defs", {})), _meaning(name, described, meanings)]
        for name, described in schema["properties"].items()
    ]
    return f"## {NAMES[event]}\n\n{in_one_line(event.__doc__ or '')}\n\n{table(['Field', 'Type', 'Meaning'], rows)}\n"


def _meaning(name: str, described: Schema, meanings: dict[str, str]) -> str:
    return meanings.get(name) or str(described.get("description", ""))
