"""Run one step in a process that has one more table than the program: `python -m tests.one_more_table STEP`."""

import asyncio
import json
import sys
from uuid import uuid4

from alembic.config import main
from sqlalchemy import create_engine
from sqlmodel import Field, SQLModel

import taskchat.conversations.models
import taskchat.limits
import taskchat.tasks  # noqa: F401  (the program's own tables)
from taskchat.database.engine import UnsafeRole
from taskchat.database.transaction import Database
from taskchat.database.types import SafeText, runtime_rights
from taskchat.personal_data.erasure import Erasure
from taskchat.personal_data.export import read_page
from taskchat.settings import MigrationSettings, load


class Receipt(SQLModel, table=True):
    """A table of another domain. It names its rights, and nothing else about its security."""

    __table_args__ = (runtime_rights("select, insert, update, delete"),)

    user_id: str = Field(sa_type=SafeText, primary_key=True)
    id: str = Field(sa_type=SafeText, primary_key=True, default_factory=lambda: uuid4().hex)
    amount: int


def migrate() -> None:
    """Create the table as its migration would, without a policy, and run the rest of `make migrate`."""
    url = load(MigrationSettings).migration_database_url.get_secret_value()
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        SQLModel.metadata.tables["receipt"].create(connection)
    main(["upgrade", "head"])


def export_and_erase() -> None:
    """Print the rows of the table in Alice's export, then erase her."""
    database = Database(load(MigrationSettings).database_url.get_secret_value)
    try:
        with database.transaction("alice") as session:
            page = read_page(session, "alice", None, 10)
        asyncio.run(Erasure(database, "alice", ()).run())
        print(json.dumps(json.loads(page)["tables"]["receipt"]))  # noqa: T201  (the test reads it)
    finally:
        database.close()


def connect() -> None:
    """Print whether the program would serve as the role in DATABASE_URL."""
    database = Database(load(MigrationSettings).database_url.get_secret_value)
    try:
        database.prepare_statements(())
        print("served")  # noqa: T201  (the test reads it)
    except UnsafeRole:
        print("refused")  # noqa: T201  (the test reads it)
    finally:
        database.close()


if __name__ == "__main__":
    {"migrate": migrate, "connect": connect, "export_and_erase": export_and_erase}[sys.argv[1]]()
