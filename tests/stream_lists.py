"""Ask for a turn in each protocol of the chat route, and read the list of events that a client gets.

`read` fails on an event out of order: by the rules below for the API's own events, and by those of `tests/stream_rules`
for the other protocols.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from tests.stream_rules import check_ag_ui, parse, read_ui_message

Json = dict[str, Any]
JSON: Final = "json"
EVENTS: Final = "events"
AG_UI: Final = "ag_ui"
AI_SDK: Final = "ai_sdk"
STREAMS: Final = (EVENTS, AG_UI, AI_SDK)


@dataclass(frozen=True)
class Asked:
    """A message with its key. With `conversation_id` None it begins a conversation: JSON and EVENTS only."""

    message: str
    conversation_id: str | None
    key: str

    def body(self, protocol: str) -> Json:
        """Return the request's body."""
        said = {"id": self.key, "role": "user"}
        if protocol == AG_UI:
            return {
                "threadId": self.conversation_id,
                "runId": self.key,
                "messages": [said | {"content": self.message}],
            }
        if protocol == AI_SDK:
            parts = [{"type": "text", "text": self.message}]
            return {"id": self.conversation_id, "trigger": "submit-message", "messages": [said | {"parts": parts}]}
        return {"message": self.message, "conversation_id": self.conversation_id}

    def headers(self, protocol: str) -> dict[str, str]:
        """Return the request's headers, besides those of every request."""
        if protocol not in (JSON, EVENTS):
            return {}
        return {"idempotency-key": self.key} | ({"accept": "text/event-stream"} if protocol == EVENTS else {})


@dataclass
class ShownCall:
    """A tool call as a stream shows it. Without an outcome, it has only been started."""

    call_id: str
    tool: str
    arguments: Any
    outcome: str | None = None
    result: Any = None


@dataclass
class Shown:
    """A turn as a stream shows it."""

    accepted: Json
    calls: dict[str, ShownCall] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    end: str = ""
    """`finished` or `failed`, or nothing while the last event is not there."""
    response: Json | None = None
    """The body of the JSON answer. The AI SDK's protocol does not have it."""
    problem: Json | None = None
    """The problem. Only the API's own events have all of it."""

    @property
    def done(self) -> list[ShownCall]:
        """Return the calls that have an outcome, in order."""
        return [call for call in self.calls.values() if call.outcome]

    def check_calls(self, recorded: list[Json], *, is_whole: bool = True) -> None:
        """Check that the calls with an outcome are the recorded ones, in order: all of them, or the first ones."""
        known = [_known(call) for call in recorded]
        shown = [vars(call) for call in self.done]
        assert shown == (known if is_whole else known[: len(shown)]), f"{shown} against {known}"

    def check_equals(self, answer: Json) -> None:
        """Check that the list is complete, and equals the JSON answer."""
        assert self.end == "finished", self.problem
        assert len(self.done) == len(self.calls), "a call without an outcome"
        self.check_calls(answer["tool_calls"])
        assert self.messages[-1] == answer["response"]
        assert self.response in (None, answer)
        self.check_ids(answer)

    def check_ids(self, answer: Json) -> None:
        """Check that both are of the same turn."""
        for name in ("conversation_id", "turn_id"):
            assert self.accepted[name] == answer[name]

    def check_failed(self) -> Json:
        """Check that the stream says how far the turn came, and return its problem."""
        assert self.end == "failed"
        assert self.problem
        if "tool_calls" in self.problem:
            self.check_calls(self.problem["tool_calls"])
        return self.problem


def _known(call: Json) -> Json:
    return {name: call[name] for name in ("call_id", "tool", "arguments", "outcome", "result")}


def read(protocol: str, text: str, *, is_cut: bool = False) -> Shown:
    """Return the turn that a stream shows. `is_cut` says that the client or the server went before the last event."""
    blocks = [block for block in text.split("\n\n")[:-1] if not block.startswith(":")]
    assert is_cut or text.endswith("\n\n")
    assert is_cut or protocol != AI_SDK or blocks.pop() == "data: [DONE]"
    shown = _READERS[protocol](blocks, is_cut=is_cut)
    assert is_cut or shown.end, "no last event"
    return shown


