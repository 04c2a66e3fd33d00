"""Make and drop an index while requests write to its table. No transaction may hold these statements."""

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import op


def create_index(name: str, on: str) -> None:
    """Create the index on `table (columns)`. A build that failed left an invalid index, which this drops first."""
    with _outside_transaction():
        op.execute(f"drop index concurrently if exists {name}")
        op.execute(f"create index concurrently {name} on {on}")


def drop_index(name: str) -> None:
    """Drop the index, if it is there."""
    with _outside_transaction():
        op.execute(f"drop index concurrently if exists {name}")


@contextmanager
def _outside_transaction() -> Iterator[None]:
    """Send each statement by itself. That is safe on a direct connection, and not through a pooler.

    Postgres waits in each statement for older transactions, and nobody waits behind it. So it may take its time.
    """
    with op.get_context().autocommit_block():
        wait = op.get_bind().exec_driver_sql("show lock_timeout").scalar_one()
        op.execute("commit")  # the driver began a transaction before the first statement
        op.execute("set lock_timeout = 0")
        yield
        op.execute(f"set lock_timeout = '{wait}'")
