"""Speak the AI SDK's UI message stream, version 1: read a request of `useChat`, and write a turn's events."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, Field

from chat.schemas import MessageText, ToolCallView
from chat.stream.asked import Asked, Key, conversation_id_of
from chat.stream.client_messages import ClientMessage, join_texts, last_user_message
from chat.stream.encoding import explain, write_json
from chat.stream.events import Accepted, Event, Failed, Finished, Text, ToolFinished, ToolStarted
from taskchat.conversations.turns import Request
from taskchat.timezones import TimezoneName

_DONE = b"data: [DONE]\n\n"


class AiSdkUserMessage(BaseModel):
    """The message of the person that the turn answers."""

    id: Key
    parts: Annotated[MessageText, BeforeValidator(join_texts)]


class AiSdkRequest(BaseModel):
    """A request of `useChat`. `id` is the conversation, and the last user message's id the idempotency key.

    Other fields are ignored, `trigger` and `messageId` too: to regenerate is to send the same user message again.
    """

    id: Key
    messages: Annotated[
        AiSdkUserMessage, BeforeValidator(last_user_message, json_schema_input_type=list[ClientMessage])
    ] = Field(description="Only the last message of the role `user` is read: its id and text, 1 to 4,000 characters.")
    timezone: TimezoneName | None = None

    def asked(self, user_id: str) -> Asked:
        """Return the turn that this user asks for."""
        conversation_id = conversation_id_of(user_id, self.id)
        request = Request(self.messages.parts, conversation_id, self.timezone, makes_conversation=True)
        return Asked(self.messages.id, request, AiSdkEncoder)


class AiSdkEncoder:
    """Write the parts of one assistant message.

    After the results of tools, a new step begins: a client may send again by itself if the last step has such results.
    """

    headers: ClassVar[Mapping[str, str]] = {"x-vercel-ai-ui-message-stream": "v1"}

    def __init__(self) -> None:
        """Begin a message."""
        self._in_step = False
        self._has_results = False
        self._open: int | None = None

    def encode(self, event: Event) -> Iterable[bytes]:
        """Return the lines to send for the event."""
        lines = [f"data: {write_json(part)}\n\n".encode() for part in self._translate(event)]
        return [*lines, _DONE] if isinstance(event, Finished | Failed) else lines

    def _translate(self, event: Event) -> Iterator[dict[str, Any]]:
        if self._open is not None and not (isinstance(event, Text) and event.message == self._open):
            yield {"type": "text-end", "id": str(self._open)}
            self._open = None
        match event:
            case Accepted():
                yield _start(event)
            case ToolStarted():
                yield from self._begin_step()
                yield {"type": "tool-input-available", "toolCallId": event.call_id, "toolName": event.tool} | {
                    "input": event.arguments,
                    "dynamic": True,
                }
            case ToolFinished(call):
                self._has_results = True
                yield _output(call)
            case Text():
                yield from self._text(event)
            case Finished():
                yield from self._begin_step()
                yield from ({"type": "finish-step"}, {"type": "finish"})
            case Failed(problem):
                yield {"type": "error", "errorText": explain(problem)}

    def _begin_step(self) -> Iterator[dict[str, Any]]:
        """Begin the first step, or the next one if this one has results."""
        if self._in_step and not self._has_results:
            return
        if self._in_step:
            yield {"type": "finish-step"}
        yield {"type": "start-step"}
        self._in_step, self._has_results = True, False

    def _text(self, event: Text) -> Iterator[dict[str, Any]]:
        if self._open is None:
            yield from self._begin_step()
            self._open = event.message
            yield {"type": "text-start", "id": str(event.message)}
        yield {"type": "text-delta", "id": str(event.message), "delta": event.text}


def _start(event: Accepted) -> dict[str, Any]:
    shown = {"conversationId": str(event.conversation_id), "turnId": str(event.turn_id), "replayed": event.replayed}
    return {"type": "start", "messageId": str(event.turn_id), "messageMetadata": shown}


def _output(call: ToolCallView) -> dict[str, Any]:
    part = {"toolCallId": call.call_id, "dynamic": True}
    if call.outcome == "ok":
        return {"type": "tool-output-available", "output": call.result} | part
    return {"type": "tool-output-error", "errorText": str(call.result.get("error") or write_json(call.result))} | part
