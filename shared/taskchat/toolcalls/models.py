"""The table of tool calls. The owner comes first in its key: row-level security needs that for an index."""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ARRAY, CheckConstraint, Column, ColumnElement, Double, Index, any_, bindparam, case
from sqlmodel import Field, SQLModel

from taskchat.database.types import NOW, Keeper, SafeJson, SafeText, Timestamp, declare, expires, runtime_rights

_ITS_CONVERSATION: Final = Keeper("conversation", (("user_id", "user_id"), ("conversation_id", "id")))
"""A turn of it may be interrupted, and must never make the call again."""


class ToolCall(SQLModel, table=True):
    """One tool call and how it ended, committed together with its effect."""

    __tablename__ = "tool_call"
    __table_args__ = (
        CheckConstraint("door in ('chat', 'mcp')", name="tool_call_door_check"),
        CheckConstraint("outcome in ('ok', 'error')", name="tool_call_outcome_check"),
        Index("tool_call_created_idx", "created_at", postgresql_using="brin"),
        declare(
            runtime_rights("select, insert, delete, update (tool, arguments, result)"),
            expires("created_at", keeper=_ITS_CONVERSATION),
        ),
    )

    user_id: str = Field(sa_type=SafeText, primary_key=True)
    turn_id: UUID = Field(primary_key=True)
    call_id: str = Field(sa_type=SafeText, primary_key=True)
    position: int
    """The call's place in its turn, from 0."""
    conversation_id: UUID | None = None
    """None for a call of an MCP client. The conversation may have been deleted since."""
    request_id: str | None = Field(default=None, sa_type=SafeText)
    """API Gateway's id of the request. None for a call that was stored before there was this column."""
    door: str = Field(sa_type=SafeText)
    tool: str = Field(sa_type=SafeText)
    arguments: dict[str, Any] = Field(sa_type=SafeJson)
    outcome: str = Field(sa_type=SafeText)
    result: dict[str, Any] = Field(sa_type=SafeJson)
    duration_ms: float = Field(sa_column=Column(Double, nullable=False))
    created_at: datetime = Field(sa_column=Column(Timestamp, nullable=False, server_default=NOW))


TOOL_CALL: Final = SQLModel.metadata.tables["tool_call"]

UNKNOWN_TOOL: Final = "unknown"
"""Stands for a name that no tool has, where a person's texts go: a model made it up, perhaps of their words."""


def without_made_up_name(tool: ColumnElement[str]) -> ColumnElement[str]:
    """Return the tool's name if it is among the parameter `tool_names`, else UNKNOWN_TOOL."""
    known = bindparam("tool_names", type_=ARRAY(SafeText))
    return case((tool == any_(known), tool), else_=UNKNOWN_TOOL)
