"""The wire format of `POST /v1/responses`."""

import time
from collections.abc import Iterator
from typing import Any

from .conversation import Answer, Call, Conversation, Json, Tool, words
from .wire import ApiError, Chunk, Kind, Split, Usage, invalid, new_id, required, sse, text_of

INPUT_PARTS = frozenset({"input_text", "input_image", "input_file"})
PARTS = {
    "user": INPUT_PARTS,
    "system": INPUT_PARTS,
    "developer": INPUT_PARTS,
    "assistant": frozenset({"output_text", "refusal"}),
}
OUTPUT_PARTS = INPUT_PARTS | {"text"}
ENCRYPTED = "reasoning.encrypted_content"
KINDS = {
    "response.output_text.delta": Kind.TEXT,
    "response.refusal.delta": Kind.TEXT,
    "response.function_call_arguments.delta": Kind.ARGUMENTS,
    "response.completed": Kind.END,
    "response.incomplete": Kind.END,
}
UNREASONED = "fc_00000000"  # ids of calls that came without reasoning, and so may be replayed without it


def read(body: Json) -> Conversation:
    required(body, "model", str)
    if previous := body.get("previous_response_id"):
        raise ApiError(
            400,
            f"The response '{previous}' is not stored here.",
            code="previous_response_not_found",
            param="previous_response_id",
        )
    conversation = Conversation(_tools(body), body.get("parallel_tool_calls") is False)
    items = _items(body)
    _check_reasoning(items, stored=body.get("store") is not False)
    for index, item in enumerate(items):
        _read_item(conversation, item, f"input[{index}]")
    if waiting := conversation.unanswered():
        raise ApiError(400, f"The function call {waiting[0]} has no output in the input.", param="input")
    return conversation


def _items(body: Json) -> list[Json]:
    given = required(body, "input", (str, list))
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return [required({f"input[{index}]": item}, f"input[{index}]", dict) for index, item in enumerate(given)]


def _tools(body: Json) -> dict[str, Tool]:
    if body.get("tool_choice") == "none":
        return {}
    for index, tool in enumerate(body.get("tools") or ()):
        if required(tool, "type", str, f"tools[{index}]") == "function":
            required(tool, "name", str, f"tools[{index}]")
    functions = [tool for tool in body.get("tools") or () if tool["type"] == "function"]
    return {tool["name"]: Tool.from_function(tool) for tool in functions}


def _read_item(conversation: Conversation, item: Json, where: str) -> None:
    match item.get("type", "message"):
        case "message":
            _read_message(conversation, item, where)
        case "function_call":
            fields = (required(item, name, str, where) for name in ("call_id", "name", "arguments"))
            conversation.call(Call(*fields))
        case "function_call_output":
            _read_output(conversation, item, where)
        case "reasoning":
            required(item, "summary", list, where)
        case "item_reference":
            raise _not_stored(item)
        case other:
            raise invalid(where, f"The stand-in knows no input item of type {other!r}.")


def _read_message(conversation: Conversation, item: Json, where: str) -> None:
    role = required(item, "role", str, where)
    if role not in PARTS:
        raise invalid(f"{where}.role", f"There is no role {role!r}.")
    text = text_of(required(item, "content", (str, list), where), PARTS[role], f"{where}.content")
    if role == "user":
        conversation.add_message(text)


def _read_output(conversation: Conversation, item: Json, where: str) -> None:
    call_id = required(item, "call_id", str, where)
    text = text_of(required(item, "output", (str, list), where), OUTPUT_PARTS, f"{where}.output")
    if not conversation.output(call_id, text):
        raise ApiError(400, f"The output for {call_id} has no function call before it.", param="input")


def _check_reasoning(items: list[Json], *, stored: bool) -> None:
    """An id ties an item to its reasoning: one without the other is refused, and nothing unstored is found by id."""
    reasoned = False
    for index, item in enumerate(items):
        kind = item.get("type", "message")
        if kind == "reasoning":
            _check_reasoning_item(item, items[index + 1 : index + 2], stored=stored)
            reasoned = True
        elif kind == "function_call" and not reasoned and _is_tied(item):
            raise ApiError(400, f"The item '{item['id']}' was sent without its reasoning item.", param="input")
        elif kind != "function_call":
            reasoned = False


def _is_tied(item: Json) -> bool:
    item_id = str(item.get("id") or "")
    return item_id.startswith("fc_") and not item_id.startswith(UNREASONED)


def _check_reasoning_item(item: Json, following: list[Json], *, stored: bool) -> None:
    if not stored and not item.get("encrypted_content"):
        raise _not_stored(item)
    if not (following and _is_made_by_model(following[0])):
        raise ApiError(400, f"The item '{item.get('id')}' was sent without the item that followed it.", param="input")


def _is_made_by_model(item: Json) -> bool:
    kind = item.get("type", "message")
    return kind in ("function_call", "reasoning") or (kind == "message" and item.get("role") == "assistant")


