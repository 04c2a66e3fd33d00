"""The table of tasks. The owner comes first in its key: row-level security needs that for an index."""

from datetime import datetime
from typing import Final

from sqlalchemy import BigInteger, Column, Identity, Index, false
from sqlmodel import Field, SQLModel

from taskchat.database.types import NOW, SafeText, Timestamp


class Task(SQLModel, table=True):
    """One task of a person."""

    __table_args__ = (Index("task_completed_idx", "user_id", "completed", "id"),)

    user_id: str = Field(sa_type=SafeText, primary_key=True)
    id: int | None = Field(default=None, sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    title: str = Field(sa_type=SafeText)
    description: str = Field(default="", sa_type=SafeText)
    completed: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    created_at: datetime = Field(sa_column=Column(Timestamp, nullable=False, server_default=NOW))
    updated_at: datetime = Field(sa_column=Column(Timestamp, nullable=False, server_default=NOW))


TASK: Final = SQLModel.metadata.tables["task"]
