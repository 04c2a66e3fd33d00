"""Write the row-level security of the tables: each row is open to its owner only."""

from typing import Final

from sqlalchemy import Connection, text
from sqlmodel import SQLModel

# `force` binds the table's owner too. The setting reads '' once a connection has used it: nullif makes that null, which
# matches no row. The `select` makes Postgres read the setting once per statement, so that it can use the index.
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
    """Split statements, for the driver sends them one by one. No statement may hold a semicolon of its own."""
    return [statement for statement in statements.split(";") if statement.strip()]


_UNSECURED: Final = """
select relname from pg_class
where relname = any(:tables) and relkind = 'r' and relnamespace = 'public'::regnamespace
and not (relrowsecurity and relforcerowsecurity)
"""


def secure_tables(connection: Connection) -> None:
    """Secure each of taskchat's tables that no migration has secured, so that no new table is ever open."""
    tables = list(SQLModel.metadata.tables)
    for name in connection.execute(text(_UNSECURED), {"tables": tables}).scalars().all():
        for statement in split(owner_only(name)):
            connection.exec_driver_sql(statement)
