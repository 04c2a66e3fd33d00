"""The order rules of both protocols, as their own clients check them, and lists of events to try them with.

`check_ag_ui` follows `verifyEvents` of @ag-ui/client 1.0.0, and `read_ui_message` the chunk schema and
`processUIMessageStream` of ai 6 and 7. `make clients` runs these clients themselves.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from chat.schemas import ChatResponse, ToolCallView
from chat.stream.encoding import Encoder
from chat.stream.events import Accepted, Event, Failed, Finished, Text, ToolFinished, ToolStarted
from taskchat.errors import ModelFailed, OutOfTime, TaskchatError

CONVERSATION: Final = UUID("ae3eab65-dc8e-54c7-8f70-a6d486101f0f")
TURN: Final = UUID("67520f27-af92-5a0e-8003-77f79be5d6db")


def call(
    number: int, result: dict[str, Any], outcome: str = "ok", arguments: dict[str, Any] | None = None
) -> ToolCallView:
    """Return a recorded call."""
    return ToolCallView.model_validate(
        {
            "call_id": f"call_{number}",
            "tool": "add_task",
            "arguments": arguments or {},
            "outcome": outcome,
            "result": result,
            "duration_ms": 1.5,
        }
    )


def started(each: ToolCallView) -> ToolStarted:
    """Return the event before a call."""
    return ToolStarted(each.call_id, each.tool, each.arguments)


def finished(*calls: ToolCallView, text: str = "Done.") -> Finished:
    """Return the last event of a turn with these calls."""
    return Finished(ChatResponse(conversation_id=CONVERSATION, turn_id=TURN, response=text, tool_calls=list(calls)))


def accepted(*, replayed: bool = False) -> Accepted:
    """Return the first event."""
    return Accepted(CONVERSATION, TURN, replayed)


def send(encoder: Encoder, events: Iterable[Event]) -> list[str]:
    """Return the data of each server-sent event, as a client's parser reads them."""
    body = b"".join(line for event in events for line in encoder.encode(event)).decode()
    assert body.endswith("\n\n")
    blocks = body.removesuffix("\n\n").split("\n\n")
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]


def parse(data: str) -> Any:
    """Read JSON as a browser does, which knows neither NaN nor Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(data, parse_constant=refuse)


def check_ag_ui(events: Sequence[dict[str, Any]]) -> None:
    """Fail unless the events are a run in the protocol's order."""
    assert events[0]["type"] == "RUN_STARTED"
    assert events[-1]["type"] in ("RUN_FINISHED", "RUN_ERROR")
    messages: set[str] = set()
    calls: dict[str, str] = {}
    for event in events[1:-1]:
        match event["type"]:
            case "TEXT_MESSAGE_START":
                assert event["messageId"] not in messages
                messages.add(event["messageId"])
            case "TEXT_MESSAGE_CONTENT":
                assert event["messageId"] in messages
            case "TEXT_MESSAGE_END":
                messages.remove(event["messageId"])
            case "TOOL_CALL_START":
                assert calls.get(event["toolCallId"]) != "open"
                calls[event["toolCallId"]] = "open"
            case "TOOL_CALL_ARGS":
                assert calls[event["toolCallId"]] == "open"
                assert isinstance(parse(event["delta"]), dict)
            case "TOOL_CALL_END":
                assert calls[event["toolCallId"]] == "open"
                calls[event["toolCallId"]] = "closed"
            case "TOOL_CALL_RESULT":
                assert calls[event["toolCallId"]] == "closed"
                assert isinstance(parse(event["content"]), dict)
            case other:
                raise AssertionError(f"{other} in the middle of a run")
    assert not messages
    assert "open" not in calls.values()


def read_ui_message(chunks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the parts of the message that a client builds. Fail on a chunk that it would refuse."""
    parts: list[dict[str, Any]] = []
    texts: dict[str, dict[str, Any]] = {}
    steps = 0
    assert chunks[0]["type"] == "start"
    assert chunks[-1]["type"] in ("finish", "error")
    for chunk in chunks[1:-1]:
        match chunk["type"]:
            case "start-step":
                steps += 1
                parts.append({"type": "step-start"})
            case "finish-step":
                assert not texts  # ai 6 forgets the open texts here
                steps -= 1
            case "text-start":
                assert chunk["id"] not in texts
                texts[chunk["id"]] = {"type": "text", "text": ""}
                parts.append(texts[chunk["id"]])
            case "text-delta":
                texts[chunk["id"]]["text"] += chunk["delta"]
            case "text-end":
                del texts[chunk["id"]]
            case "tool-input-available":
                assert chunk["dynamic"] is True
                parts.append({"type": "dynamic-tool", "call_id": chunk["toolCallId"], "state": "input-available"})
            case "tool-output-available" | "tool-output-error" as kind:
                (part,) = (part for part in parts if part.get("call_id") == chunk["toolCallId"])
                part["state"] = kind.removeprefix("tool-")
                assert kind == "tool-output-available" or isinstance(chunk["errorText"], str)
            case other:
                raise AssertionError(f"{other} in the middle of a message")
        assert steps in (0, 1)
    assert not texts
    assert steps == 0 or chunks[-1]["type"] == "error"
    return parts


def is_sent_again(parts: Sequence[dict[str, Any]]) -> bool:
    """Return what `lastAssistantMessageIsCompleteWithToolCalls` returns, by which a client may send by itself."""
    last_step: list[dict[str, Any]] = []
    for part in parts:
        last_step = [] if part["type"] == "step-start" else [*last_step, part]
    tools = [part for part in last_step if part["type"] == "dynamic-tool"]
    return bool(tools) and all(part["state"].startswith("output-") for part in tools)


_ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
_ANY_JSON: SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | _ANY_TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_ANY_TEXT, inner, max_size=2),
    max_leaves=4,
)
_OBJECTS = st.dictionaries(_ANY_TEXT, _ANY_JSON, max_size=2)
_PROBLEMS: SearchStrategy[TaskchatError] = st.sampled_from(
    [ModelFailed(), OutOfTime("The model took too long."), TaskchatError(retry_after=3)]
)


@st.composite
def _rounds(draw: DrawFn, first_call: int, message: int) -> tuple[list[Event], list[ToolCallView]]:
    """Draw one answer of the model: pieces of a message, then calls, one after the other or all at once."""
    pieces = draw(st.lists(_ANY_TEXT, max_size=3))
    calls = [
        call(number, draw(_OBJECTS), draw(st.sampled_from(["ok", "error"])), draw(_OBJECTS))
        for number in range(first_call, first_call + draw(st.integers(0, 3)))
    ]
    text: list[Event] = [Text(message, piece) for piece in pieces]
    if draw(st.booleans()):
        return [*text, *map(started, calls), *map(ToolFinished, draw(st.permutations(calls)))], calls
    return [*text, *(event for each in calls for event in (started(each), ToolFinished(each)))], calls


@st.composite
def turns(draw: DrawFn) -> list[Event]:
    """Draw the whole list of a turn, which finishes, or fails after any event."""
    events: list[Event] = [accepted(replayed=draw(st.booleans()))]
    calls: list[ToolCallView] = []
    for message in range(draw(st.integers(0, 3))):
        more, made = draw(_rounds(len(calls), message))
        events += more
        calls += made
    if draw(st.booleans()):
        return [*events[: draw(st.integers(1, len(events)))], Failed(draw(_PROBLEMS))]
    reply = [Text(9, piece) for piece in draw(st.lists(_ANY_TEXT, max_size=3))]
    return [*events, *reply, finished(*calls, text="".join(piece.text for piece in reply))]
