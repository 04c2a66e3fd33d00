"""Row-level security as the tables have it: closed to everybody but a row's owner."""

from typing import Final

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
