"""Define the events of a turn, in the order of their list: accepted, then calls and text, then finished or failed."""

from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import UUID

from chat.schemas import ChatResponse, ToolCallView
from taskchat.errors import TaskchatError


@dataclass(frozen=True, slots=True)
class Accepted:
    """The message is stored, and the turn runs."""

    conversation_id: UUID
    """Names the conversation in the next request."""
    turn_id: UUID
    """Names this turn, as in the log lines."""
    replayed: bool
    """True if an earlier request did the turn."""


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """The agent makes a tool call."""

    call_id: str
    """The model's id of the call, unique in its turn."""
    tool: str
    """The tool's name."""
    arguments: dict[str, Any]
    """As the model wrote them."""


@dataclass(frozen=True, slots=True)
class ToolFinished:
    """A tool call is recorded, with its outcome and result."""

    call: ToolCallView


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of a message of the model. The pieces of the last message are the reply.

    A model may write a message before it makes calls. It is shown and not kept.
    """

    message: int
    """Number of the message in this list, from 0."""
    text: str
    """The next characters."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The turn is stored. It holds the body of the JSON answer."""

    response: ChatResponse


@dataclass(frozen=True, slots=True)
class Failed:
    """The turn was interrupted. It holds the problem that the JSON answer would be."""

    problem: TaskchatError


Event: TypeAlias = Accepted | ToolStarted | ToolFinished | Text | Finished | Failed