def _not_stored(item: Json) -> ApiError:
    return ApiError(404, f"The item '{item.get('id')}' is not stored: send its content instead.", param="input")


def prompt(body: Json) -> Iterator[Any]:
    yield from body.get("tools") or ()
    yield body.get("instructions") or ""
    yield from [body["input"]] if isinstance(body["input"], str) else body["input"]


def write(answer: Answer, body: Json, usage: Usage) -> Json:
    now = time.time()
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(now),
        "completed_at": None if answer.stopped else int(now),
        "status": "incomplete" if answer.stopped else "completed",
        "error": None,
        "incomplete_details": {"reason": answer.stopped} if answer.stopped else None,
        **_echo(body),
        "output": _output(answer, body),
        "usage": _usage(usage),
    }


def _echo(body: Json) -> Json:
    """What the API repeats of the request, with its defaults."""
    defaults: Json = {
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "model": body["model"],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
    }
    return {name: default if body.get(name) is None else body[name] for name, default in defaults.items()}


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.input,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.input - usage.cached},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.input + usage.output,
    }


def _output(answer: Answer, body: Json) -> list[Json]:
    reasons = _reasons(body)
    items = [_reasoning(body)] if reasons else []
    items += [_message(parts, answer) for parts in _messages(answer)]
    return items + [_function_call(call, reasons) for call in answer.calls]


def _reasons(body: Json) -> bool:
    """Whether to behave as a reasoning model: when the request shows that it expects one."""
    effort = (body.get("reasoning") or {}).get("effort")
    return effort not in (None, "none") or ENCRYPTED in (body.get("include") or ())


def _reasoning(body: Json) -> Json:
    item: Json = {"id": new_id("rs"), "type": "reasoning", "summary": []}
    return item | ({"encrypted_content": new_id("opaque")} if ENCRYPTED in (body.get("include") or ()) else {})


def _messages(answer: Answer) -> list[list[Json]]:
    """The parts of each message."""
    if answer.refusal is not None:
        return [[{"type": "refusal", "refusal": answer.refusal}]]
    parts = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []} for text in answer.texts]
    return [parts] if answer.is_one_message else [[part] for part in parts]


def _message(parts: list[Json], answer: Answer) -> Json:
    status = "incomplete" if answer.stopped else "completed"
    return {"id": new_id("msg"), "type": "message", "role": "assistant", "status": status, "content": parts}


def _function_call(call: Call, reasoned: bool) -> Json:
    return {
        "id": new_id("fc" if reasoned else UNREASONED),
        "type": "function_call",
        "status": "completed",
        "call_id": call.call_id,
        "name": call.name,
        "arguments": call.arguments,
    }


def stream(response: Json, body: Json, split: Split) -> Iterator[Chunk]:
    for number, (name, data) in enumerate(_events(response, split)):
        yield sse({"type": name, "sequence_number": number, **data}, name, KINDS.get(name, Kind.OTHER))


def _events(response: Json, split: Split) -> Iterator[tuple[str, Json]]:
    begun = response | {"status": "in_progress", "output": [], "usage": None, "completed_at": None}
    begun["incomplete_details"] = None
    yield "response.created", {"response": begun}
    yield "response.in_progress", {"response": begun}
    for index, item in enumerate(response["output"]):
        yield from _item_events(index, item, split)
    yield f"response.{response['status']}", {"response": response}


def _item_events(index: int, item: Json, split: Split) -> Iterator[tuple[str, Json]]:
    place: Json = {"output_index": index, "item_id": item["id"]}
    blank: Json = {"status": "in_progress"} if "status" in item else {}
    inner: Iterator[tuple[str, Json]] = iter(())
    if item["type"] == "message":
        blank["content"] = []
        inner = _content_events(place, item["content"], split)
    elif item["type"] == "function_call":
        blank["arguments"] = ""
        inner = _argument_events(place, item["arguments"])
    yield "response.output_item.added", {"output_index": index, "item": item | blank}
    yield from inner
    yield "response.output_item.done", {"output_index": index, "item": item}


def _content_events(place: Json, parts: list[Json], split: Split) -> Iterator[tuple[str, Json]]:
    for index, part in enumerate(parts):
        yield from _part_events(place | {"content_index": index}, part, split)


def _part_events(place: Json, part: Json, split: Split) -> Iterator[tuple[str, Json]]:
    field = "refusal" if part["type"] == "refusal" else "text"
    event = f"response.{part['type']}"
    logprobs: Json = {} if field == "refusal" else {"logprobs": []}
    yield "response.content_part.added", place | {"part": part | {field: ""}}
    for delta in split(part[field]):
        yield f"{event}.delta", place | logprobs | {"delta": delta}
    yield f"{event}.done", place | logprobs | {field: part[field]}
    yield "response.content_part.done", place | {"part": part}


def _argument_events(place: Json, arguments: str) -> Iterator[tuple[str, Json]]:
    for delta in words(arguments):
        yield "response.function_call_arguments.delta", place | {"delta": delta}
    yield "response.function_call_arguments.done", place | {"arguments": arguments}
