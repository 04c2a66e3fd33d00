"""Speak the Chat Completions API: the body of a request, the items of an answer, the chunks of a stream."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

from agents.models.chatcmpl_converter import Converter
from agents.models.chatcmpl_helpers import ChatCmplHelpers
from openai.types.chat import ChatCompletionMessage
from openai.types.responses import ResponseOutputItem, ResponseRefusalDeltaEvent, ResponseTextDeltaEvent

from chat.answers import Json, check_complete, field, objects
from chat.model_call import ModelCall, TextDelta
from chat.transport import AnswerUnreadable
from taskchat.errors import ModelFailed

PATH: Final = "/chat/completions"

SETTINGS: Final = {name: name for name in ("temperature", "top_p", "parallel_tool_calls", "store", "metadata")} | {
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "max_tokens": "max_tokens",
}

_TEXTS: Final = ("content", "refusal", "reasoning_content", "reasoning")
"""Fields of a message that arrive in pieces. The last two are names of other vendors, who want them back."""

_PLACE: Final[Any] = {"item_id": "message", "output_index": 0, "content_index": 0, "sequence_number": 0}
"""The place of every text: the API has one message in an answer, and does not number its chunks."""

_DELTAS: Final[dict[str, TextDelta]] = {
    "content": ResponseTextDeltaEvent.model_construct(type="response.output_text.delta", **_PLACE),
    "refusal": ResponseRefusalDeltaEvent.model_construct(type="response.refusal.delta", **_PLACE),
}
"""Events to copy, one of each kind. The vendor's `model_construct` takes fifteen times as long as a copy."""


def build_body(call: ModelCall) -> Json:
    messages = Converter.items_to_messages(call.input, model=call.model, base_url=str(call.client.base_url))
    system: list[Any] = [{"content": call.instructions, "role": "system"}] if call.instructions else []
    streaming = ChatCmplHelpers.get_stream_options_param(call.client, call.settings, stream=call.is_streamed)
    return {
        "messages": system + messages,
        "tools": [Converter.tool_to_openai(tool) for tool in call.tools] or None,
        "tool_choice": Converter.convert_tool_choice(call.settings.tool_choice),
        "stream_options": streaming,
        "reasoning_effort": call.settings.reasoning.effort if call.settings.reasoning else None,
    }


def output_items(answer: Json) -> list[ResponseOutputItem]:
    choice = next(iter(objects(answer.get("choices"))), {})
    message: Any = choice.get("message")
    check_complete(choice.get("finish_reason"), is_readable=isinstance(message, dict))
    try:
        read = ChatCompletionMessage.model_construct(**message)
        return Converter.message_to_output_items(
            read, provider_data={"model": answer["model"], "response_id": answer.get("id")}
        )
    except Exception as error:  # whatever the SDK raises for a provider's odd message
        raise ModelFailed("The model's answer could not be read.") from error


class StreamReader:
    """Reads the chunks of a streamed answer, and puts its message together."""

    def __init__(self) -> None:
        self._texts: defaultdict[str, list[str]] = defaultdict(list)
        self._calls: dict[Any, Json] = {}
        self._arguments: defaultdict[Any, list[str]] = defaultdict(list)
        self._known: Json = {}
        self._finish_reason: Any = None

    def deltas(self, event: Json) -> Iterator[TextDelta]:
        self._known |= {name: event[name] for name in ("id", "usage") if event.get(name)}
        for choice in objects(event.get("choices"))[:1]:
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            delta = choice.get("delta")
            for name in _TEXTS:
                yield from self._add_text(name, field(delta, name))
            for call in objects(field(delta, "tool_calls")):
                self._add_call(call)

    def _add_text(self, name: str, text: Any) -> Iterator[TextDelta]:
        if not isinstance(text, str) or not text:
            return
        self._texts[name].append(text)
        if name in _DELTAS:
            yield _DELTAS[name].model_copy(update={"delta": text})

    def _add_call(self, piece: Json) -> None:
        index, function = piece.get("index"), piece.get("function")
        name, arguments = field(function, "name"), field(function, "arguments")
        if not isinstance(index, int):
            raise AnswerUnreadable
        call = self._calls.setdefault(index, {"type": "function", "function": {"name": ""}})
        call |= {key: value for key, value in piece.items() if key not in ("index", "function") and value}
        call["function"] |= {"name": name} if name else {}
        if isinstance(arguments, str):
            self._arguments[index].append(arguments)

    def answer(self) -> Json:
        if not self._finish_reason:
            raise AnswerUnreadable
        message: Json = {"role": "assistant", **{name: "".join(parts) for name, parts in self._texts.items()}}
        for index, call in self._calls.items():
            call["function"]["arguments"] = "".join(self._arguments[index])
        message |= {"tool_calls": list(self._calls.values())} if self._calls else {}
        return self._known | {"choices": [{"finish_reason": self._finish_reason, "message": message}]}
