"""Check the database: connection, role, schema, policies, rights and clock."""

import re
import ssl
import statistics
import time
from pathlib import Path
from typing import Any, Final

import pg8000  # type: ignore[import-untyped]
import psycopg
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlmodel import SQLModel

from migrations.roles import ALL_RIGHTS
from operations.checks.deployment import LOCAL_HOSTS, Deployment, Skipped, Wrong
from taskchat import limits as limits
from taskchat.conversations import models as conversations
from taskchat.database.engine import UnsafeRole, create_engine_for, refuse_unsafe_role
from taskchat.database.types import RIGHTS
from taskchat.personal_data import models as personal_data
from taskchat.tasks import toolset

_WITH_TABLES = (conversations, limits, personal_data, toolset)  # their imports fill the metadata with every table

MAX_CLOCK_DIFFERENCE: Final = 5.0
"""Seconds. A token may be 30 s from its time; leases and quotas use the database's clock alone."""

ROUNDTRIPS: Final = 9
REVISIONS: Final = "alembic_version"
_CONFIGURATION: Final = Path(__file__).parents[2] / "pyproject.toml"

MENDS: Final = {
    "tls": "trust the authority: Neon's certificate is public (sslrootcert=system); name a private one in sslrootcert",
    "login": "compare user and password with the role's: `alter role … password '…'`; docs/neon.md has the rules",
    "address": "compare the host with the connection string in Neon's console, and look if the project is suspended",
    "other": "compare user, password, database and sslmode; the server's log has the reason (08P01 is the pooler's)",
}


def check_connection(deployment: Deployment) -> str:
    """Connect as the runtime role, as a function does: with TLS, verified, within five seconds."""
    deployment.database("DATABASE_URL")
    connection = deployment.runtime = _connect(deployment, "DATABASE_URL")
    driver: Any = connection.connection.dbapi_connection
    version = connection.execute(text("show server_version")).scalar_one().split()[0]
    return f"Postgres {version} answers; login by {driver.auth.mechanism_name}"


def _connect(deployment: Deployment, name: str) -> Connection:
    engine = create_engine_for(lambda: deployment.values[name])
    try:
        connection = engine.connect()
    except (OSError, DBAPIError, pg8000.Error) as error:
        engine.dispose()
        raise _explain(name, error) from None
    deployment.opened.append(connection)
    return connection


def _explain(name: str, error: Exception) -> Wrong:
    cause = getattr(error, "orig", None) or error
    first = _first_cause(cause)
    if isinstance(first, ssl.SSLCertVerificationError):
        return Wrong(f"{name}: the server's certificate is not trusted", MENDS["tls"])
    fields = cause.args[0] if cause.args and isinstance(cause.args[0], dict) else {}
    code = str(fields.get("C", ""))
    if code.startswith("28"):
        return Wrong(f"{name}: Postgres refuses the login ({code})", MENDS["login"])
    if code:
        return Wrong(f"{name}: Postgres refuses the connection ({code})", MENDS["other"])
    return Wrong(f"{name}: no connection ({type(first).__name__})", MENDS["address"])


def _first_cause(error: BaseException) -> BaseException:
    while earlier := error.__cause__ or error.__context__:
        error = earlier
    return error


def _runtime(deployment: Deployment) -> Connection:
    if deployment.runtime is None:
        raise Skipped("the database does not answer")
    return deployment.runtime


def check_pooler(deployment: Deployment) -> str:
    """Tell a pooler from Postgres: behind a pooler, the session has another process than the connection was told of."""
    _runtime(deployment)
    host = deployment.database("DATABASE_URL").host
    if host.endswith(".neon.tech"):
        raise Skipped("Neon's own proxy hides the process: see the check `endpoint`")
    if _is_pooled(deployment.values["DATABASE_URL"]):
        return "a pooler answers"
    if host in LOCAL_HOSTS:
        raise Skipped("Postgres itself answers, on this machine")
    raise Wrong(
        "Postgres itself answers: each environment holds one of its connections",
        "put PgBouncer in transaction mode before it, and name that in DATABASE_URL",
    )


