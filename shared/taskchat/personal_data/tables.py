"""Find the tables that hold rows of persons. The engine's and the domain's are found alike, by the schema itself."""

from typing import Final

from sqlalchemy import Column, Table
from sqlmodel import SQLModel

OWNER: Final = "user_id"
"""The column with which each row of a person begins."""


def personal_tables() -> list[Table]:
    """Return each table with a person's rows, in a fixed order: a table comes after those that it refers to."""
    return [table for table in SQLModel.metadata.sorted_tables if OWNER in table.columns]


def key_columns(table: Table) -> list[Column[object]]:
    """Return the columns by which a row is found among those of its owner."""
    return [column for column in table.primary_key.columns if column.name != OWNER]


def own_columns(table: Table) -> list[Column[object]]:
    """Return the columns of a row, without its owner."""
    return [column for column in table.columns if column.name != OWNER]
