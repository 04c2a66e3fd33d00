"""Read the JSON of a model's answer, and refuse what is too large before objects are made of it."""

import json
from collections.abc import Collection, Iterable
from typing import Any, Final

from chat.transport import AnswerTooLong

MAX_PARTS: Final = 2_048
"""Values in an answer, at all levels. A call takes seven: all calls of a turn, each with its reasoning, fill half."""

MAX_LEVELS: Final = 32
"""Levels of an answer: four times those of the deepest that the APIs know."""

Json = dict[str, Any]


def read_answer(content: bytes, fields: Collection[str]) -> Json:
    """Return these fields of an answer. Raises ValueError for what is no JSON, and AnswerTooLong for too many parts."""
    try:
        answer = json.loads(content)
    except RecursionError as error:
        raise ValueError("the answer is nested too deeply") from error
    used = {name: answer[name] for name in fields if name in answer} if isinstance(answer, dict) else {}
    _check_parts(used)
    return used


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
