"""Read the JSON of a model's answer, and refuse what is too large before objects are made of it."""

import json
from collections.abc import Collection, Iterable
from typing import Any, Final

from chat.transport import AnswerTooLong

MAX_CALLS: Final = 64
"""Tool calls in one turn: enough for a long request, few enough that a loop ends in time. An answer with more is
refused whole, so that nothing of it is done."""

MAX_PARTS: Final = 2_048
"""Values in an answer, at all levels. A call takes seven: all calls of a turn, each with its reasoning, fill half."""

MAX_LEVELS: Final = 32
"""Levels of an answer: four times those of the deepest that the APIs know."""

Json = dict[str, Any]


def read_answer(content: bytes, fields: Collection[str]) -> Json:
    """Return these fields of an answer. Raises ValueError for what is no JSON, and AnswerTooLong for too much of it."""
    try:
        answer = json.loads(content)
    except RecursionError as error:
        raise ValueError("the answer is nested too deeply") from error
    used = {name: answer[name] for name in fields if name in answer} if isinstance(answer, dict) else {}
    _check_parts(used)
    if len(_calls(used)) > MAX_CALLS:
        raise AnswerTooLong
    return used


def _calls(answer: Json) -> list[Any]:
    """Return the tool calls of an answer on either API, as far as it has the shape of one."""
    choices = [choice.get("message") for choice in _objects(answer.get("choices"))]
    made = [call for message in _objects(choices) for call in _objects(message.get("tool_calls"))]
    return made + [item for item in _objects(answer.get("output")) if item.get("type") == "function_call"]


def _objects(items: Any) -> list[Json]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _check_parts(answer: Json) -> None:
    parts, level = 0, [answer]
    for _ in range(MAX_LEVELS):
        parts += len(level)
        if parts > MAX_PARTS:
            raise AnswerTooLong
        level = [inner for part in level for inner in _inside(part)]
    if level:
        raise AnswerTooLong


def _inside(part: Any) -> Iterable[Any]:
    return part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
