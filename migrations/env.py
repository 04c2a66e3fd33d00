"""Bring the schema up to date as its owner, then make the roles: in one transaction, one run at a time."""

from alembic import context
from alembic.util import CommandError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlmodel import SQLModel

from migrations.policies import secure_tables
from migrations.roles import make_auditor_role, make_retention_role, make_runtime_role, read_role
from taskchat import limits
from taskchat.conversations import models as conversations
from taskchat.database.engine import create_engine_for
from taskchat.personal_data import models as personal_data
from taskchat.settings import MigrationSettings, SettingsError, load
from taskchat.tasks import toolset

_WITH_TABLES = (conversations, limits, personal_data, toolset)  # their imports fill the metadata with every table
config = context.config
_ONE_MIGRATION_AT_A_TIME = 8_250_411  # any constant: the key of an advisory lock

STATEMENT_SECONDS = 3600.0
"""The longest time for one statement: a migration of a large table takes longer than a request may."""


def migrate() -> None:
    """Run the Alembic command. Raises SettingsError, ValueError, or the error of the database."""
    settings = load(MigrationSettings)
    runtime = read_role("DATABASE_URL", settings.database_url.get_secret_value())
    retention_url = settings.retention_database_url
    retention = retention_url and read_role("RETENTION_DATABASE_URL", retention_url.get_secret_value())
    audit_url = settings.audit_database_url
    auditor = audit_url and read_role("AUDIT_DATABASE_URL", audit_url.get_secret_value())
    with create_engine_for(settings.migration_database_url.get_secret_value, STATEMENT_SECONDS).begin() as connection:
        connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": _ONE_MIGRATION_AT_A_TIME})
        context.configure(connection=connection, target_metadata=SQLModel.metadata, compare_server_default=True)
        context.run_migrations()
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