def _read_events(blocks: list[str], *, is_cut: bool) -> Shown:
    fields = [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]
    assert [each["id"] for each in fields] == [str(number) for number in range(len(fields))]
    assert fields[0]["event"] == "accepted"
    shown, before = Shown(parse(fields[0]["data"])), "accepted"
    for each in fields[1:]:
        assert not shown.end, f"{each['event']} after the last event"
        _add(shown, each["event"], parse(each["data"]), is_going_on=before == "text")
        before = each["event"]
    return shown


def _add(shown: Shown, name: str, data: Json, *, is_going_on: bool) -> None:
    """Add one of the API's own events. Only the event after a piece of a message can be the next piece of it."""
    match name:
        case "tool_started":
            assert data["call_id"] not in shown.calls, "a call is started twice"
            shown.calls[data["call_id"]] = ShownCall(**data)
        case "tool_finished":
            call = shown.calls[data["call_id"]]
            assert call.outcome is None, "a call is finished twice"
            assert (call.tool, call.arguments) == (data["tool"], data["arguments"])
            call.outcome, call.result = data["outcome"], data["result"]
        case "text":
            assert data["text"]
            if is_going_on and data["message"] == len(shown.messages) - 1:
                shown.messages[-1] += data["text"]
            else:
                assert data["message"] == len(shown.messages), "a piece of an earlier message"
                shown.messages.append(data["text"])
        case "finished":
            shown.end, shown.response = name, data
        case "failed":
            shown.end, shown.problem = name, data
        case _:
            raise AssertionError(f"an unknown event {name}")


def _parts(blocks: list[str]) -> Iterator[Json]:
    for block in blocks:
        assert block.startswith("data: ")
        assert "\n" not in block
        yield parse(block.removeprefix("data: "))


def _read_ag_ui(blocks: list[str], *, is_cut: bool) -> Shown:
    events = list(_parts(blocks))
    if not is_cut:
        check_ag_ui(events)
    shown = Shown(_renamed(events[0]["metadata"]))
    for event in events[1:]:
        match event["type"]:
            case "TOOL_CALL_START":
                assert event["toolCallId"] not in shown.calls, "a call is started twice"
                shown.calls[event["toolCallId"]] = ShownCall(event["toolCallId"], event["toolCallName"], "")
            case "TOOL_CALL_ARGS":
                shown.calls[event["toolCallId"]].arguments = parse(event["delta"])
            case "TOOL_CALL_RESULT":
                call = shown.calls[event["toolCallId"]]
                call.outcome, call.result = event["metadata"]["outcome"], parse(event["content"])
            case "TEXT_MESSAGE_START":
                shown.messages.append("")
            case "TEXT_MESSAGE_CONTENT":
                shown.messages[-1] += event["delta"]
            case "RUN_FINISHED":
                shown.end, shown.response = "finished", event["result"]
            case "RUN_ERROR":
                shown.end, shown.problem = "failed", {"type": event["code"]}
    return shown


def _read_ai_sdk(blocks: list[str], *, is_cut: bool) -> Shown:
    chunks = list(_parts([block for block in blocks if block != "data: [DONE]"]))
    if not is_cut:
        read_ui_message(chunks)
    shown = Shown(_renamed(chunks[0]["messageMetadata"]))
    for chunk in chunks[1:]:
        match chunk["type"]:
            case "tool-input-available":
                assert chunk["toolCallId"] not in shown.calls, "a call is started twice"
                call_id = chunk["toolCallId"]
                shown.calls[call_id] = ShownCall(call_id, chunk["toolName"], chunk["input"])
            case "tool-output-available":
                call = shown.calls[chunk["toolCallId"]]
                call.outcome, call.result = "ok", chunk["output"]
            case "tool-output-error":
                call = shown.calls[chunk["toolCallId"]]
                call.outcome, call.result = "error", {"error": chunk["errorText"]}
            case "text-start":
                shown.messages.append("")
            case "text-delta":
                shown.messages[-1] += chunk["delta"]
            case "finish":
                shown.end = "finished"
            case "error":
                shown.end, shown.problem = "failed", {"title": chunk["errorText"]}
    return shown


def _renamed(metadata: Json) -> Json:
    return {
        "conversation_id": metadata["conversationId"],
        "turn_id": metadata["turnId"],
        "replayed": metadata["replayed"],
    }


_READERS: Final[dict[str, Callable[..., Shown]]] = {EVENTS: _read_events, AG_UI: _read_ag_ui, AI_SDK: _read_ai_sdk}
