"""Delete old rows of all persons, in batches: of each table whose metadata declares an Expiry.

The role of the connection may do nothing else (migrations/roles.py). Each batch is a transaction, so a run that ends
early loses no work: the next one goes on. A row that another transaction has locked is left to the next run.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Date,
    Engine,
    Interval,
    Select,
    Table,
    any_,
    bindparam,
    cast,
    delete,
    exists,
    func,
    literal_column,
    or_,
    select,
)
from sqlmodel import SQLModel

from taskchat.database.types import EXPIRY, Expiry
from taskchat.logs import log_unexpected

BATCH: Final = 2_000
PARENT_BATCH: Final = 20
"""Rows of a batch. The second is for a table whose rows take others with them: a conversation has many messages."""

BATCH_SECONDS: Final = 30.0
"""Seconds that a batch takes at most, with its commit. A run begins none when fewer are left."""

# Postgres's clock at the beginning of the transaction: an index can be searched for it.
_LIMIT: Final = func.now() - bindparam("age", type_=Interval)
_LIMIT_DAY: Final = cast(func.timezone("UTC", _LIMIT), Date)


@dataclass
class Run:
    """The outcome of a run."""

    deleted: dict[str, int] = field(default_factory=dict)
    """Rows by table. Rows that went with them are not counted."""
    unfinished: list[str] = field(default_factory=list)
    """Tables that may still hold old rows: the time was over."""
    failed: list[str] = field(default_factory=list)

    @property
    def is_finished(self) -> bool:
        return not self.unfinished and not self.failed


def expiring_tables() -> list[Table]:
    """Return the tables that declare an Expiry, among all that the process has imported."""
    return [table for table in SQLModel.metadata.sorted_tables if EXPIRY in table.info]


def delete_old_rows(engine: Engine, days: int, may_begin: Callable[[], bool]) -> Run:
    """Delete the rows that are older than `days`; none if that is 0. Begin a batch only while `may_begin` allows it.

    It logs what fails in one table, and goes on with the next.
    """
    run = Run()
    for table in expiring_tables() if days else ():
        try:
            _delete_from(table, engine, days, may_begin, run)
        except Exception as error:
            log_unexpected(error)
            run.failed.append(table.name)
    return run


def _delete_from(table: Table, engine: Engine, days: int, may_begin: Callable[[], bool], run: Run) -> None:
    statement, most = delete_batch(table), batch_size(table)
    run.deleted[table.name], count = 0, most
    while count == most:
        if not may_begin():
            run.unfinished.append(table.name)
            return
        with engine.begin() as connection:
            count = connection.execute(statement, {"age": timedelta(days=days), "most": most}).scalar_one()
        run.deleted[table.name] += count


def batch_size(table: Table) -> int:
    """Return the number of rows of one batch."""
    parents = {key.column.table for other in table.metadata.sorted_tables for key in other.foreign_keys}
    return PARENT_BATCH if table in parents else BATCH


def delete_batch(table: Table) -> Select[int]:
    """Return the statement that deletes at most `most` rows older than `age`, and returns how many it deleted.

    It finds rows by their place in the table, so that the role need not read a key: keys hold the ids of persons.
    """
    old = table.alias("old")
    conditions = _conditions(old, table.info[EXPIRY])
    chosen: Select[Any] = select(literal_column("old.ctid")).select_from(old).where(*conditions)
    locked = chosen.limit(bindparam("most")).with_for_update(skip_locked=True).scalar_subquery()
    place: ColumnElement[Any] = literal_column(f"{table.name}.ctid")
    gone = delete(table).where(place == any_(func.array(locked))).returning(literal_column("1")).cte("gone")
    return select(func.count()).select_from(gone)


def _conditions(row: Any, expiry: Expiry) -> list[ColumnElement[bool]]:
    """Return the conditions for an old row. They are of the same columns that the role may read."""
    columns = [row.c[name] for name in expiry.since]
    limits = [column < (_LIMIT_DAY if isinstance(column.type, Date) else _LIMIT) for column in columns]
    old = [or_(c.is_(None), limit) if c.nullable else limit for c, limit in zip(columns, limits, strict=True)]
    if expiry.keeper:
        keeper = SQLModel.metadata.tables[expiry.keeper.table]
        same = [keeper.c[theirs] == row.c[own] for own, theirs in expiry.keeper.columns]
        old.append(~exists(select(literal_column("1")).where(*same)))  # `*` would read every column
    return old + ([row.c[expiry.when]] if expiry.when else [])
