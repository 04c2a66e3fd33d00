"""The tables. The owner comes first in every key: under row-level security a look-up needs that for its index."""

from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    Identity,
    Index,
    Integer,
    UniqueConstraint,
    false,
    text,
)
from sqlmodel import Field, ForeignKeyConstraint, SQLModel

from taskchat.db import SafeJson, SafeText, Timestamp

NOW = text("clock_timestamp()")


class Conversation(SQLModel, table=True):
    """A thread of turns, and the lease of the one turn that may be running in it."""

    user_id: str = Field(sa_type=SafeText, primary_key=True)
    id: UUID = Field(primary_key=True)
    title: str = Field(sa_type=SafeText)
    turn_id: UUID | None = None
    """The turn that holds the lease."""
    lease_until: datetime | None = Field(default=None, sa_type=Timestamp)
    fence: int = Field(default=0, sa_column=Column(BigInteger, nullable=False, server_default="0"))
    """Grows with each lease: who comes with an older number has lost it."""
    next_position: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    history_start: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    """Position of the first message the model still reads. Moves rarely, so that prompt caches keep hitting."""
    created_at: datetime = Field(sa_column=Column(Timestamp, nullable=False, server_default=NOW))
    updated_at: datetime = Field(sa_column=Column(Timestamp, nullable=False, server_default=NOW))


class Message(SQLModel, table=True):
    """What the person said, or what the assistant answered. A turn has at most one of each."""

    __table_args__ = (
        ForeignKeyConstraint(
            ["user_id", "conversation_id"], ["conversation.user_id", "conversation.id"], ondelete="CASCADE"
        ),
        UniqueConstraint("user_id", "turn_id", "role"),
        CheckConstraint("role in ('user', 'assistant')", name="message_role_check"),
    )

    user_id: str = Field(sa_type=SafeText, primary_key=True)
    conversation_id: UUID = Field(primary_key=True)
    position: int = Field(primary_key=True)
    turn_id: UUID
    role: str = Field(sa_type=SafeText)
    content: str = Field(sa_type=SafeText)
    created_at: datetime = Field(sa_column=Column(Timestamp, nullable=False, server_default=NOW))
    timezone: str | None = Field(default=None, sa_type=SafeText)
    """The person's zone when they said it: with created_at it lets the same words be shown to the model again."""
    request_hash: str | None = Field(default=None, sa_type=SafeText)
    """Of the request that began the turn: a key that comes back with another body is refused."""
    usage: dict[str, Any] | None = Field(default=None, sa_type=SafeJson)
    """Of the assistant's message: model and tokens."""


class ToolCall(SQLModel, table=True):
    """One tool call and how it ended, committed together with its effect."""

    __tablename__ = "tool_call"
    __table_args__ = (
        ForeignKeyConstraint(
            ["user_id", "conversation_id"], ["conversation.user_id", "conversation.id"], ondelete="CASCADE"
        ),
        CheckConstraint("door in ('chat', 'mcp')", name="tool_call_door_check"),
        CheckConstraint("outcome in ('ok', 'error')", name="tool_call_outcome_check"),
    )

    user_id: str = Field(sa_type=SafeText, primary_key=True)
    turn_id: UUID = Field(primary_key=True)
    call_id: str = Field(sa_type=SafeText, primary_key=True)
    position: int
    """The call's place in its turn, from 0."""
    conversation_id: UUID | None = None
    """None for a call through the MCP door."""
    door: str = Field(sa_type=SafeText)
    tool: str = Field(sa_type=SafeText)
    arguments: dict[str, Any] = Field(sa_type=SafeJson)
    outcome: str = Field(sa_type=SafeText)
    result: dict[str, Any] = Field(sa_type=SafeJson)
    duration_ms: float = Field(sa_column=Column(Double, nullable=False))
    created_at: datetime = Field(sa_column=Column(Timestamp, nullable=False, server_default=NOW))


class Task(SQLModel, table=True):
    """Something a person wants done."""

    __table_args__ = (Index("task_completed_idx", "user_id", "completed", "id"),)

    user_id: str = Field(sa_type=SafeText, primary_key=True)
    id: int | None = Field(default=None, sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    title: str = Field(sa_type=SafeText)
    description: str = Field(default="", sa_type=SafeText)
    completed: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    created_at: datetime = Field(sa_column=Column(Timestamp, nullable=False, server_default=NOW))
    updated_at: datetime = Field(sa_column=Column(Timestamp, nullable=False, server_default=NOW))


class Allowance(SQLModel, table=True):
    """What a person has used of a door lately."""

    __table_args__ = (CheckConstraint("door in ('chat', 'mcp')", name="allowance_door_check"),)

    user_id: str = Field(sa_type=SafeText, primary_key=True)
    door: str = Field(sa_type=SafeText, primary_key=True)
    full_at: datetime = Field(sa_type=Timestamp)
    """When the person's bucket is full again if nothing more is taken from it: past for one that is full."""
    day: date
    """The day, by UTC, that `model_tokens` are of."""
    model_tokens: int = Field(sa_column=Column(BigInteger, nullable=False))
    """Input and output together, of all models."""


CONVERSATION: Final = SQLModel.metadata.tables["conversation"]
MESSAGE: Final = SQLModel.metadata.tables["message"]
TASK: Final = SQLModel.metadata.tables["task"]
TOOL_CALL: Final = SQLModel.metadata.tables["tool_call"]
ALLOWANCE: Final = SQLModel.metadata.tables["allowance"]
"""The same as tables, for statements that give rows: making objects of them would take as long as all else."""
