"""The wire to the model: tries again while there is time, then another model once, and takes no half answer.

Nothing else retries a model call: neither the client's own retries nor the SDK's are on.
"""

import asyncio
import json
import math
import ssl
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any, Final
from uuid import uuid4

import httpx2
import openai
from agents import OpenAIResponsesModel
from anyio import EndOfStream
from aws_lambda_powertools import Logger
from openai._models import FinalRequestOptions
from openai.types.chat import ChatCompletion, ChatCompletionMessageFunctionToolCall
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputItem
from openai.types.responses.response import IncompleteDetails
from pydantic import BaseModel
from pydantic_core import to_json

from chat.answers import read_answer
from chat.arguments import readable_arguments
from chat.model_input import UNNAMED
from chat.reasoning import EFFORT_FIELDS, reasons
from chat.transport import AnswerTooLong, model_http_client
from chat.usage import current
from taskchat import deadline
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

KNOWN_CODES: Final = (
    *(None, QUOTA_SPENT, "rate_limit_exceeded", "invalid_api_key", "model_not_found", "server_error"),
    *("context_length_exceeded", "content_policy_violation", "invalid_prompt", "billing_hard_limit_reached"),
    *("unsupported_parameter", "unsupported_value", "unknown_parameter", "missing_required_parameter", "invalid_value"),
)
"""Codes of errors that an operator knows what to do about. Others are the provider's own text, and may quote people."""

_NOT_SENT: Final = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)

logger = Logger()

Body = dict[str, Any]


class Answer(openai.BaseModel):
    """What is read of an answer on the Responses API. The rest repeats the request, or is nobody's here."""

    id: str
    status: str | None = None
    incomplete_details: IncompleteDetails | None = None
    output: list[ResponseOutputItem]
    usage: None = None
    """Counted before, and kept from the SDK: it takes whatever a provider tells for numbers."""


class ResponsesModel(OpenAIResponsesModel):
    """The SDK's, but for the copy that it makes of each item of the input, at each call."""

    def _build_response_create_kwargs(self, system_instructions: Any, input: Any, *others: Any, **named: Any) -> Body:
        return super()._build_response_create_kwargs(system_instructions, [], *others, **named) | {"input": input}


@dataclass(frozen=True)
class _Call:
    """One call of the model: what it is sent, and what its answer is made, without a check."""

    url: httpx2.URL
    body: Body
    kind: type[openai.BaseModel]
    headers: Body
    """Beyond the client's own, or with `Omit` in place of one of them."""
    query: Body | None


class _Endpoint:
    """One endpoint of the client, which sends what it is given as it stands.

    The client's own first compares each item of the input with every type that an item may have, at each call, and
    changes nothing in plain JSON: 0.3 ms of CPU for each message of a history.
    """

    def __init__(self, client: "ModelClient", path: str, kind: type[openai.BaseModel]) -> None:
        self._client, self._url, self._kind = client, client._prepare_url(path), kind

    async def create(
        self, *, extra_headers: Body | None, extra_query: Body | None, extra_body: Body | None, **parameters: Any
    ) -> Any:
        """The model's answer, as ModelClient.ask gives it."""
        body = _given(parameters) | (extra_body or {})
        headers = {name.lower(): value for name, value in (extra_headers or {}).items()}
        return await self._client.ask(_Call(self._url, body, self._kind, headers, extra_query))


def _given(parameters: Body) -> Body:
    return {name: _plain(value) for name, value in parameters.items() if not isinstance(value, openai.Omit)}


def _plain(value: Any) -> Any:
    return value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value


