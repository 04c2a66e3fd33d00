"""Speak AG-UI 1.0: read a run's input, and write a turn's events with the protocol's own package."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from chat.schemas import ChatResponse, MessageText, ToolCallView
from chat.stream.asked import Asked, Key, conversation_id_of
from chat.stream.client_messages import ClientMessage, join_texts, last_user_message
from chat.stream.encoding import explain, write_json
from chat.stream.events import Accepted, Event, Failed, Finished, Text, ToolFinished, ToolStarted
from taskchat.conversations.turns import Request
from taskchat.text import make_storable
from taskchat.timezones import TimezoneName

if TYPE_CHECKING:
    from ag_ui.core import BaseEvent


def _text_of(content: Any) -> Any:
    return content if isinstance(content, str) else join_texts(content)


def _refuse_any(values: Any) -> Any:
    if values:
        raise ValueError("must be empty: the server has neither client-side tools nor interrupts")
    return values


def _object_only(value: Any) -> Any:
    """Return an object as it is, and None for another value: the protocol leaves the type to the application."""
    return value if isinstance(value, dict) else None


_NoneAllowed = Annotated[list[Any] | None, BeforeValidator(_refuse_any), Field(json_schema_extra={"maxItems": 0})]


class AgUiUserMessage(BaseModel):
    """The message of the person that the run answers."""

    content: Annotated[MessageText, BeforeValidator(_text_of)]


class AgUiProps(BaseModel):
    """The properties of the application that are read. A value that is no object is ignored."""

    model_config = ConfigDict(json_schema_extra=lambda schema: schema.pop("type"))

    timezone: TimezoneName | None = None


class AgUiRequest(BaseModel):
    """A run's input. `runId` is the idempotency key, and `threadId` the conversation. Other fields are ignored."""

    thread_id: Key = Field(alias="threadId")
    run_id: Key = Field(alias="runId")
    messages: Annotated[
        AgUiUserMessage, BeforeValidator(last_user_message, json_schema_input_type=list[ClientMessage])
    ] = Field(description="Only the last message of the role `user` is read: its text, 1 to 4,000 characters.")
    tools: _NoneAllowed = None
    resume: _NoneAllowed = None
    forwarded_props: Annotated[AgUiProps | None, BeforeValidator(_object_only, json_schema_input_type=AgUiProps)] = (
        Field(default=None, alias="forwardedProps")
    )

    def asked(self, user_id: str) -> Asked:
        """Return the turn that this user asks for."""
        timezone = self.forwarded_props.timezone if self.forwarded_props else None
        conversation_id = conversation_id_of(user_id, self.thread_id)
        request = Request(self.messages.content, conversation_id, timezone, makes_conversation=True)
        return Asked(self.run_id, request, partial(AgUiEncoder, self.thread_id, self.run_id))


class AgUiEncoder:
    """Write the events of one run."""

    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, thread_id: str, run_id: str) -> None:
        """Begin a run, under the ids of the client."""
        # Imported here, because it takes about 0.1 s of CPU: a process without AG-UI requests does not pay for it.
        from ag_ui import core
        from ag_ui.encoder import EventEncoder

        self._core = core
        self._write = EventEncoder().encode
        self._thread_id, self._run_id = thread_id, run_id
        self._turn_id: UUID | None = None
        self._open: int | None = None

    def encode(self, event: Event) -> Iterable[bytes]:
        """Return the lines to send for the event."""
        return [self._write(each).encode() for each in self._translate(event)]

    def _translate(self, event: Event) -> "Iterator[BaseEvent]":
        if self._open is not None and not (isinstance(event, Text) and event.message == self._open):
            yield self._core.TextMessageEndEvent(message_id=self._message_id(self._open))
            self._open = None
        match event:
            case Accepted():
                yield self._start(event)
            case ToolStarted():
                yield from self._call(event)
            case ToolFinished(call):
                yield self._result(call)
            case Text():
                yield from self._text(event)
            case Finished(response):
                yield self._finish(response)
            case Failed(problem):
                yield self._core.RunErrorEvent(message=explain(problem), code=problem.slug)

    def _start(self, event: Accepted) -> "BaseEvent":
        self._turn_id = event.turn_id
        shown = {
            "conversationId": str(event.conversation_id),
            "turnId": str(event.turn_id),
            "replayed": event.replayed,
        }
        return self._core.RunStartedEvent(
            thread_id=self._thread_id,
            run_id=self._run_id,
            protocol_version=self._core.PROTOCOL_VERSION,
            metadata=shown,
        )

    def _finish(self, response: ChatResponse) -> "BaseEvent":
        return self._core.RunFinishedEvent(
            thread_id=self._thread_id,
            run_id=self._run_id,
            result=make_storable(response.model_dump()),
            outcome=self._core.RunFinishedSuccessOutcome(),
        )

    def _call(self, event: ToolStarted) -> "Iterator[BaseEvent]":
        call_id, tool = make_storable([event.call_id, event.tool])
        yield self._core.ToolCallStartEvent(tool_call_id=call_id, tool_call_name=tool)
        yield self._core.ToolCallArgsEvent(tool_call_id=call_id, delta=write_json(event.arguments))
        yield self._core.ToolCallEndEvent(tool_call_id=call_id)

    def _result(self, call: ToolCallView) -> "BaseEvent":
        """Return a call's result. The protocol has no field for a failure, so the event's metadata has the outcome."""
        call_id = make_storable(call.call_id)
        return self._core.ToolCallResultEvent(
            message_id=f"{self._turn_id}-result-{call_id}",
            tool_call_id=call_id,
            content=write_json(call.result),
            metadata={"outcome": call.outcome},
        )

    def _text(self, event: Text) -> "Iterator[BaseEvent]":
        message_id = self._message_id(event.message)
        if self._open is None:
            self._open = event.message
            yield self._core.TextMessageStartEvent(message_id=message_id, role="assistant")
        yield self._core.TextMessageContentEvent(message_id=message_id, delta=make_storable(event.text))

    def _message_id(self, number: int) -> str:
        return f"{self._turn_id}-text-{number}"
