"""The table of tasks. The owner comes first in its key: row-level security needs that for an index."""

from datetime import date, datetime
from typing import Final

from sqlalchemy import BigInteger, Column, Identity, Index, false, text
from sqlmodel import Field, SQLModel

from taskchat.database.types import NOW, SafeText, Timestamp, expires


class Task(SQLModel, table=True):
    """One task of a person."""

    __table_args__ = (
        Index("task_completed_idx", "user_id", "completed", "id"),
        Index("task_due_idx", "user_id", "due_on", text("due_at nulls first"), "id"),
        Index("task_finished_idx", "updated_at", postgresql_where=text("completed")),
        expires("updated_at", when="completed"),
    )

    user_id: str = Field(sa_type=SafeText, primary_key=True)
    id: int | None = Field(default=None, sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    title: str = Field(sa_type=SafeText)
    description: str = Field(default="", sa_type=SafeText)
    completed: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    due_on: date | None = None
    """The day as the person meant it, in `due_zone` if there is a time of day. None for a task without a date."""
    due_at: datetime | None = Field(default=None, sa_type=Timestamp)
    """The instant. None for a task that is due on a day, which is the same day in every zone."""
    due_zone: str | None = Field(default=None, sa_type=SafeText)
    """The zone of `due_at`, an IANA name or an offset: nine o'clock stays nine when the clocks change."""
    created_at: datetime = Field(sa_column=Column(Timestamp, nullable=False, server_default=NOW))
    updated_at: datetime = Field(sa_column=Column(Timestamp, nullable=False, server_default=NOW))


TASK: Final = SQLModel.metadata.tables["task"]
