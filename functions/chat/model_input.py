"""Build the model's input from history, message and calls. The same turn always gives the same bytes."""

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
"""Name in place of one that the model left out or that providers refuse. No tool has it, and the model is told so."""

_TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,63}")
"""Names that providers accept in a request. They accept 64 letters, but a name of 64 may have been cut."""


def build_input(history: list[Turn], turn: Turn) -> list[TResponseInputItem]:
    """Return the history, then the message of this turn, then the calls that the turn has made before.

    Each part always gives the same bytes, so that a provider's prompt cache recognises them.
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

    The turn has the form in which later turns read it: each call has its output behind it, and no id of this run. Later
    requests then begin with this one, and a provider's prompt cache recognises it. Ids stay where the model reasons,
    because its reasoning is tied to them.
    """
    items: list[Any] = [_with_sendable_name(item) for item in data.model_data.input]
    if not any(item.get("type") == "reasoning" for item in items):
        outputs = {item["call_id"]: item["output"] for item in items if item.get("type") == "function_call_output"}
        items = [part for item in items for part in _with_output(item, outputs)]
    return ModelInputData([*history, *items], data.model_data.instructions)


def _with_sendable_name(item: Any) -> Any:
    return item | {"name": _sendable(item["name"])} if item.get("type") == "function_call" else item


def _sendable(tool: str) -> str:
    """Return the tool's name, or UNNAMED for one that a provider would refuse, though its own model wrote it."""
    return tool if _TOOL_NAME.fullmatch(tool) else UNNAMED


def _with_output(item: Any, outputs: dict[str, str]) -> list[Any]:
    if item.get("type") == "function_call":
        arguments = make_storable(parse_arguments(item["arguments"]) or {})
        return _exchange(item["call_id"], item["name"], arguments, outputs[item["call_id"]])
    return [] if item.get("type") == "function_call_output" else [item]


def output_of(call: ToolCall) -> str:
    """Return the output of a call for the model: a fixed sentence for one that failed, else its data between marks."""
    if call.outcome == "error" and "error" in call.result:  # else it was shortened
        return str(call.result["error"])
    return f"<tool_data>{as_data(call.result)}</tool_data>"


def _in_context(turn: Turn) -> str:
    """Return the message under a line with its time and place."""
    zone = turn.timezone or "UTC"
    said_at = turn.said_at.astimezone(ZoneInfo(zone))
    return f"[context: {said_at:%A %Y-%m-%d %H:%M}, {zone}]\n{remove_invisible(turn.message)}"
