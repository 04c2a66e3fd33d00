"""Secure tables with row-level security: a row is visible to its owner only."""

from typing import Final

from sqlalchemy import Connection, text
from sqlmodel import SQLModel

# Forced, so that it binds the tables' owner too. After its first use on a connection the setting reads '', so nullif
# keeps the policy closed. The select around it makes Postgres read it once per statement, and use the index.
_OWNER_ONLY: Final = """
alter table {table} enable row level security;
alter table {table} force row level security;
create policy owner_only on {table}
    using (user_id = (select nullif(current_setting('app.user_id', true), '')))
    with check (user_id = (select nullif(current_setting('app.user_id', true), '')));
"""


def owner_only(table: str) -> str:
    """Return the statements that secure the table."""
    return _OWNER_ONLY.format(table=table)


def split(statements: str) -> list[str]:
    """Return the statements one by one, for the driver. None of them holds a semicolon inside."""
    return [statement for statement in statements.split(";") if statement.strip()]


_UNSECURED: Final = """
select relname from pg_class
where relname = any(:tables) and relkind = 'r' and relnamespace = 'public'::regnamespace
and not (relrowsecurity and relforcerowsecurity)
"""


def secure_tables(connection: Connection) -> None:
    """Secure each table of the program that no migration has secured."""
    tables = list(SQLModel.metadata.tables)
    for name in connection.execute(text(_UNSECURED), {"tables": tables}).scalars().all():
        for statement in split(owner_only(name)):
            connection.exec_driver_sql(statement)