def _is_pooled(url: str) -> bool:
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
        row = connection.execute("select pg_backend_pid()").fetchone()
        return row != (connection.info.backend_pid,)


def check_migrations_endpoint(deployment: Deployment) -> str:
    """Connect as the owner, directly."""
    deployment.database("MIGRATION_DATABASE_URL")
    deployment.owner = _connect(deployment, "MIGRATION_DATABASE_URL")
    if not deployment.database("MIGRATION_DATABASE_URL").host.endswith(".neon.tech") and _is_pooled(
        deployment.values["MIGRATION_DATABASE_URL"]
    ):
        raise Wrong("MIGRATION_DATABASE_URL leads to a pooler", "name the direct endpoint: a migration needs a session")
    return "the owner reaches Postgres directly"


def check_role(deployment: Deployment) -> str:
    """Check that row-level security binds the runtime role."""
    connection = _runtime(deployment)
    try:
        refuse_unsafe_role(connection.connection.dbapi_connection)
    except UnsafeRole:
        raise Wrong(
            "row-level security does not bind the role: it reads every user's rows",
            "name a new role in DATABASE_URL and run `make migrate`, which makes it in SQL (docs/neon.md)",
        ) from None
    return "no superuser, no BYPASSRLS, no owner"


def check_schema(deployment: Deployment) -> str:
    """Compare the schema's revision with the newest one of this code."""
    _runtime(deployment)
    head = ScriptDirectory.from_config(Config(toml_file=_CONFIGURATION)).get_current_head()
    found = _revision(deployment)
    if found is None:
        raise Skipped("the runtime role may not read the revision: set MIGRATION_DATABASE_URL")
    if found != head:
        raise Wrong(
            f"the schema is at {found or 'no revision'}, and this code at {head}",
            "run `make migrate` before you deploy, or check out the release that runs",
        )
    return f"at {head}, as this code"


def _revision(deployment: Deployment) -> str | None:
    """Return the schema's revision, "" if no migration has run, or None if no role here may read it."""
    for connection in filter(None, (deployment.owner, _runtime(deployment))):
        exists, readable = connection.execute(
            text(
                "select to_regclass(:name) is not null,"
                " coalesce(has_table_privilege(to_regclass(:name)::oid, 'select'), false)"
            ),
            {"name": f"public.{REVISIONS}"},
        ).one()
        if not exists:
            return ""
        if readable:
            return str(connection.execute(text(f"select version_num from {REVISIONS}")).scalar() or "")  # noqa: S608  (a constant)
    return None


_OWNER: Final = "(user_id = ( SELECT NULLIF(current_setting('app.user_id'::text, true), ''::text) AS nullif))"
_BY_OWNER: Final = ("owner_only", "PERMISSIVE", "ALL", _OWNER, _OWNER)
_OTHERS: Final = {"erased_call": ("append_only", "PERMISSIVE", "INSERT", None, "true")}
"""Policies of the tables whose rows have no owner."""

_SECURITY: Final = text("""
select c.relname, c.relrowsecurity and c.relforcerowsecurity,
    p.policyname, p.permissive, p.cmd, replace(p.qual, '"', ''), replace(p.with_check, '"', '')
from pg_class c left join pg_policies p on p.tablename = c.relname and p.schemaname = 'public'
    and (p.roles @> '{public}' or current_user = any(p.roles))
where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and c.relname = any(:tables)
""")


def check_policies(deployment: Deployment) -> str:
    """Check that each table has the owner's policy, no other one for this role, and that it binds the owner too."""
    tables = list(SQLModel.metadata.tables)
    rows = _runtime(deployment).execute(_SECURITY, {"tables": tables}).fetchall()
    wanted = {(table, True, *_OTHERS.get(table, _BY_OWNER)) for table in tables}
    if wrong := sorted({str(row[0]) for row in wanted ^ {tuple(row) for row in rows}}):
        raise Wrong(
            f"the policies of {', '.join(wrong)} are not those of this release",
            "run `make migrate`; if that changes nothing, compare `\\d` of these tables with migrations/policies.py",
        )
    return f"forced, and those of this release, on {len(tables)} tables"


