"""Count what the models cost a turn: by the provider's numbers where they are plausible, else by length."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import httpx2
import openai
from pydantic_core import to_json

from chat.answers import Json, field
from taskchat.conversations.history import CHARACTERS_PER_TOKEN

MAX_OUTPUT_TOKENS: Final = 8_000
"""Tokens of an answer at most, reasoning included: about as many as a model writes in the time of a request."""

ADDED_TOKENS: Final = 2_000
"""Tokens that a provider may add to a request, such as instructions for tools and marks around messages."""

_NOT_SENT: Final = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)

_WRITTEN: Final = frozenset({"text", "content", "refusal", "name", "arguments", "encrypted_content"})
"""Fields of an answer that hold the model's text, of both APIs; the last one holds its reasoning."""


@dataclass
class Usage:
    """The cost of a turn so far. It includes answers that were refused."""

    model: str | None = None
    """The model that answered last."""
    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    estimated_tokens: int = 0
    """Tokens of requests and answers for which the provider sent no number, or one that is not plausible."""

    @property
    def tokens(self) -> int:
        """Return all tokens that a provider charges for, as far as known."""
        return self.input_tokens + self.output_tokens + self.estimated_tokens

    def add(self, body: Json, reported: Any, answer: Any = None) -> None:
        """Count the answer to a request. `reported` is the provider's usage on either API, and not checked yet."""
        self.model, self.requests = body["model"], self.requests + 1
        self._add_input(body, reported)
        self._add_output(reported, answer)

    def estimate(self, body: Json) -> None:
        self.estimated_tokens += len(json.dumps(body, ensure_ascii=False)) // CHARACTERS_PER_TOKEN

    def _add_input(self, body: Json, reported: Any) -> None:
        read = _number(reported, "input_tokens", "prompt_tokens")
        if not 0 < read <= len(to_json(body)) + ADDED_TOKENS:
            return self.estimate(body)
        self.input_tokens += read
        details = ("input_tokens_details", "prompt_tokens_details")
        cached = sum(_number(field(reported, name), "cached_tokens") for name in details)
        self.cached_tokens += cached if cached <= read else 0

    def _add_output(self, reported: Any, answer: Any) -> None:
        written = _number(reported, "output_tokens", "completion_tokens")
        if 0 < written <= MAX_OUTPUT_TOKENS:
            self.output_tokens += written
        else:
            self.estimated_tokens += min(_characters(answer) // CHARACTERS_PER_TOKEN, MAX_OUTPUT_TOKENS)


def _number(part: Any, *names: str) -> int:
    """Return the first of the fields that is a whole number above zero, or 0."""
    found = [field(part, name) for name in names]
    return next((value for value in found if type(value) is int and value > 0), 0)  # a bool is an int, too


def _characters(answer: Any) -> int:
    """Return the number of characters that the model wrote in an answer."""
    if isinstance(answer, dict):
        return sum(
            len(part) if name in _WRITTEN and isinstance(part, str) else _characters(part)
            for name, part in answer.items()
        )
    return sum(map(_characters, answer)) if isinstance(answer, list) else 0


_usage: ContextVar[Usage | None] = ContextVar("usage", default=None)


@contextmanager
def counting(usage: Usage) -> Iterator[None]:
    """Add the cost of each model call in the block to `usage`."""
    token = _usage.set(usage)
    try:
        yield
    finally:
        _usage.reset(token)


def current_usage() -> Usage:
    """Return the cost of the running turn. Without a `counting` block, return one that is not kept."""
    return _usage.get() or Usage()


@contextmanager
def charging(body: Json) -> Iterator[Callable[[Json], Json]]:
    """Yield a function that counts the cost of an answer. Without an answer, count the request by its length.

    The function returns the answer with the name of the model that was asked.
    """
    usage = current_usage()

    def charge(answer: Json) -> Json:
        usage.add(body, answer.get("usage"), answer.get("output") or answer.get("choices"))
        return answer | {"model": body["model"]}

    try:
        yield charge
    except BaseException as error:  # a cancelled request too: the model may be at work on it
        if _may_cost(error):
            usage.estimate(body)
        raise


def _may_cost(error: BaseException) -> bool:
    """Tell if the provider may charge for a request that has no answer: it was sent, and not refused."""
    is_unsent = isinstance(error, ValueError | TypeError) or isinstance(error.__cause__, _NOT_SENT)
    return not is_unsent and not isinstance(error, openai.APIStatusError)
