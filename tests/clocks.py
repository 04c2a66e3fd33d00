"""Give the database a clock that a test can set.

The program reads the time with `clock_timestamp()`, without a schema. A function of that name in the schema `skewed`
comes before Postgres's own one in the search path of the program's role, so the program runs unchanged. The search path
takes effect in sessions that begin later. A change of the time takes effect at once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import sql

from dev.postgres import APP
from tests.db_assertions import Rows

_FUNCTION = sql.SQL("""
create or replace function skewed.clock_timestamp() returns timestamptz volatile language sql
as $$ select pg_catalog.clock_timestamp() + interval {} $$
""")
_STOPPED = sql.SQL("""
create or replace function skewed.clock_timestamp() returns timestamptz volatile language sql
as $$ select timestamptz {} $$
""")
_LOOK_THERE_FIRST = sql.SQL("alter role {} in database {} set search_path = skewed, pg_catalog, public, pg_temp")
_LOOK_AS_BEFORE = sql.SQL("alter role {} in database {} reset search_path")


@dataclass
class DatabaseClock:
    """Set and read the time that Postgres gives to the program."""

    rows: Rows
    """A connection of the superuser, which reads the real time."""

    def differ_by(self, offset: timedelta) -> None:
        """Set the clock ahead of the program's clock by this offset, or behind it."""
        self.rows.execute(_FUNCTION.format(sql.Literal(f"{offset.total_seconds()} seconds")))

    def show(self, moment: datetime) -> None:
        """Set the clock to this moment. It runs on from there."""
        self.differ_by(moment - datetime.now(UTC))

    def stop_at(self, moment: datetime) -> None:
        """Let the clock show this moment, and stand still."""
        self.rows.execute(_STOPPED.format(sql.Literal(moment.isoformat())))

    def advance(self, time: timedelta) -> None:
        """Set the clock forward by this time."""
        self.show(self.now() + time)

    def now(self) -> datetime:
        """Return the clock's time."""
        (moment,) = self._row("select skewed.clock_timestamp() as now").values()
        assert isinstance(moment, datetime)
        return moment

    def lease_left(self, user_id: str) -> float:
        """Return the seconds left, by this clock, of the lease on the user's only conversation."""
        held = self._row(
            "select extract(epoch from lease_until - skewed.clock_timestamp())::float as seconds"
            " from conversation where user_id = %s",
            user_id,
        )
        return float(held["seconds"] or 0)

    def _row(self, query: str, *values: str) -> dict[str, Any]:
        found = self.rows.execute(query, values).fetchone()  # type: ignore[call-overload]  # only of literals here
        assert found is not None
        return dict(found)


@contextmanager
def running(rows: Rows) -> Iterator[DatabaseClock]:
    """Give the database such a clock until the end of the context. Earlier sessions keep the real time."""
    names = sql.Identifier(APP), sql.Identifier(rows.info.dbname)
    rows.execute("create schema skewed")
    rows.execute("grant usage on schema skewed to public")
    clock = DatabaseClock(rows)
    clock.differ_by(timedelta())
    rows.execute(_LOOK_THERE_FIRST.format(*names))
    try:
        yield clock
    finally:
        rows.execute(_LOOK_AS_BEFORE.format(*names))
        rows.execute("drop schema skewed cascade")
