"""What the model reads of a turn: history, message and calls as input items, the same bytes whenever they are built."""

import re
from typing import Any, Final
from zoneinfo import ZoneInfo

from agents import TResponseInputItem
from agents.run import CallModelData, ModelInputData

from chat.arguments import parse_arguments
from taskchat.conversations.history import Turn
from taskchat.invisible import remove_invisible
from taskchat.text import as_data, as_json, make_storable
from taskchat.toolcalls.models import ToolCall

UNNAMED: Final = "unnamed"
"""Stands for the name of a tool that a model left out: there is no such tool, and that is what the model is told."""

_TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,63}")
"""Names that providers take in what they are sent. They take one letter more, but a name of 64 may have been cut."""


def build_input(history: list[Turn], turn: Turn) -> list[TResponseInputItem]:
    """The turn as the model reads it: what was, then what the person says now, then the calls already made for it.

    Each part is the same bytes whenever it is built, so that a provider's prompt cache keeps hitting.
    """
    return [item for past in [*history, turn] for item in _items(past)]


def _items(turn: Turn) -> list[TResponseInputItem]:
    items: list[TResponseInputItem] = [{"role": "user", "content": _in_context(turn)}]
    for call in turn.calls:
        items += _exchange(call.call_id, call.tool, call.arguments, output_of(call))
    if turn.reply is not None:
        items.append({"role": "assistant", "content": remove_invisible(turn.reply)})
    return items


def _exchange(call_id: str, tool: str, arguments: dict[str, Any], output: str) -> list[TResponseInputItem]:
    return [
        {"type": "function_call", "call_id": call_id, "name": _sendable(tool), "arguments": as_json(arguments)},
        {"type": "function_call_output", "call_id": call_id, "output": output},
    ]


def compose(history: list[TResponseInputItem], data: CallModelData[Any]) -> ModelInputData:
    """Return the input of a model call: the history, which the SDK need not carry, and then the turn so far.

    The turn has the form in which later ones read it again, so that their requests begin with this one and a provider's
    prompt cache knows it: each call has its output behind it, and no ids that end with the run. Where the model reasons
    these stay, for its reasoning is tied to them.
    """
    items: list[Any] = [_named(item) for item in data.model_data.input]
    if not any(item.get("type") == "reasoning" for item in items):
        outputs = {item["call_id"]: item["output"] for item in items if item.get("type") == "function_call_output"}
        items = [settled for item in items for settled in _settled(item, outputs)]
    return ModelInputData([*history, *items], data.model_data.instructions)


def _named(item: Any) -> Any:
    return item | {"name": _sendable(item["name"])} if item.get("type") == "function_call" else item


def _sendable(tool: str) -> str:
    """The tool's name, or another that no tool has: a provider takes no odd one back, be it its own model's."""
    return tool if _TOOL_NAME.fullmatch(tool) else UNNAMED


def _settled(item: Any, outputs: dict[str, str]) -> list[Any]:
    if item.get("type") == "function_call":
        arguments = make_storable(parse_arguments(item["arguments"]) or {})
        return _exchange(item["call_id"], item["name"], arguments, outputs[item["call_id"]])
    return [] if item.get("type") == "function_call_output" else [item]


def output_of(call: ToolCall) -> str:
    """What the model is told of a call: our own sentence for one that failed, else the data, marked as such."""
    if call.outcome == "error" and "error" in call.result:  # else it was shortened
        return str(call.result["error"])
    return f"<tool_data>{as_data(call.result)}</tool_data>"


def _in_context(turn: Turn) -> str:
    """The person's words under the moment and place they were said at."""
    zone = turn.timezone or "UTC"
    said_at = turn.said_at.astimezone(ZoneInfo(zone))
    return f"[context: {said_at:%A %Y-%m-%d %H:%M}, {zone}]\n{remove_invisible(turn.message)}"
