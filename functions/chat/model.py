"""Call the model, for the Agents SDK: whole answers and streamed ones, on either API, within the request's time."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any, Final

import httpx2
from agents import AgentOutputSchemaBase, Handoff, ModelResponse, ModelSettings, Tool, TResponseInputItem, UserError
from agents.items import TResponseStreamEvent
from agents.models.interface import Model, ModelTracing
from agents.version import __version__
from openai import APIConnectionError, APIError, AsyncOpenAI, AsyncStream, RequestOptions
from openai.types.responses import Response, ResponseCompletedEvent

from chat import chat_completions_api, responses_api
from chat.answers import Json, read_answer, to_model_response, used_fields
from chat.model_call import Api, ModelCall, TextDelta, build_body
from chat.model_log import Tries
from chat.reasoning import for_fallback
from chat.retries import FAULTS, ask_with_retries, to_failure
from chat.stream.report import TurnReport
from chat.transport import AnswerTooLong, AnswerUnreadable, model_http_client
from chat.usage import charging
from taskchat import deadline, genai
from taskchat.credentials import Credentials
from taskchat.settings import Settings

MAX_EVENTS: Final = 20_000
"""Events of a streamed answer: more than two for each token that a model may write."""

_APIS: Final[dict[str, Any]] = {"responses": responses_api, "chat_completions": chat_completions_api}


class ProviderModel(Model):
    """The model at OPENAI_BASE_URL, with MODEL_FALLBACK as the second choice. It keeps nothing of a request."""

    def __init__(self, settings: Settings, credentials: Credentials | None = None) -> None:
        """Open the HTTP client. It connects at the first call, and each request has the key of `credentials`."""
        self._credentials = credentials or Credentials(settings)
        self._api: Api = _APIS[settings.model_api]
        self._name, self._fallback = settings.model, settings.model_fallback
        self._provider = genai.provider_of(settings.openai_base_url)
        self._client = AsyncOpenAI(
            api_key=self._current_key,
            base_url=settings.openai_base_url,
            default_headers={"User-Agent": f"Agents/Python {__version__}"},
            max_retries=0,
            http_client=model_http_client(),
        )

    async def get_response(self, *arguments: Any, **state: Any) -> ModelResponse:
        """Return the model's whole answer. Raises ModelFailed or OutOfTime, and UserError for what it cannot send."""
        call = self._call(*arguments, **state, is_streamed=False)
        fetch = partial(self._fetch, _options(call), Tries(self._provider))
        answer = await self._ask(fetch, build_body(self._api, call))
        return to_model_response(self._api.output_items(answer))

    async def stream_response(self, *arguments: Any, **state: Any) -> AsyncIterator[TResponseStreamEvent]:
        """Yield the model's text as it comes, and in the end the whole answer, checked as any other.

        Raises the errors of get_response. A call is tried again, or the fallback asked, only before the first event.
        """
        call = self._call(*arguments, **state, is_streamed=True)
        options, tries = _options(call), Tries(self._provider)
        events = await self._ask(lambda body: _start(self._stream(options, tries, body)), build_body(self._api, call))
        async with aclosing(events):
            async for event in events:
                yield event

    async def close(self) -> None:
        await self._client.close()

    def _call(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff],
        tracing: ModelTracing,
        *,
        is_streamed: bool,
        **state: Any,
    ) -> ModelCall:
        """Return the call for the parameters of the SDK's interface. `state` names stored prompts and conversations."""
        if output_schema or handoffs or any(state.values()):
            raise UserError("Output types, handoffs, prompts and stored conversations are not supported.")
        return ModelCall(self._client, self._name, system_instructions, input, model_settings, tools, is_streamed)

    async def _ask(self, attempt: Any, body: Json) -> Any:
        fallback = partial(for_fallback, body, self._fallback) if self._fallback else None
        return await ask_with_retries(attempt, body, fallback, partial(self._credentials.renew, "openai_api_key"))

    async def _current_key(self) -> str:
        return self._credentials.model_key()

    async def _fetch(self, options: RequestOptions, tries: Tries, body: Json) -> Json:
        with tries.logged(body), charging(body) as charge:
            response = await self._client.post(self._api.PATH, body=body, cast_to=httpx2.Response, options=options)
            return charge(read_answer(response.content))

    async def _stream(self, options: RequestOptions, tries: Tries, body: Json) -> AsyncGenerator[TResponseStreamEvent]:
        reader = self._api.StreamReader()
        with tries.logged(body) as this, charging(body) as charge:
            async with aclosing(self._events(options, body)) as events:
                async for event in events:
                    for delta in reader.deltas(event):
                        this.note_text()
                        yield delta
            answer = charge(used_fields(reader.answer()))
        output = to_model_response(self._api.output_items(answer)).output
        response = Response.model_construct(id="response", output=output, status="completed")
        yield ResponseCompletedEvent.model_construct(type="response.completed", response=response, sequence_number=0)

    async def _events(self, options: RequestOptions, body: Json) -> AsyncGenerator[Json]:
        """Send the request and yield the events of its answer. Raises the errors of `FAULTS`."""
        kind, number = AsyncStream[object], 0
        stream = await self._client.post(
            self._api.PATH, body=body, cast_to=object, options=options, stream=True, stream_cls=kind
        )
        async with stream:
            try:
                async for event in stream:
                    number += 1
                    if number > MAX_EVENTS:
                        raise AnswerTooLong
                    if isinstance(event, dict):
                        yield event
            except APIConnectionError:
                raise
            except (APIError, ValueError, RecursionError) as error:  # an error event, or one that is no JSON
                raise AnswerUnreadable from error


class ReportingModel(Model):
    """Reports the text of streamed answers as it comes, and keeps it from the SDK, which needs only the whole answer.

    The SDK would hand each piece on beside the run, and later.
    """

    def __init__(self, model: Model, report: TurnReport) -> None:
        """Report what `model` streams."""
        self._model, self._report = model, report

    async def get_response(self, *arguments: Any, **state: Any) -> ModelResponse:
        """Return the model's whole answer. Raises what the model raises."""
        return await self._model.get_response(*arguments, **state)

    async def stream_response(self, *arguments: Any, **state: Any) -> AsyncIterator[TResponseStreamEvent]:
        """Report the model's text, and yield the other events. Raises what the model raises."""
        self._report.begin_answer()
        async for event in self._model.stream_response(*arguments, **state):
            if isinstance(event, TextDelta):
                self._report.add_text(event)
            else:
                yield event


async def _start(events: AsyncGenerator[TResponseStreamEvent]) -> AsyncGenerator[TResponseStreamEvent]:
    """Wait for the first event, and return all of them."""
    return _in_time(await anext(events), events)


async def _in_time(
    event: TResponseStreamEvent, events: AsyncGenerator[TResponseStreamEvent]
) -> AsyncGenerator[TResponseStreamEvent]:
    """Yield the event, then the others while time remains. Raises ModelFailed or OutOfTime."""
    async with aclosing(events):
        while True:
            yield event
            try:
                async with asyncio.timeout(deadline.remaining()):
                    event = await anext(events)
            except StopAsyncIteration:
                return
            except FAULTS as error:
                raise to_failure(error) from error


def _options(call: ModelCall) -> RequestOptions:
    return {"headers": call.settings.extra_headers or {}, "params": call.settings.extra_query or {}}
