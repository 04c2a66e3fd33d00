"""The wire to the model: tries again while there is time, then another model once, and takes no half answer.

Nothing else retries a model call: neither the client's own retries nor the SDK's are on.
"""

import asyncio
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final, TypeVar
from uuid import uuid4

import httpx2
import openai
from aws_lambda_powertools import Logger
from openai.types.chat import ChatCompletion, ChatCompletionMessageFunctionToolCall
from openai.types.responses import Response, ResponseFunctionToolCall
from pydantic import BaseModel

from taskchat import deadline
from taskchat.conversations import CHARACTERS_PER_TOKEN
from taskchat.errors import ModelFailed
from taskchat.settings import Settings

MAX_ATTEMPTS: Final = 3
"""Tries of one call: a passing fault is over by the third, and a lasting one should not cost the person the wait."""

FIRST_PAUSE: Final = 0.25
"""Seconds before the second try, where the model does not say; doubled for the third."""

MAX_RETRY_AFTER: Final = 86_400.0
"""Seconds beyond which what the model says is no time to come back at."""

QUOTA_SPENT: Final = "insufficient_quota"
"""Code of a 429 that no waiting mends."""

MAX_TOKENS: Final = 2**31
"""Tokens that no one answer costs."""

UNNAMED: Final = "unnamed"
"""Stands for the name of a tool that a model left out: there is no such tool, and that is what the model is told."""

KNOWN_CODES: Final = (
    *(None, QUOTA_SPENT, "rate_limit_exceeded", "invalid_api_key", "model_not_found", "server_error"),
    *("context_length_exceeded", "content_policy_violation", "invalid_prompt", "billing_hard_limit_reached"),
    *("unsupported_parameter", "unsupported_value", "unknown_parameter", "missing_required_parameter", "invalid_value"),
)
"""Codes of errors that an operator knows what to do about. Others are the provider's own text, and may quote people."""

_NOT_SENT: Final = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)

logger = Logger()

T = TypeVar("T")
Body = dict[str, Any]


@dataclass
class Usage:
    """What the models have cost a turn so far, also where an answer was of no use."""

    model: str | None = None
    """The one that answered last."""
    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    estimated_tokens: int = 0
    """Of requests whose price nobody told: given up while the model worked, or answered without it."""

    @property
    def tokens(self) -> int:
        """All that a provider charges for, as far as is known."""
        return self.input_tokens + self.output_tokens + self.estimated_tokens

    def add(self, body: Body, told: Any) -> None:
        """Count the answer to a request by what its provider tells of it; by either API's names."""
        self.model, self.requests = body["model"], self.requests + 1
        read = _number(told, "input_tokens", "prompt_tokens")
        self.input_tokens += read
        if not read:
            self.estimate(body)
        self.output_tokens += _number(told, "output_tokens", "completion_tokens")
        for details in ("input_tokens_details", "prompt_tokens_details"):
            self.cached_tokens += _number(getattr(told, details, None), "cached_tokens")

    def estimate(self, body: Body) -> None:
        """Count a request by its length."""
        self.estimated_tokens += len(json.dumps(body, ensure_ascii=False)) // CHARACTERS_PER_TOKEN


def _number(part: Any, *names: str) -> int:
    """The first of the fields that is a number of tokens, or 0: nobody has checked what the provider sent."""
    found = [getattr(part, name, None) for name in names]
    return next((value for value in found if isinstance(value, int) and 0 <= value < MAX_TOKENS), 0)


_usage: ContextVar[Usage | None] = ContextVar("usage", default=None)


@contextmanager
def counting(usage: Usage) -> Iterator[None]:
    """Add every answer of a model that comes within the block to `usage`."""
    token = _usage.set(usage)
    try:
        yield
    finally:
        _usage.reset(token)


class _Endpoint:
    """One endpoint of the client, which sends what it is given as it stands.

    The client's own first compares each item of the input with every type that an item may have, at each call, and
    changes nothing in plain JSON: 0.3 ms of CPU for each message of a history.
    """

    def __init__(self, client: "ModelClient", path: str, kind: type[BaseModel]) -> None:
        self._client, self._path, self._kind = client, path, kind

    async def create(
        self, *, extra_headers: Body | None, extra_query: Body | None, extra_body: Body | None, **parameters: Any
    ) -> Any:
        """The model's answer, as ModelClient.post gives it."""
        body = {name: value for name, value in parameters.items() if not isinstance(value, openai.Omit)}
        options = {"headers": extra_headers or {}, "params": extra_query or {}}
        return await self._client.post(self._path, cast_to=self._kind, body=body | (extra_body or {}), options=options)


