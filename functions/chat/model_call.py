"""Describe one call of the model as the SDK asks for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias, cast

from agents import ModelSettings, Tool, TResponseInputItem, UserError
from openai import AsyncOpenAI, Omit
from openai.types.responses import ResponseOutputItem, ResponseRefusalDeltaEvent, ResponseTextDeltaEvent
from pydantic import BaseModel

from chat.answers import Json

TextDelta: TypeAlias = ResponseTextDeltaEvent | ResponseRefusalDeltaEvent

READ_ELSEWHERE: Final = frozenset(
    {"tool_choice", "reasoning", "response_include", "include_usage", "timeout"}
    | {"extra_args", "extra_body", "extra_headers", "extra_query"}
)
"""Settings of the SDK that are no parameter of a request by themselves."""


@dataclass(frozen=True)
class ModelCall:
    """Hold what a call of the model needs."""

    client: AsyncOpenAI
    model: str
    instructions: str | None
    input: str | list[TResponseInputItem]
    settings: ModelSettings
    tools: list[Tool]
    is_streamed: bool


class StreamReader(Protocol):
    """Reads the events of one streamed answer."""

    def deltas(self, event: Json) -> Iterator[TextDelta]:
        """Read an event, and yield its text. Raises AnswerUnreadable for the provider's own failure."""

    def answer(self) -> Json:
        """Return the answer as it would come without a stream. Raises AnswerUnreadable when it broke off."""


class Api(Protocol):
    """Name what each API offers: the modules `responses_api` and `chat_completions_api` have these names."""

    PATH: str
    SETTINGS: dict[str, str]
    """The parameter of a request for each setting of the SDK that has one."""
    StreamReader: type[StreamReader]

    def build_body(self, call: ModelCall) -> Json:
        """Return the parameters of a request that only this API has."""

    def output_items(self, answer: Json) -> list[ResponseOutputItem]:
        """Return the items of an answer. Raises ModelFailed for an incomplete one."""


def build_body(api: Api, call: ModelCall) -> Json:
    """Return the body of a request. Raises UserError for a setting that would be ignored."""
    settings = {name: value for name, value in vars(call.settings).items() if value is not None}
    if unknown := settings.keys() - api.SETTINGS.keys() - READ_ELSEWHERE:
        raise UserError(f"The model does not send these settings: {', '.join(sorted(unknown))}")
    same = {parameter: settings.get(name) for name, parameter in api.SETTINGS.items()}
    body = {"model": call.model, **api.build_body(call), **same, "stream": call.is_streamed or None}
    given = {name: _plain(value) for name, value in body.items() if value is not None and not isinstance(value, Omit)}
    return given | (call.settings.extra_args or {}) | cast(Json, call.settings.extra_body or {})


def _plain(value: Any) -> Any:
    return value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
