"""The table of tasks. The owner comes first in its key: row-level security needs that for an index."""

from datetime import date, datetime
from typing import Final

from sqlalchemy import BigInteger, Column, Date, Identity, Index, false, literal_column, text
from sqlmodel import Field, SQLModel

from taskchat.database.types import NOW, SafeText, Timestamp, expires

# `coalesce` would be shorter. Under row-level security, Postgres searches no index for it: it may leak. The texts are
# as Postgres writes them, so that `alembic check` compares them.
_DUE_ON: Final = """(
CASE
    WHEN due_on IS NULL THEN 'infinity'::date
    ELSE due_on
END)"""
_DUE_AT: Final = """(
CASE
    WHEN due_at IS NULL THEN '-infinity'::timestamp with time zone
    ELSE due_at
END)"""


class Task(SQLModel, table=True):
    """One task of a person."""

    __table_args__ = (
        Index("task_due_idx", "user_id", text(_DUE_ON), text(_DUE_AT), "id"),
        Index("task_state_idx", "user_id", "completed", text(_DUE_ON), text(_DUE_AT), "id"),
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


DUE_ON: Final = literal_column(_DUE_ON, Date)
"""The day in the indexes, where a task without a date comes last."""
DUE_AT: Final = literal_column(_DUE_AT, Timestamp)
"""The instant in the indexes, where a day comes before its instants."""

TASK: Final = SQLModel.metadata.tables["task"]
