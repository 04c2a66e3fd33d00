"""Make the roles in SQL (Neon's console would give them BYPASSRLS), with no more rights than taskchat uses."""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Table, text
from sqlmodel import SQLModel

from taskchat.database.engine import UnsafeRole
from taskchat.database.types import EXPIRY, RIGHTS, Expiry
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

RETENTION_LIMITS: Final = LIMITS | {
    "statement_timeout": "20s",  # less than retention.BATCH_SECONDS
    # The planner expects a scan to find a batch of old rows soon. In the last batch of a run none are left, and the
    # scan would read the whole table.
    "enable_seqscan": "off",
}

AUDIT_LIMITS: Final = LIMITS | {"statement_timeout": "20s", "default_transaction_read_only": "on"}

AUDITED: Final = {
    "tool_call": (
        *("user_id", "turn_id", "call_id", "position", "conversation_id", "request_id"),
        *("door", "tool", "outcome", "duration_ms", "created_at"),
    ),
    "erased_call": ("door", "tool", "outcome", "made_on"),
}
"""The columns that the auditor's role reads. None holds a person's text but the name of a tool that no tool has."""

_IS_PRIVILEGED: Final = """
select rolname = current_user or rolcreaterole or rolcreatedb or rolreplication or exists (
    select from pg_roles b where (b.rolsuper or b.rolbypassrls) and pg_has_role(r.oid, b.oid, 'member')
) as is_privileged from pg_roles r where rolname = :name
"""

_IS_OPEN: Final = """
select has_schema_privilege('public', 'public', 'create')
    or exists (select from pg_roles where rolname = :name and has_schema_privilege(oid, 'public', 'create'))
"""
"""In the first condition 'public' is every role, then it is the schema."""


class OpenSchema(SettingsError):
    """Raised when others than the owner may create in `public`: a function of theirs could replace one of ours."""


@dataclass(frozen=True)
class Role:
    """A role that the URL in `variable` names, with its password."""

    variable: str
    name: str
    password: str


def read_role(variable: str, url: str) -> Role:
    """Return the role in a libpq URL. Raises ValueError when the URL has no role or no password."""
    parsed = parse(url)
    if not parsed.password:
        raise ValueError(f"{variable} has no password for the role to create")
    return Role(variable, parsed.user, parsed.password)


def make_runtime_role(connection: Connection, role: Role) -> str:
    """Make the role of the two APIs with its rights, and return what was done. Raises UnsafeRole or OpenSchema."""
    made = _make_role(connection, role, LIMITS)
    for table in SQLModel.metadata.sorted_tables:
        _grant(connection, table, role, table.info.get(RIGHTS, ALL_RIGHTS))
    _execute(connection, "grant select on alembic_version to %I", role.name)  # the APIs compare it with their own
    refuse_open_schema(connection, role.name)
    return made


def make_retention_role(connection: Connection, role: Role, runtime: Role) -> str:
    """Make the role that deletes old rows, and return what was done. Raises UnsafeRole or OpenSchema.

    On a table that declares an Expiry it reads the columns of that declaration and the place of a row, and deletes.
    Postgres locks rows only for a role that may update a column; the policies refuse each update.
    """
    _refuse_same(role, runtime)
    made = _make_role(connection, role, RETENTION_LIMITS)
    for table in SQLModel.metadata.sorted_tables:
        expiry = table.info.get(EXPIRY)
        _grant(connection, table, role, _rights_of_retention(table, expiry) if expiry else None)
        _open_to_retention(connection, table, role, expiry)
    refuse_open_schema(connection, role.name)
    return made


def make_auditor_role(connection: Connection, role: Role, *others: Role) -> str:
    """Make the role that reads which calls were made, and return what was done. Raises UnsafeRole or OpenSchema.

    It reads the rows of all persons, whatever user it names in `app.user_id`, and no column with a text.
    """
    for other in others:
        _refuse_same(role, other)
    made = _make_role(connection, role, AUDIT_LIMITS)
    for table in SQLModel.metadata.sorted_tables:
        columns = [name for name in AUDITED.get(table.name, ()) if name in table.columns]
        _grant(connection, table, role, f"select ({', '.join(columns)})" if columns else None)
        _set_policies(connection, table, [("audit", "PERMISSIVE", [role.name], "SELECT", "true", None)], bool(columns))
    refuse_open_schema(connection, role.name)
    return made


def _refuse_same(role: Role, other: Role) -> None:
    if role.name == other.name:
        raise UnsafeRole(f"{role.variable} and {other.variable} must not name the same role")