class ModelClient(openai.AsyncOpenAI):
    """The vendor's client with our own idea of persistence. Holds connections and nothing of any request."""

    def __init__(self, settings: Settings) -> None:
        """Talk to OPENAI_BASE_URL, with MODEL_FALLBACK as the second choice."""
        self._http = model_http_client()
        super().__init__(
            api_key=settings.openai_api_key.get_secret_value(),
            base_url=settings.openai_base_url,
            max_retries=0,
            http_client=self._http,
        )
        self._fallback = settings.model_fallback

    @cached_property
    def responses(self) -> Any:
        """The endpoint of MODEL_API responses."""
        return _Endpoint(self, "/responses", Answer)

    @cached_property
    def chat(self) -> Any:
        """The endpoint of MODEL_API chat_completions, where the SDK looks for it."""
        return SimpleNamespace(completions=_Endpoint(self, "/chat/completions", ChatCompletion))

    @cached_property
    def _headers(self) -> dict[str, str]:
        """What the vendor's client sends with every request."""
        return {**self._http.headers, **self._build_headers(FinalRequestOptions.construct(method="post", url=""))}

    async def ask(self, call: _Call) -> Any:
        """The answer, whole. Raises ModelFailed."""
        try:
            answer = await self._ask_first(call)
        except (openai.APIConnectionError, openai.APIStatusError, ValueError) as error:
            if not self._fallback or not _is_down(error):
                raise _failure(error) from error
            answer = await self._fall_back(call)
        return _whole(answer)

    async def _ask_first(self, call: _Call) -> Any:
        """Ask the model. All tries and their answers together leave a second choice half of the time."""
        if not self._fallback:
            return await self._persist(call)
        share = deadline.remaining() / 2
        try:
            with deadline.within(share):
                async with asyncio.timeout(share):
                    return await self._persist(call)
        except TimeoutError as error:
            raise openai.APITimeoutError(request=httpx2.Request("POST", call.url)) from error

    async def _persist(self, call: _Call) -> Any:
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                return await self._try(call)
            except (openai.APIConnectionError, openai.APIStatusError, ValueError) as error:
                pause = _pause(error, attempt)
                if attempt == MAX_ATTEMPTS or not _is_passing(error) or pause >= deadline.remaining():
                    raise
                logger.info("model call failed, trying again", extra={"reason": _kind(error), "attempt": attempt})
            await asyncio.sleep(pause)
        raise AssertionError  # the last attempt returns or raises

    async def _fall_back(self, call: _Call) -> Any:
        logger.warning("model is down, trying the fallback", extra={"fallback": self._fallback})
        try:
            return await self._try(replace(call, body=self._for_fallback(call.body)))
        except (openai.APIConnectionError, openai.APIStatusError, ValueError) as error:
            raise _failure(error) from error

    def _for_fallback(self, body: Body) -> Body:
        plain = _without_reasoning(body) if isinstance(body.get("input"), list) else body
        refused = frozenset() if reasons(str(self._fallback)) else EFFORT_FIELDS
        return {name: value for name, value in plain.items() if name not in refused} | {"model": self._fallback}

    async def _try(self, call: _Call) -> Any:
        usage, request = current(), self._request(call)
        try:
            told = read_answer(await self._send(request), call.kind.model_fields)
        except BaseException as error:  # a cancelled one too: the model may be at work on it
            if _may_cost(error):
                usage.estimate(call.body)
            raise
        usage.add(call.body, told.pop("usage", None), told.get("output") or told.get("choices"))
        return call.kind.construct(**told)

    def _request(self, call: _Call) -> httpx2.Request:
        """Return what is sent. Raises TypeError for what cannot be: no other try would do better."""
        try:
            return httpx2.Request(
                "POST",
                call.url,
                params=self.qs.stringify(call.query) if call.query else None,
                headers=_given(self._headers | call.headers),
                content=to_json(_self_contained(call.body)),
            )
        except ValueError as error:
            raise TypeError("the request cannot be written down") from error

    async def _send(self, request: httpx2.Request) -> bytes:
        """Return the answer's body. Raises what the client's own `post` raises, or ValueError.

        That one takes three times the CPU: it makes the same headers anew, and an object of each part of the answer.
        """
        try:
            response = await self._http.send(request)
        except httpx2.TimeoutException as error:
            raise openai.APITimeoutError(request=request) from error
        except (httpx2.RequestError, ssl.SSLError, EndOfStream) as error:  # as the client's own does
            raise openai.APIConnectionError(request=request) from error
        if not response.is_success:
            raise self._make_status_error_from_response(response)
        return bytes(response.content)


def _may_cost(error: BaseException) -> bool:
    """Whether the provider may charge for a request without an answer: it was sent, and not refused."""
    return not isinstance(error, openai.APIStatusError) and not isinstance(error.__cause__, _NOT_SENT)


def _is_passing(error: Exception) -> bool:
    """Whether the same call may succeed a moment later.

    A timeout has used up the time it would take to see, and a model that has no end would have none again.
    """
    if isinstance(error, openai.RateLimitError):
        return error.code != QUOTA_SPENT
    return not isinstance(error, openai.APITimeoutError | AnswerTooLong) and _is_down(error)


def _is_down(error: Exception) -> bool:
    """Whether the fault is the model's and not the request's. A ValueError is a 200 whose body cannot be read."""
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
    if isinstance(error, AnswerTooLong):
        return ModelFailed("The model's answer is too long.")
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
    if isinstance(answer, Answer):
        reason = getattr(answer.incomplete_details, "reason", None)
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
    _mend(answer.output if isinstance(answer, Answer) else answer.choices)
    _name_calls(answer)
    return answer


def _mend(part: Any) -> None:
    """Replace lone surrogates, which JSON allows and nothing behind this can encode, all the way down."""
    for item in part if isinstance(part, list) else ():
        _mend(item)
    fields = vars(part).items() if isinstance(part, BaseModel) else ()
    for name, value in list(fields):
        if isinstance(value, str):
            setattr(
                part,
                name,
                readable_arguments(_encodable(_unescaped(value))) if name == "arguments" else _encodable(value),
            )
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


def _name_calls(answer: Answer | ChatCompletion) -> None:
    """Give each call an id of ours, and a name if it has none: some providers number calls anew in each answer.

    Nothing of theirs stays in it: an id is logged, and a model may write anything there.
    """
    if isinstance(answer, Answer):
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
