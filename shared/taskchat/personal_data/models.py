"""The table of erased calls: what an audit needs of them, under a pseudonym that leads to no person."""

from datetime import date
from typing import Final
from uuid import UUID

from sqlalchemy import BigInteger, Column, Identity, Index
from sqlmodel import Field, SQLModel

from taskchat.database.types import SafeText, declare, expires, runtime_rights


class ErasedCall(SQLModel, table=True):
    """A tool call of a person who was erased. It has no id, text or time by which a log line could be found."""

    __tablename__ = "erased_call"
    __table_args__ = (
        Index("erased_call_made_idx", "made_on"),
        declare(runtime_rights("insert"), expires("made_on")),
    )

    pseudonym: UUID = Field(primary_key=True)
    """Random, the same for all calls that one request erased. It is stored nowhere else."""
    id: int | None = Field(default=None, sa_column=Column(BigInteger, Identity(always=True), primary_key=True))
    door: str = Field(sa_type=SafeText)
    tool: str = Field(sa_type=SafeText)
    """The name of a tool. A name that a model made up is not kept: it could be the person's text."""
    outcome: str = Field(sa_type=SafeText)
    made_on: date


ERASED_CALL: Final = SQLModel.metadata.tables["erased_call"]
