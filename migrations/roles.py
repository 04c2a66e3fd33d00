"""Make the runtime role in SQL (Neon's console would give it BYPASSRLS), with no more rights than taskchat uses."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text
from sqlmodel import SQLModel

from taskchat.database.engine import UnsafeRole
from taskchat.database.types import RIGHTS
from taskchat.postgres_url import parse
from taskchat.settings import SettingsError

ALL_RIGHTS: Final = "select, insert, update, delete"
"""The rights on a table that does not name fewer."""

LIMITS: Final = {
    # No client waits for a session that exceeds these: the whole request has 29 seconds.
    "statement_timeout": "5s",
    "lock_timeout": "2s",
    "idle_in_transaction_session_timeout": "10s",
}

_IS_PRIVILEGED: Final = """
select rolname = current_user or rolcreaterole or rolcreatedb or rolreplication or exists (
    select from pg_roles b where (b.rolsuper or b.rolbypassrls) and pg_has_role(r.oid, b.oid, 'member')
) as is_privileged from pg_roles r where rolname = :name
"""

_IS_OPEN: Final = """
select has_schema_privilege('public', 'public', 'create') or has_schema_privilege(:name, 'public', 'create')
"""
"""In the first condition 'public' is every role, then it is the schema."""


class OpenSchema(SettingsError):
    """Raised when others than the owner may create in `public`: a function of theirs could replace one of ours."""


@dataclass(frozen=True)
class Role:
    """The role that DATABASE_URL names, with its password."""

    name: str
    password: str


def read_role(url: str) -> Role:
    """Return the role in a libpq URL. Raises ValueError when the URL has no role or no password."""
    parsed = parse(url)
    if not parsed.password:
        raise ValueError("DATABASE_URL has no password for the role to create")
    return Role(parsed.user, parsed.password)


def make_role(connection: Connection, role: Role) -> str:
    """Create the role if it does not exist, and return what was done. Never change an existing role's password.

    Raises UnsafeRole.
    """
    found = connection.execute(text(_IS_PRIVILEGED), {"name": role.name}).one_or_none()
    if found is None:
        _execute(connection, "create role %I login nobypassrls password %L", role.name, role.password)
    elif found.is_privileged:
        raise UnsafeRole(
            f"{role.name} can bypass row-level security, or has rights of an administrator: "
            "name a role in DATABASE_URL that does not exist yet"
        )
    for setting, value in LIMITS.items():
        _execute(connection, f"alter role %I set {setting} = %L", role.name, value)
    # pg_temp last: else a temporary table would hide ours from the next client that gets the session from a pooler.
    _execute(connection, "alter role %I set search_path = public, pg_temp", role.name)
    return f"role {role.name} " + ("was made." if found is None else "existed; its password was not changed.")


def grant_rights(connection: Connection, name: str) -> None:
    """Grant the role exactly the rights that each table names, and revoke all others on the tables."""
    _execute(connection, "grant usage on schema public to %I", name)
    for table in SQLModel.metadata.sorted_tables:
        rights = table.info.get(RIGHTS, ALL_RIGHTS)
        _execute(connection, f"revoke all on {table.name} from %I", name)
        _execute(connection, f"grant {rights} on {table.name} to %I", name)


def refuse_open_schema(connection: Connection, name: str) -> None:
    """Raise OpenSchema if every role, or this one, may create in `public`: Postgres 14 and older let every role."""
    if connection.execute(text(_IS_OPEN), {"name": name}).scalar_one():
        raise OpenSchema(
            f"Every role, or {name}, may create in the schema public, as before Postgres 15. As the schema's owner, "
            "revoke that from each role that has it: revoke create on schema public from public"
        )


def _execute(connection: Connection, template: str, *values: str) -> None:
    """Run a statement that takes no bind parameters: Postgres itself quotes the values."""
    names = {f"v{index}": value for index, value in enumerate(values)}
    arguments = "".join(f", cast(:{name} as text)" for name in names)
    statement = connection.execute(text(f"select format(:template{arguments})"), {"template": template, **names})
    connection.exec_driver_sql(statement.scalar_one())
