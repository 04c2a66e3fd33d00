"""Make and drop indexes while the table is in use: Postgres blocks no writer meanwhile."""

from typing import Final

from alembic import op
from sqlalchemy import text

_IS_BROKEN: Final = text("select 1 from pg_index where indexrelid = to_regclass(:name) and not indisvalid")


def create_index(name: str, on: str, *, unique: bool = False) -> None:
    """Create the index on `table (columns)`, unless it is there. Call nothing else in the migration.

    It cannot run in a transaction. If it fails, an invalid index stays, which the next run drops and makes again.
    """
    with op.get_context().autocommit_block():
        # Postgres waits here for transactions that began earlier. That blocks nobody, so it may take its time.
        op.execute("set lock_timeout = 0")
        if op.get_bind().execute(_IS_BROKEN, {"name": name}).first() is not None:
            op.execute(f"drop index concurrently {name}")
        op.execute(f"create {'unique ' if unique else ''}index concurrently if not exists {name} on {on}")
        op.execute("reset lock_timeout")


def drop_index(name: str) -> None:
    """Drop the index, if it is there. Call nothing else in the migration."""
    with op.get_context().autocommit_block():
        op.execute("set lock_timeout = 0")
        op.execute(f"drop index concurrently if exists {name}")
        op.execute("reset lock_timeout")