def _rights_of_retention(table: Table, expiry: Expiry) -> str:
    keepers = [found.info[EXPIRY].keeper for found in SQLModel.metadata.sorted_tables if EXPIRY in found.info]
    asked = [theirs for keeper in keepers if keeper and keeper.table == table.name for _, theirs in keeper.columns]
    columns = dict.fromkeys([*expiry.columns, *asked, "ctid"])
    return f"select ({', '.join(columns)}), update ({expiry.since[0]}), delete"


_Policy = tuple[str, str, list[str], str, str | None, str | None]
"""Name, kind, roles, verbs, condition of the rows and condition of new rows, as Postgres lists them."""

_POLICIES: Final = text("""
select policyname, permissive, roles::text[], cmd, qual, with_check from pg_policies
where schemaname = 'public' and tablename = :table and policyname = any(:names) order by 1
""")


def _open_to_retention(connection: Connection, table: Table, role: Role, expiry: Expiry | None) -> None:
    """Open the rows that may grow old to the role, and no others, whatever user it names in `app.user_id`."""
    condition = expiry and (expiry.when or "true")
    wanted: list[_Policy] = [
        ("retention", "PERMISSIVE", [role.name], "ALL", "true", None),
        ("retention_only", "RESTRICTIVE", [role.name], "ALL", condition, "false"),
    ]
    _set_policies(connection, table, wanted, expiry is not None)


def _set_policies(connection: Connection, table: Table, wanted: list[_Policy], is_open: bool) -> None:
    """Make the policies, or drop those of these names if the table is not open.

    Policies that are right stay as they are: to replace them, Postgres waits for every transaction on the table.
    """
    names = [name for name, *_ in wanted]
    if connection.execute(_POLICIES, {"table": table.name, "names": names}).fetchall() == (wanted if is_open else []):
        return
    for name, kind, (role,), verbs, rows, check in wanted:
        _execute(connection, f"drop policy if exists {name} on {table.name}")
        if is_open:
            with_check = f" with check ({check})" if check else ""
            statement = f"create policy {name} on {table.name} as {kind} for {verbs} to %I using ({rows}){with_check}"
            _execute(connection, statement, role)


def _make_role(connection: Connection, role: Role, limits: dict[str, str]) -> str:
    """Create the role if it does not exist, and return what was done. Never change an existing role's password.

    Raises UnsafeRole.
    """
    found = connection.execute(text(_IS_PRIVILEGED), {"name": role.name}).one_or_none()
    if found is None:
        _execute(connection, "create role %I login nobypassrls password %L", role.name, role.password)
    elif found.is_privileged:
        raise UnsafeRole(
            f"{role.name} can bypass row-level security, or has rights of an administrator: "
            f"name a role in {role.variable} that does not exist yet"
        )
    for setting, value in limits.items():
        _execute(connection, f"alter role %I set {setting} = %L", role.name, value)
    # pg_temp last: else a temporary table would hide ours from the next client that gets the session from a pooler.
    _execute(connection, "alter role %I set search_path = public, pg_temp", role.name)
    _execute(connection, "grant usage on schema public to %I", role.name)
    return f"role {role.name} " + ("was made." if found is None else "existed; its password was not changed.")


def _grant(connection: Connection, table: Table, role: Role, rights: str | None) -> None:
    """Grant the role exactly these rights on the table, and revoke all others, those on columns too."""
    _execute(connection, f"revoke all on {table.name} from %I", role.name)
    if rights:
        _execute(connection, f"grant {rights} on {table.name} to %I", role.name)


def refuse_open_schema(connection: Connection, name: str | None = None) -> None:
    """Raise OpenSchema if every role, or this one, may create in `public`: Postgres 14 and older let every role."""
    if connection.execute(text(_IS_OPEN), {"name": name}).scalar_one():
        others = f"Every role, or {name}," if name else "Every role"
        raise OpenSchema(
            f"{others} may create in the schema public, as before Postgres 15. As the schema's owner, "
            "revoke that from each role that has it: revoke create on schema public from public"
        )


def _execute(connection: Connection, template: str, *values: str) -> None:
    """Run a statement that takes no bind parameters: Postgres itself quotes the values."""
    names = {f"v{index}": value for index, value in enumerate(values)}
    arguments = "".join(f", cast(:{name} as text)" for name in names)
    statement = connection.execute(text(f"select format(:template{arguments})"), {"template": template, **names})
    connection.exec_driver_sql(statement.scalar_one())
