"""Row-level security as the tables have it: closed to everybody but a row's owner."""

from typing import Final

from sqlalchemy import Connection, text
from sqlmodel import SQLModel

# Forced, so that the owner is bound too. The setting reads '' once it was used on a connection, hence nullif: closed
# when unset. Wrapped in a select, so that it is read once per statement and the index still serves.
_OWNER_ONLY: Final = """
alter table {table} enable row level security;
alter table {table} force row level security;
create policy owner_only on {table}
    using (user_id = (select nullif(current_setting('app.user_id', true), '')))
    with check (user_id = (select nullif(current_setting('app.user_id', true), '')));
"""


def owner_only(table: str) -> str:
    """The statements that close the table."""
    return _OWNER_ONLY.format(table=table)


def split(statements: str) -> list[str]:
    """The statements one by one, as the driver sends them. None holds a semicolon of its own."""
    return [statement for statement in statements.split(";") if statement.strip()]


_UNSECURED: Final = """
select relname from pg_class
where relname = any(:tables) and relkind = 'r' and relnamespace = 'public'::regnamespace
and not (relrowsecurity and relforcerowsecurity)
"""


def secure_tables(connection: Connection) -> None:
    """Close each table of the program that no migration has closed: a new table is closed the moment it exists."""
    tables = list(SQLModel.metadata.tables)
    for name in connection.execute(text(_UNSECURED), {"tables": tables}).scalars().all():
        for statement in split(owner_only(name)):
            connection.exec_driver_sql(statement)
