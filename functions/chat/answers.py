"""Read the JSON of a model's answer, refuse what is too large or incomplete, and make the rest safe to pass on."""

import json
from typing import Any, Final
from uuid import uuid4

from agents import ModelResponse, Usage
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputItem

from chat.arguments import inner_values, parse_arguments
from chat.model_input import UNNAMED
from chat.transport import MAX_ANSWER_BYTES, AnswerTooLong, AnswerUnreadable
from taskchat.errors import ModelFailed

MAX_CALLS: Final = 64
"""Tool calls in one turn, and in one answer: enough for a long request, few enough that a loop ends in time."""

MAX_PARTS: Final = 2_048
"""Values in an answer, at all levels. An answer with MAX_CALLS calls, each with its reasoning, has half as many."""

MAX_LEVELS: Final = 32
"""Levels of objects and lists in an answer. The deepest answer of the two APIs has 8."""

FIELDS: Final = ("id", "status", "incomplete_details", "output", "choices", "usage")
"""Fields of an answer that are used, of both APIs. The others repeat the request."""

Json = dict[str, Any]


def read_answer(content: bytes) -> Json:
    """Return the used fields of an answer. Raises AnswerUnreadable, or AnswerTooLong."""
    if len(content) > MAX_ANSWER_BYTES:
        raise AnswerTooLong
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AnswerUnreadable from error
    return used_fields(answer)


def used_fields(answer: Any) -> Json:
    """Return the used fields of an answer, with text that can be encoded. Raises AnswerTooLong."""
    used = {name: answer[name] for name in FIELDS if name in answer} if isinstance(answer, dict) else {}
    _check_parts(used)
    if len(_calls(used)) > MAX_CALLS:
        raise AnswerTooLong
    encodable: Json = _encodable(used)
    return encodable


def field(part: Any, name: str) -> Any:
    """Return a field of a JSON object, or None for a value that is no object."""
    return part.get(name) if isinstance(part, dict) else None


def objects(items: Any) -> list[Json]:
    """Return the objects in a JSON list, or an empty list for a value that is no list."""
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def check_complete(reason: Any, *, is_readable: bool) -> None:
    """Raise ModelFailed for an answer that is cut short, withheld, or of another shape."""
    if reason in ("max_output_tokens", "length"):
        raise ModelFailed("The model's answer was cut short.")
    if reason == "content_filter":
        raise ModelFailed("The model's provider withheld the answer.")
    if not is_readable:
        raise ModelFailed("The model's answer could not be read.")


def to_model_response(items: list[ResponseOutputItem]) -> ModelResponse:
    """Return the items as the SDK takes them: each call has a new id, a name, and arguments that the SDK can parse.

    Some providers number calls anew in each answer. A provider's id is not kept at all: ids are logged, and a model may
    write anything there.
    """
    for item in items:
        if isinstance(item, ResponseFunctionToolCall):
            item.call_id = f"call_{uuid4().hex}"
            item.name = item.name if isinstance(item.name, str) and item.name else UNNAMED
            item.arguments = _safe_arguments(item.arguments)
    return ModelResponse(output=items, usage=Usage(), response_id=None)


def _calls(answer: Json) -> list[Json]:
    """Return the tool calls of an answer of either API, as far as it has the shape of one."""
    messages = [choice.get("message") for choice in objects(answer.get("choices"))]
    calls = [call for message in objects(messages) for call in objects(message.get("tool_calls"))]
    return calls + [item for item in objects(answer.get("output")) if item.get("type") == "function_call"]


def _check_parts(answer: Json) -> None:
    parts, level = 0, [answer]
    for _ in range(MAX_LEVELS):
        parts += len(level)
        if parts > MAX_PARTS:
            raise AnswerTooLong
        level = [inner for part in level for inner in inner_values(part)]
    if level:
        raise AnswerTooLong


def _encodable(part: Any) -> Any:
    """Replace lone surrogates, which JSON allows and UTF-8 cannot encode, at all levels."""
    if isinstance(part, str):
        return encodable_text(part)
    if isinstance(part, list):
        return [_encodable(item) for item in part]
    return {encodable_text(name): _encodable(value) for name, value in part.items()} if isinstance(part, dict) else part


def encodable_text(text: str) -> str:
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _safe_arguments(arguments: Any) -> str:
    """Return the arguments, or `null` if they cannot be parsed: the SDK parses them too, and its run would end."""
    text = encodable_text(_unescaped(arguments)) if isinstance(arguments, str) else "null"
    return "null" if parse_arguments(text) is None else text


def _unescaped(arguments: str) -> str:
    """Return a call's arguments with their escaped surrogates as characters, if they have any and are JSON."""
    if "\\ud" not in arguments.lower():
        return arguments
    try:
        return json.dumps(json.loads(arguments), ensure_ascii=False)
    except (ValueError, RecursionError):
        return arguments
