"""The wire format of `POST /v1/chat/completions`."""

import secrets
import time
from collections.abc import Iterator
from typing import Any

from .conversation import Answer, Call, Conversation, Json, Tool, words
from .wire import ApiError, Chunk, Kind, Split, Usage, invalid, required, sse, text_of

TEXT = frozenset({"text"})
PARTS = {
    "system": TEXT,
    "developer": TEXT,
    "user": TEXT | {"image_url", "input_audio", "file"},
    "assistant": TEXT | {"refusal"},
    "tool": TEXT,
}
FINISH_REASONS = {"max_output_tokens": "length", "content_filter": "content_filter"}


def read(body: Json) -> Conversation:
    required(body, "model", str)
    messages = required(body, "messages", list)
    if not messages:
        raise invalid("messages", "There must be at least one message.")
    conversation = Conversation(_tools(body), body.get("parallel_tool_calls") is False)
    for index, message in enumerate(messages):
        _read_message(conversation, message, f"messages[{index}]")
    _check_answered(conversation, "messages")
    return conversation


def _tools(body: Json) -> dict[str, Tool]:
    tools = {}
    for index, tool in enumerate(body.get("tools") or ()):
        where = f"tools[{index}]"
        required(tool, "type", str, where)
        function = required(tool, "function", dict, where)
        tools[required(function, "name", str, f"{where}.function")] = Tool.from_function(function)
    return {} if body.get("tool_choice") == "none" else tools


def _read_message(conversation: Conversation, message: Any, where: str) -> None:
    role = required(required({where: message}, where, dict), "role", str, where)
    if role not in PARTS:
        raise invalid(f"{where}.role", f"There is no role {role!r}.")
    text = text_of(message.get("content"), PARTS[role], f"{where}.content")
    if role == "tool":
        return _read_output(conversation, message, text, where)
    _check_answered(conversation, where)
    if role == "user":
        conversation.add_message(text)
    for index, call in enumerate(message.get("tool_calls") or ()):
        _read_call(conversation, call, f"{where}.tool_calls[{index}]")


def _read_call(conversation: Conversation, call: Json, where: str) -> None:
    function = required(call, "function", dict, where)
    fields = (required(function, name, str, f"{where}.function") for name in ("name", "arguments"))
    conversation.call(Call(required(call, "id", str, where), *fields))


def _read_output(conversation: Conversation, message: Json, text: str, where: str) -> None:
    call_id = required(message, "tool_call_id", str, where)
    if not conversation.output(call_id, text):
        raise ApiError(400, f"The tool message for {call_id} follows no such tool call.", param=f"{where}.role")


def _check_answered(conversation: Conversation, where: str) -> None:
    """Tool messages come right after the calls they answer: nothing else may stand between."""
    if waiting := conversation.unanswered():
        message = f"These tool calls are not followed by their tool messages: {', '.join(waiting)}."
        raise ApiError(400, message, param=where)


def prompt(body: Json) -> Iterator[Any]:
    yield from body.get("tools") or ()
    yield from body["messages"]


def write(answer: Answer, body: Json, usage: Usage) -> Json:
    return {
        "id": f"chatcmpl-{secrets.token_hex(15)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [
            {"index": 0, "message": _message(answer), "logprobs": None, "finish_reason": _finish_reason(answer)}
        ],
        "usage": _usage(usage),
        "service_tier": "default",
        "system_fingerprint": None,
    }


def _message(answer: Answer) -> Json:
    content = None if answer.text is None else "".join(answer.texts)
    message: Json = {"role": "assistant", "content": content, "refusal": answer.refusal, "annotations": []}
    return message | ({"tool_calls": [_tool_call(call) for call in answer.calls]} if answer.calls else {})


def _tool_call(call: Call) -> Json:
    return {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _finish_reason(answer: Answer) -> str:
    if answer.stopped:
        return FINISH_REASONS[answer.stopped]
    return "tool_calls" if answer.calls else "stop"


def _usage(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def stream(response: Json, body: Json, split: Split) -> Iterator[Chunk]:
    with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    head = {name: response[name] for name in ("id", "created", "model", "service_tier", "system_fingerprint")}
    head |= {"object": "chat.completion.chunk"} | ({"usage": None} if with_usage else {})
    [choice] = response["choices"]
    for kind, delta in _deltas(choice["message"], split):
        yield sse(head | {"choices": [_chunk_choice(delta)]}, kind=kind)
    yield sse(head | {"choices": [_chunk_choice({}, choice["finish_reason"])]}, kind=Kind.END)
    if with_usage:
        yield sse(head | {"choices": [], "usage": response["usage"]}, kind=Kind.END)
    yield Chunk(b"data: [DONE]\n\n", Kind.END)


def _chunk_choice(delta: Json, finish_reason: str | None = None) -> Json:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _deltas(message: Json, split: Split) -> Iterator[tuple[Kind, Json]]:
    yield Kind.OTHER, {"role": "assistant", "content": None if message["content"] is None else "", "refusal": None}
    for field in ("content", "refusal"):
        yield from ((Kind.TEXT, {field: delta}) for delta in split(message[field] or ""))
    for index, call in enumerate(message.get("tool_calls", ())):
        yield from ((kind, {"tool_calls": [{"index": index, **piece}]}) for kind, piece in _call_deltas(call))


def _call_deltas(call: Json) -> Iterator[tuple[Kind, Json]]:
    yield Kind.OTHER, call | {"function": call["function"] | {"arguments": ""}}
    pieces = words(call["function"]["arguments"])
    yield from ((Kind.ARGUMENTS, {"function": {"arguments": delta}}) for delta in pieces)
