"""The tables of conversations. The owner comes first in every key: row-level security needs that for an index."""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Integer, UniqueConstraint, and_, bindparam, select
from sqlmodel import Field, ForeignKeyConstraint, SQLModel

from taskchat.database.types import NOW, SafeJson, SafeText, Timestamp, declare, expires, runtime_rights


class Conversation(SQLModel, table=True):
    """A thread of turns, and the lease of the one turn that may be running in it."""

    __table_args__ = (
        Index("conversation_activity_idx", "user_id", "updated_at", "id"),
        Index("conversation_updated_idx", "updated_at"),
        declare(runtime_rights("select, insert, update, delete"), expires("updated_at", "lease_until")),
    )

    user_id: str = Field(sa_type=SafeText, primary_key=True)
    id: UUID = Field(primary_key=True)
    title: str = Field(sa_type=SafeText)
    turn_id: UUID | None = None
    """The turn that holds the lease."""
    lease_until: datetime | None = Field(default=None, sa_type=Timestamp)
    fence: int = Field(default=0, sa_column=Column(BigInteger, nullable=False, server_default="0"))
    """The fencing token. It grows with each lease: a turn with an older number has lost the lease."""
    next_position: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    history_start: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    """Position of the first message the model still reads. Moves rarely, so that prompt caches keep hitting."""
    created_at: datetime = Field(sa_column=Column(Timestamp, nullable=False, server_default=NOW))
    updated_at: datetime = Field(sa_column=Column(Timestamp, nullable=False, server_default=NOW))


class Message(SQLModel, table=True):
    """A user's message or the assistant's reply. A turn has at most one of each."""

    __table_args__ = (
        ForeignKeyConstraint(
            ["user_id", "conversation_id"], ["conversation.user_id", "conversation.id"], ondelete="CASCADE"
        ),
        UniqueConstraint("user_id", "turn_id", "role"),
        CheckConstraint("role in ('user', 'assistant')", name="message_role_check"),
        runtime_rights("select, insert, delete"),
    )

    user_id: str = Field(sa_type=SafeText, primary_key=True)
    conversation_id: UUID = Field(primary_key=True)
    position: int = Field(primary_key=True)
    turn_id: UUID
    role: str = Field(sa_type=SafeText)
    content: str = Field(sa_type=SafeText)
    created_at: datetime = Field(sa_column=Column(Timestamp, nullable=False, server_default=NOW))
    timezone: str | None = Field(default=None, sa_type=SafeText)
    """The user's time zone then. With created_at, the model can be shown the same text again."""
    request_hash: str | None = Field(default=None, sa_type=SafeText)
    """Hash of the request that began the turn: a key that comes back with another body is refused."""
    usage: dict[str, Any] | None = Field(default=None, sa_type=SafeJson)
    """Model and tokens of the assistant's message."""


CONVERSATION: Final = SQLModel.metadata.tables["conversation"]
MESSAGE: Final = SQLModel.metadata.tables["message"]
"""The same as tables, for statements that return rows: to make objects of rows would double the time."""

THIS_CONVERSATION: Final = and_(CONVERSATION.c.user_id == bindparam("of_user"), CONVERSATION.c.id == bindparam("of_id"))
"""The condition that finds a conversation by its owner and its id."""

THIS_TURN: Final = and_(MESSAGE.c.user_id == bindparam("of_user"), MESSAGE.c.turn_id == bindparam("of_turn"))

POSITION_OF_TURN: Final = select(MESSAGE.c.position).where(THIS_TURN, MESSAGE.c.role == "user").correlate(None)
"""The position of the turn's message, for a part of another statement."""