class ModelClient(openai.AsyncOpenAI):
    """The vendor's client with our own idea of persistence. Holds connections and nothing of any request."""

    def __init__(self, settings: Settings) -> None:
        """Talk to OPENAI_BASE_URL, with MODEL_FALLBACK as the second choice."""
        super().__init__(
            api_key=settings.openai_api_key.get_secret_value(),
            base_url=settings.openai_base_url,
            max_retries=0,
            # A redirect would hand the conversation to an address that nobody has configured.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )
        self._fallback = settings.model_fallback

    @property
    def responses(self) -> Any:
        """The endpoint of MODEL_API responses."""
        return _Endpoint(self, "/responses", Response)

    @property
    def chat(self) -> Any:
        """The endpoint of MODEL_API chat_completions, where the SDK looks for it."""
        return SimpleNamespace(completions=_Endpoint(self, "/chat/completions", ChatCompletion))

    async def post(self, path: str, *, cast_to: type[T], body: Any = None, **options: Any) -> Any:
        """One call of the model, as every resource of the client makes it. Raises ModelFailed."""
        try:
            answer = await self._persist(path, cast_to, body, options)
        except (openai.APIConnectionError, openai.APIStatusError, ValueError) as error:
            if not self._fallback or not _is_down(error):
                raise _failure(error) from error
            answer = await self._fall_back(path, cast_to, body, options)
        return _whole(answer)

    async def _persist(self, path: str, cast_to: type[T], body: Any, options: Body) -> T:
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                return await self._post(path, cast_to, body, options)
            except (openai.APIConnectionError, openai.APIStatusError, ValueError) as error:
                pause = _pause(error, attempt)
                if attempt == MAX_ATTEMPTS or not _is_passing(error) or pause >= deadline.remaining():
                    raise
                logger.info("model call failed, trying again", extra={"reason": _kind(error), "attempt": attempt})
            await asyncio.sleep(pause)
        raise AssertionError  # the last attempt returns or raises

    async def _fall_back(self, path: str, cast_to: type[T], body: Any, options: Body) -> T:
        logger.warning("model is down, trying the fallback", extra={"fallback": self._fallback})
        try:
            return await self._post(path, cast_to, self._for_fallback(body), options)
        except (openai.APIConnectionError, openai.APIStatusError, ValueError) as error:
            raise _failure(error) from error

    def _for_fallback(self, body: Body) -> Body:
        plain = _without_reasoning(body) if isinstance(body.get("input"), list) else body
        return plain | {"model": self._fallback}

    async def _post(self, path: str, cast_to: type[T], body: Any, options: Body) -> T:
        # Where there is a second choice, the first may not use up all the time.
        share = deadline.remaining() / 2 if self._fallback and body["model"] != self._fallback else None
        given = options.get("options") or {}
        options = options | {"options": given | ({"timeout": share} if share else {})}
        usage = _usage.get() or Usage()
        try:
            answer: T = await super().post(path, cast_to=cast_to, body=_self_contained(body), **options)
        except BaseException as error:  # a cancelled one too: the model may be at work on it
            if _may_cost(error):
                usage.estimate(body)
            raise
        usage.add(body, getattr(answer, "usage", None))
        return answer


def _may_cost(error: BaseException) -> bool:
    """Whether the provider may charge for a request without an answer: it was sent, and not refused."""
    return not isinstance(error, openai.APIStatusError) and not isinstance(error.__cause__, _NOT_SENT)


def _is_passing(error: Exception) -> bool:
    """Whether the same call may succeed a moment later. A timeout has used up the time it would take to see."""
    if isinstance(error, openai.RateLimitError):
        return error.code != QUOTA_SPENT
    return not isinstance(error, openai.APITimeoutError) and _is_down(error)


def _is_down(error: Exception) -> bool:
    """Whether the fault is the model's and not the request's. A ValueError is a 200 whose body is not JSON."""
    faults = openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError, ValueError
    return isinstance(error, faults)


def _pause(error: Exception, attempt: int) -> float:
    """Seconds until the next try: as the model says, or a little longer each time."""
    return _retry_after(error) or FIRST_PAUSE * 2 ** (attempt - 1)


def _retry_after(error: Exception) -> float | None:
    headers = error.response.headers if isinstance(error, openai.APIStatusError) else {}
    try:
        seconds = float(headers.get("retry-after-ms", "nan")) / 1000
        if math.isnan(seconds):
            seconds = float(headers.get("retry-after", "nan"))
    except ValueError:
        return None  # a date: rare, and not worth waiting for exactly
    return seconds if 0 <= seconds < MAX_RETRY_AFTER else None


def _failure(error: Exception) -> ModelFailed:
    """What the person is told; what the operator needs goes to the log."""
    logger.error("model failed", extra={"reason": _kind(error)})
    if isinstance(error, openai.RateLimitError) and error.code != QUOTA_SPENT:
        seconds = _retry_after(error)
        return ModelFailed("The model is busy.", retry_after=None if seconds is None else max(1, round(seconds)))
    if isinstance(error, openai.APIConnectionError):
        return ModelFailed("The model cannot be reached.")
    if isinstance(error, ValueError):
        return ModelFailed("The model's answer could not be read.")
    return ModelFailed()


def _kind(error: Exception) -> str:
    if not isinstance(error, openai.APIStatusError):
        return type(error).__name__
    code = error.code if error.code in KNOWN_CODES else "unknown"
    return f"{type(error).__name__} {error.status_code} {code}"


def _without_reasoning(body: Body) -> Body:
    """The request without what only the model that made it understands: reasoning, and the ids that tie calls to it."""
    items = [item for item in body["input"] if item.get("type") != "reasoning"]
    return body | {
        "input": [{name: value for name, value in item.items() if name != "id"} for item in items],
        "include": [part for part in body.get("include") or [] if not part.startswith("reasoning.")],
    }


def _self_contained(body: Body) -> Body:
    """The request without reasoning that it only names: the provider, asked to keep nothing, does not have it."""
    items = body.get("input")
    named = isinstance(items, list) and any(
        item.get("type") == "reasoning" and not item.get("encrypted_content") for item in items
    )
    return _without_reasoning(body) if named else body


def _whole(answer: Any) -> Any:
    """The answer, if it is a whole one. Raises ModelFailed for one that is cut, withheld, or of another shape."""
    reason: str | None = None
    is_readable = False
    if isinstance(answer, Response):
        reason = answer.incomplete_details.reason if answer.incomplete_details else None
        is_readable = isinstance(answer.output, list) and answer.status not in ("failed", "cancelled")
    elif isinstance(answer, ChatCompletion):
        reason = answer.choices[0].finish_reason if answer.choices else None
        is_readable = bool(answer.choices)
    if reason in ("max_output_tokens", "length"):
        raise ModelFailed("The model's answer was cut short.")
    if reason == "content_filter":
        raise ModelFailed("The model's provider withheld the answer.")
    if not is_readable:
        raise ModelFailed("The model's answer could not be read.")
    _mend(answer.output if isinstance(answer, Response) else answer.choices)
    _name_calls(answer)
    return answer


def _mend(part: Any) -> None:
    """Replace lone surrogates, which JSON allows and nothing behind this can encode, all the way down."""
    for item in part if isinstance(part, list) else ():
        _mend(item)
    fields = vars(part).items() if isinstance(part, BaseModel) else ()
    for name, value in list(fields):
        if isinstance(value, str):
            setattr(part, name, _encodable(_unescaped(value) if name == "arguments" else value))
        _mend(value)


def _unescaped(arguments: str) -> str:
    """The JSON text of a call's arguments with its escaped surrogates as characters, if it has any and is JSON."""
    if "\\ud" not in arguments.lower():
        return arguments
    try:
        return json.dumps(json.loads(arguments), ensure_ascii=False)
    except (ValueError, RecursionError):
        return arguments


def _encodable(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _name_calls(answer: Response | ChatCompletion) -> None:
    """Give each call an id of ours, and a name if it has none: some providers number calls anew in each answer.

    Nothing of theirs stays in it: an id is logged, and a model may write anything there.
    """
    if isinstance(answer, Response):
        for item in answer.output:
            if isinstance(item, ResponseFunctionToolCall):
                item.call_id, item.name = _new_id(), item.name or UNNAMED
        return
    for call in answer.choices[0].message.tool_calls or []:
        call.id = _new_id()
        if isinstance(call, ChatCompletionMessageFunctionToolCall):
            call.function.name = call.function.name or UNNAMED


def _new_id() -> str:
    return f"call_{uuid4().hex}"
