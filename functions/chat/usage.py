"""Count what the models cost a turn: as a provider tells where that makes sense, and by length where it does not."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import httpx2
import openai
from pydantic_core import to_json

from chat.answers import field
from taskchat.conversations.history import CHARACTERS_PER_TOKEN

MAX_OUTPUT_TOKENS: Final = 8_000
"""Tokens that each request allows its answer, reasoning included: about what a model writes in the time that a request
has. A provider that tells of more makes no sense."""

ADDED_TOKENS: Final = 2_000
"""Tokens that a provider may add to a request: instructions of its own for the use of tools, and marks around messages.
Beyond these a request has at most one token for each of its bytes."""

_NOT_SENT: Final = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)

_WRITTEN: Final = frozenset({"text", "content", "refusal", "name", "arguments", "encrypted_content"})
"""Fields of an answer that hold what the model wrote, by either API's names; the last is its reasoning."""

Body = dict[str, Any]


@dataclass
class Usage:
    """The cost of a turn so far. It includes answers that were of no use."""

    model: str | None = None
    """The model that answered last."""
    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    estimated_tokens: int = 0
    """Tokens of requests and answers whose price the provider did not tell, or told in a way that makes no sense."""

    @property
    def tokens(self) -> int:
        """Return all tokens that a provider charges for, as far as is known."""
        return self.input_tokens + self.output_tokens + self.estimated_tokens

    def add(self, body: Body, told: Any, answer: Any = None) -> None:
        """Count the answer to a request. `told` is the provider's usage, by either API's names, and not checked."""
        self.model, self.requests = body["model"], self.requests + 1
        self._add_input(body, told)
        self._add_output(told, answer)

    def estimate(self, body: Body) -> None:
        """Count a request by its length."""
        self.estimated_tokens += _tokens(body)

    def _add_input(self, body: Body, told: Any) -> None:
        read = _number(told, "input_tokens", "prompt_tokens")
        if not 0 < read <= _bytes(body) + ADDED_TOKENS:
            return self.estimate(body)
        self.input_tokens += read
        details = ("input_tokens_details", "prompt_tokens_details")
        cached = sum(_number(field(told, name), "cached_tokens") for name in details)
        self.cached_tokens += cached if cached <= read else 0

    def _add_output(self, told: Any, answer: Any) -> None:
        written = _number(told, "output_tokens", "completion_tokens")
        if 0 < written <= MAX_OUTPUT_TOKENS:
            self.output_tokens += written
        else:
            self.estimated_tokens += min(_characters(answer) // CHARACTERS_PER_TOKEN, MAX_OUTPUT_TOKENS)


def _number(part: Any, *names: str) -> int:
    """Return the first of the fields that is a whole number above zero, or 0."""
    found = [field(part, name) for name in names]
    return next((value for value in found if type(value) is int and value > 0), 0)  # a bool is an int, too


def _tokens(part: Any) -> int:
    return len(json.dumps(part, ensure_ascii=False)) // CHARACTERS_PER_TOKEN


def _characters(answer: Any) -> int:
    """Return how much a model wrote in the JSON of an answer."""
    if isinstance(answer, dict):
        return sum(
            len(part) if name in _WRITTEN and isinstance(part, str) else _characters(part)
            for name, part in answer.items()
        )
    return sum(map(_characters, answer)) if isinstance(answer, list) else 0


def _bytes(body: Body) -> int:
    return len(to_json(body))  # as it was sent


_usage: ContextVar[Usage | None] = ContextVar("usage", default=None)


@contextmanager
def counting(usage: Usage) -> Iterator[None]:
    """Add the cost of every call of a model within the block to `usage`."""
    token = _usage.set(usage)
    try:
        yield
    finally:
        _usage.reset(token)


def current() -> Usage:
    """Return what the running block of `counting` counts in, or a count that is thrown away."""
    return _usage.get() or Usage()


@contextmanager
def charging(body: Body) -> Iterator[Callable[[Body], Body]]:
    """Count the cost of a request: as its answer tells when that is given to the function, else by the length.

    The function returns the answer with the name of the model that was asked.
    """
    usage = current()

    def charge(answer: Body) -> Body:
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
