"""The request and response bodies of the chat API."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from sqlalchemy import Row

from taskchat.text import plain_text
from taskchat.timezones import TimezoneName
from taskchat.toolcalls.models import ToolCall

MAX_MESSAGE: Final = 4_000
"""Characters of one message at most."""

MAX_TITLE: Final = 200
"""Characters of a conversation's title at most."""


def _parse_uuid(value: Any, parse: ValidatorFunctionWrapHandler) -> Any:
    try:
        return parse(value)
    except ValidationError:  # its text quotes the value
        raise ValueError("not a UUID") from None


MessageText = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_MESSAGE), plain_text(MAX_MESSAGE)
]
"""The type of a person's message, in every protocol."""


class ChatRequest(BaseModel):
    """One message of a person."""

    model_config = ConfigDict(extra="forbid")

    message: MessageText = Field(description="The person's words.")
    conversation_id: Annotated[UUID, WrapValidator(_parse_uuid)] | None = Field(
        default=None, description="The conversation to go on with. Without it, a new one begins."
    )
    timezone: TimezoneName | None = Field(
        default=None, description="IANA name, for words such as today. The default is UTC."
    )


class ToolCallView(BaseModel):
    """One tool call of the turn, also a failed one. `arguments` are the model's."""

    model_config = ConfigDict(from_attributes=True)

    call_id: str = Field(description="The model's id of the call, unique in its turn.")
    tool: str = Field(description="The tool's name.")
    arguments: dict[str, Any] = Field(description="As the model wrote them.")
    outcome: Literal["ok", "error"] = Field(description="After `error` the tool has changed nothing.")
    result: dict[str, Any] = Field(description="What the tool returned, or an `error` that says why it failed.")
    duration_ms: float = Field(description="Milliseconds that the tool took.")


class ChatResponse(BaseModel):
    """The agent's reply, with every tool call of the turn."""

    conversation_id: UUID = Field(description="Names the conversation in the next request.")
    turn_id: UUID = Field(description="Names this turn, as in the log lines.")
    response: str = Field(description="The agent's reply, which may be Markdown.")
    tool_calls: list[ToolCallView] = Field(description="The calls of the turn, in their order.")


class ConversationView(BaseModel):
    """A conversation. `updated_at` is its last activity, and `running` says that a turn is under way."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    title: str
    created_at: datetime
    updated_at: datetime
    running: bool


class ConversationPage(BaseModel):
    """Conversations by last activity, newest first. `next_cursor` asks for the next page, and is null on the last."""

    conversations: list[ConversationView]
    next_cursor: str | None


class TurnView(BaseModel):
    """A turn. `interrupted` means that no reply came: the same request with its Idempotency-Key goes on from there."""

    turn_id: UUID
    status: Literal["done", "running", "interrupted"]
    message: str
    response: str | None
    tool_calls: list[ToolCallView]
    created_at: datetime
    finished_at: datetime | None


class ConversationWithTurns(ConversationView):
    """A conversation with its turns, newest first. `next_cursor` leads to older ones, and is null if there are none."""

    turns: list[TurnView]
    next_cursor: str | None


class Renaming(BaseModel):
    """The new title of a conversation."""

    model_config = ConfigDict(extra="forbid")

    title: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_TITLE), plain_text(MAX_TITLE)
    ] = Field(description="Counted without spaces at its ends.")


def view_calls(calls: Sequence[ToolCall | Row[Any]]) -> list[ToolCallView]:
    return [ToolCallView.model_validate(call) for call in calls]


class Health(BaseModel):
    """The answer of a process that works."""

    status: Literal["ok"]


class Fault(BaseModel):
    """A field at fault and the reason, without the field's value."""

    field: str
    message: str
