"""Bring the schema up to date as its owner, then make the roles: one transaction each, one run at a time."""

import time
from functools import partial
from typing import Any

import pg8000
from alembic import context
from alembic.util import CommandError
from pydantic import SecretStr
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError
from sqlmodel import SQLModel

from migrations.policies import secure_tables
from migrations.roles import (
    Role,
    make_auditor_role,
    make_retention_role,
    make_runtime_role,
    read_role,
    refuse_open_schema,
)
from taskchat import limits
from taskchat.conversations import models as conversations
from taskchat.database.engine import connect_arguments
from taskchat.personal_data import models as personal_data
from taskchat.postgres_url import parse
from taskchat.settings import MigrationSettings, SettingsError, load
from taskchat.tasks import toolset

_WITH_TABLES = (conversations, limits, personal_data, toolset)  # their imports fill the metadata with every table
config = context.config
_ONE_MIGRATION_AT_A_TIME = 8_250_411  # any constant: the key of an advisory lock

STATEMENT_SECONDS = 3600.0
"""The longest time for one statement: a migration of a large table takes longer than a request may."""

LOCK_MILLISECONDS = 400
"""The longest wait for a lock. All later statements on the table wait behind a migration that waits, and the runtime
role gives up after 2 s. A migration may wait for several tables, one after another, with the locks that it has."""

ATTEMPTS = 60
PAUSE_SECONDS = 2.0
"""A migration that did not get its lock is tried again so often, after such a pause."""

_LOCK_NOT_AVAILABLE = "55P03"


def migrate() -> None:
    """Run the Alembic command. Raises SettingsError, ValueError, or the error of the database.

    Each migration is a transaction of its own. What a run has done stays, and the next run goes on from there.
    """
    settings = load(MigrationSettings)
    runtime = read_role("DATABASE_URL", settings.database_url.get_secret_value())
    retention_url = settings.retention_database_url
    retention = retention_url and read_role("RETENTION_DATABASE_URL", retention_url.get_secret_value())
    audit_url = settings.audit_database_url
    auditor = audit_url and read_role("AUDIT_DATABASE_URL", audit_url.get_secret_value())
    engine = create_engine("postgresql+pg8000://", creator=partial(connect, settings.migration_database_url))
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with engine.connect() as connection:
                return migrate_on(connection, runtime, retention, auditor)
        except DBAPIError as error:
            if attempt == ATTEMPTS or _LOCK_NOT_AVAILABLE not in str(error.orig):
                raise
            config.print_stdout(f"A table is in use, trying again in {PAUSE_SECONDS:g} s ({attempt} of {ATTEMPTS}).")
        time.sleep(PAUSE_SECONDS)


def connect(url: SecretStr) -> Any:
    """Connect with the stock driver, and take the lock that one run has at a time: as long as its direct connection."""
    arguments = connect_arguments(parse(url.get_secret_value())) | {"timeout": STATEMENT_SECONDS}
    connection = pg8000.connect(**arguments)
    for _ in range(int(STATEMENT_SECONDS)):
        # To wait in one statement would hold a snapshot, for which `create index concurrently` of the other run waits.
        (is_ours,) = connection.execute_simple(f"select pg_try_advisory_lock({_ONE_MIGRATION_AT_A_TIME})").rows[0]
        if is_ours:
            connection.execute_simple(f"set lock_timeout = {LOCK_MILLISECONDS}")
            return connection
        time.sleep(1)
    raise TimeoutError("another migration has not ended")


def migrate_on(connection: Connection, runtime: Role, retention: Role | None, auditor: Role | None) -> None:
    """Run the migrations on a connection, then secure new tables and make the roles."""
    with connection.begin():
        refuse_open_schema(connection)  # before anything is made
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        compare_server_default=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()  # Alembic has begun a transaction to read the revision
    with connection.begin():
        if context.get_context().get_current_revision() == context.get_head_revision():
            secure_tables(connection)
            made = [make_runtime_role(connection, runtime)]
            if retention:
                made.append(make_retention_role(connection, retention, runtime))
            if auditor:
                made.append(make_auditor_role(connection, auditor, *filter(None, [runtime, retention])))
            config.print_stdout(f"The schema is at {context.get_head_revision()}; {' '.join(made)}")


try:
    migrate()
except (SettingsError, ValueError, DBAPIError, OSError) as error:
    raise CommandError((str(error) or type(error).__name__).splitlines()[0]) from error  # Alembic shows it as one line
