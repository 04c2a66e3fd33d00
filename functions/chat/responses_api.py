"""Speak the Responses API: the body of a request, the items of an answer, the events of a stream."""

from collections.abc import Iterator
from typing import Any, Final

from agents import ItemHelpers
from agents.models.openai_responses import Converter
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputItem,
    ResponseOutputMessage,
    ResponseReasoningItem,
    ResponseRefusalDeltaEvent,
    ResponseTextDeltaEvent,
)

from chat.answers import Json, check_complete, field, objects
from chat.model_call import ModelCall, TextDelta
from chat.reasoning import self_contained
from chat.transport import AnswerUnreadable

PATH: Final = "/responses"

SETTINGS: Final = {name: name for name in ("temperature", "top_p", "parallel_tool_calls", "store", "metadata")} | {
    "truncation": "truncation",
    "max_tokens": "max_output_tokens",
    "reasoning": "reasoning",
}

_ITEMS: Final[dict[Any, type[Any]]] = {
    "message": ResponseOutputMessage,
    "function_call": ResponseFunctionToolCall,
    "reasoning": ResponseReasoningItem,
}
"""Items that an answer may have: the agent offers function tools only."""

_DELTAS: Final[dict[Any, TextDelta]] = {
    "response.output_text.delta": ResponseTextDeltaEvent.model_construct(),
    "response.refusal.delta": ResponseRefusalDeltaEvent.model_construct(),
}
"""Events to copy, one of each kind. The vendor's `model_construct` takes fifteen times as long as a copy."""


def build_body(call: ModelCall) -> Json:
    return self_contained(
        {
            "instructions": call.instructions,
            "input": ItemHelpers.input_to_new_input_list(call.input) if isinstance(call.input, str) else call.input,
            "include": list(call.settings.response_include or ()),
            "tools": Converter.convert_tools(call.tools, []).tools,
            "tool_choice": Converter.convert_tool_choice(call.settings.tool_choice, tools=call.tools),
        }
    )


def output_items(answer: Json) -> list[ResponseOutputItem]:
    items, is_ended = answer.get("output"), answer.get("status") not in ("failed", "cancelled")
    reason = field(answer.get("incomplete_details"), "reason")
    check_complete(reason, is_readable=isinstance(items, list) and is_ended)
    known = [(_ITEMS.get(item.get("type")), item) for item in objects(items)]
    return [kind.model_construct(**item) for kind, item in known if kind]


class StreamReader:
    """Reads the events of a streamed answer."""

    def __init__(self) -> None:
        self._items: list[Any] = []
        self._end: Json | None = None

    def deltas(self, event: Json) -> Iterator[TextDelta]:
        kind = event.get("type")
        if kind in ("error", "response.failed"):
            raise AnswerUnreadable
        if kind in ("response.completed", "response.incomplete"):
            self._end = event.get("response")
        elif kind == "response.output_item.done":
            self._items.append(event.get("item"))
        elif kind in _DELTAS and isinstance(event.get("delta"), str):
            delta = _DELTAS[kind]
            yield delta.model_copy(update={name: event.get(name) for name in type(delta).model_fields})

    def answer(self) -> Json:
        if not isinstance(self._end, dict):
            raise AnswerUnreadable
        # Some providers leave the items out of the last event.
        return self._end | {"output": self._end.get("output") or self._items}