_RIGHTS: Final = text("""
select c.relname, p.name, has_table_privilege(c.oid, p.name), case when p.of_columns then
    (select string_agg(a.attname, ',' order by a.attname) from pg_attribute a
     where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and has_column_privilege(c.oid, a.attnum, p.name))
end
from pg_class c, (values ('select', true), ('insert', true), ('update', true), ('references', true),
    ('delete', false), ('truncate', false), ('trigger', false)) p (name, of_columns)
where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm') and c.relname <> :revisions
""")


def check_rights(deployment: Deployment) -> str:
    """Compare the runtime role's rights on each table with those that the tables declare."""
    connection = _runtime(deployment)
    held = set()
    for table, right, is_whole, columns in connection.execute(_RIGHTS, {"revisions": REVISIONS}):
        if is_whole or columns:
            held.add((table, right, None if is_whole else columns))
    if different := sorted({f"{right} on {table}" for table, right, _ in held ^ _declared()}):
        raise Wrong(
            f"other rights than declared: {', '.join(different)}", "run `make migrate`, which grants exactly these"
        )
    return "exactly those that the tables declare"


def _declared() -> set[tuple[str, str, str | None]]:
    found = set()
    for table in SQLModel.metadata.sorted_tables:
        for right, columns in re.findall(r"(\w+)(?: \(([^)]*)\))?", table.info.get(RIGHTS, ALL_RIGHTS)):
            found.add((table.name, right, ",".join(sorted(columns.split(", "))) if columns else None))
    return found


def check_retention_role(deployment: Deployment) -> str:
    """Check the role of the retention function, if there is one."""
    role = deployment.database("RETENTION_DATABASE_URL").user
    if role == deployment.database("DATABASE_URL").user:
        raise Wrong("it is the runtime role", "name a role of its own in RETENTION_DATABASE_URL (docs/retention.md)")
    connection = _connect(deployment, "RETENTION_DATABASE_URL")
    try:
        refuse_unsafe_role(connection.connection.dbapi_connection, "RETENTION_DATABASE_URL")
    except UnsafeRole:
        raise Wrong("row-level security does not bind it", "make it by `make migrate`, not in a console") from None
    policies = text("select count(*) from pg_policies where policyname = 'retention' and current_user = any(roles)")
    if not connection.execute(policies).scalar_one():
        raise Wrong("no policy opens old rows to it", "run `make migrate` with RETENTION_DATABASE_URL")
    return "it is a role of its own, with its policies"


def check_clock(deployment: Deployment) -> str:
    """Compare this machine's clock with the database's."""
    connection, before = _runtime(deployment), deployment.clock()
    theirs = float(connection.execute(text("select extract(epoch from clock_timestamp())")).scalar_one())
    difference = theirs - (before + deployment.clock()) / 2
    if abs(difference) > MAX_CLOCK_DIFFERENCE:
        raise Wrong(
            f"the database's clock and this machine's differ by {abs(difference):.0f} s",
            "set this machine's clock by NTP; if it is right, ask the database's vendor",
        )
    return f"the database's clock differs by {abs(difference):.1f} s"


def check_latency(deployment: Deployment) -> str:
    """Measure a roundtrip. From a laptop it says little: a function is nearer."""
    connection, taken = _runtime(deployment), []
    for _ in range(ROUNDTRIPS):
        began = time.perf_counter()
        connection.execute(text("select 1"))
        taken.append(time.perf_counter() - began)
    return f"a roundtrip from this machine takes {statistics.median(taken) * 1000:.1f} ms (median of {ROUNDTRIPS})"
