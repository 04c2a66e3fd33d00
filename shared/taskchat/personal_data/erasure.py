"""Erase everything that is stored of a person. Of their tool calls, an audit keeps day, tool and outcome.

Each batch is a transaction of its own. So an erasure that is interrupted has erased what it has erased, and the same
request goes on from there.
"""

import asyncio
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid4

from sqlalchemy import (
    CTE,
    ColumnClause,
    Date,
    Select,
    Table,
    Uuid,
    any_,
    bindparam,
    cast,
    column,
    delete,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlmodel import Session

from taskchat import deadline
from taskchat.conversations.models import CONVERSATION
from taskchat.database.transaction import Database
from taskchat.errors import OutOfTime
from taskchat.personal_data.models import ERASED_CALL
from taskchat.personal_data.tables import OWNER, personal_tables
from taskchat.toolcalls.models import TOOL_CALL, without_made_up_name

BATCH: Final = 1_000
"""Rows to erase in one transaction at most: Postgres ends a statement of the runtime role after 5 s."""

_ROW: Final[ColumnClause[Any]] = column("ctid")
"""The place of a row in its table. It is read and used within one statement."""

_END_LEASES: Final = (
    update(CONVERSATION)
    .where(CONVERSATION.c.user_id == bindparam("of_user"), CONVERSATION.c.lease_until.is_not(None))
    .values(fence=CONVERSATION.c.fence + 1, turn_id=None, lease_until=None)
)


def end_leases(session: Session, user_id: str) -> None:
    """Take the lease from each running turn of the person, in the caller's transaction. The turn can write no more."""
    session.execute(_END_LEASES, {"of_user": user_id})


@dataclass
class Erasure:
    """The erasure of one person. It counts the rows that it has erased."""

    database: Database
    user_id: str
    tools: Collection[str]
    """The names of all tools."""
    pseudonym: UUID = field(default_factory=uuid4)
    """Random, and stored with the erased calls only: nothing leads from it to the person."""
    rows: Counter[str] = field(default_factory=Counter)

    async def run(self) -> None:
        """Erase all rows. Raises OutOfTime, DatabaseUnavailable or CommitOutcomeUnknown: run again then."""
        others = [table for table in reversed(personal_tables()) if table is not CONVERSATION]
        while any([await self._empty(table) for table in (*others, CONVERSATION)]):
            pass  # a request that was under way may have added rows meanwhile

    async def _empty(self, table: Table) -> int:
        """Erase the person's rows in the table. Return the number of rows found."""
        found = batch = self._erase_batch(table)
        while batch == BATCH:
            await asyncio.sleep(0)  # other requests to this process have their turn
            batch = self._erase_batch(table)
            found += batch
        return found

    def _erase_batch(self, table: Table) -> int:
        """Erase some rows. Return the number of rows found: another transaction may have changed some of them since."""
        if deadline.remaining() <= 0:
            raise OutOfTime
        known = {"tool_names": list(self.tools), "new_pseudonym": self.pseudonym} if table is TOOL_CALL else {}
        with self.database.transaction(self.user_id) as session:
            found, erased = session.execute(_erase_from(table), {"of_user": self.user_id, "most": BATCH, **known}).one()
        self.rows[table.name] += erased
        return int(found)


def _erase_from(table: Table) -> Select[Any]:
    """Return the statement that erases a batch of rows, and returns the number of rows that it found and erased."""
    rows = select(_ROW).select_from(table).where(table.c[OWNER] == bindparam("of_user"))
    found = rows.limit(bindparam("most")).cte("found")
    these = any_(func.array(select(found.c.ctid).scalar_subquery()))
    gone = delete(table).where(_ROW == these).returning(*_kept_of(table)).cte("gone")
    counted = select(_count(found), _count(gone))
    return counted.add_cte(_keep(gone)) if table is TOOL_CALL else counted


def _kept_of(table: Table) -> list[Any]:
    return [TOOL_CALL.c[name] for name in ("door", "tool", "outcome", "created_at")] if table is TOOL_CALL else [_ROW]


def _keep(gone: CTE) -> CTE:
    """Return the insert that keeps of the erased calls what an audit needs."""
    kept = {
        "pseudonym": bindparam("new_pseudonym", type_=Uuid),
        "door": gone.c.door,
        "tool": without_made_up_name(gone.c.tool),
        "outcome": gone.c.outcome,
        "made_on": cast(func.timezone("UTC", gone.c.created_at), Date),
    }
    return insert(ERASED_CALL).from_select(list(kept), select(*kept.values())).cte("kept")


def _count(rows: CTE) -> Any:
    return select(func.count(literal_column("*"))).select_from(rows).scalar_subquery()
