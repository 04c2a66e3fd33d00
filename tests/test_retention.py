"""Retention deletes the old rows of every table that declares an expiry, and its role can do nothing else."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from threading import Barrier
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.dialects import postgresql
from sqlmodel import SQLModel

from dev import processes
from dev.postgres import Postgres
from retention.app import RetentionFailed, delete_old_rows, handler
from taskchat.personal_data import retention
from taskchat.personal_data.retention import BATCH, PARENT_BATCH, expiring_tables
from testing.gateway import LambdaContext
from tests.conftest import ROOT, Logs, Person, migrate
from tests.domain import example
from tests.test_cold_start import imported
from tests.test_migrations import EmptyDatabase

Rows = psycopg.Connection[Any]
DAYS = 30
OLD, YOUNG = DAYS + 2, DAYS - 2
EVENT = json.loads((ROOT / "events" / "retention.json").read_text())

STORE = {
    "conversation": "insert into conversation (user_id, id, title, updated_at)"
    " select %(user)s, gen_random_uuid(), 'Groceries', %(at)s from generate_series(1, %(count)s)",
    "tool_call": "insert into tool_call (user_id, turn_id, call_id, position, door, tool, arguments, outcome, result,"
    " duration_ms, created_at)"
    " select %(user)s, gen_random_uuid(), 'call', 0, 'mcp', 'list', '{}', 'ok', '{}', 1, %(at)s"
    " from generate_series(1, %(count)s)",
    "erased_call": "insert into erased_call (pseudonym, door, tool, outcome, made_on)"
    " select gen_random_uuid(), 'chat', 'list', 'ok', %(at)s from generate_series(1, %(count)s)",
    "allowance": "insert into allowance (user_id, door, full_at, day, model_tokens)"
    " select %(user)s || n, 'chat', %(at)s, %(at)s, 3 from generate_series(1, %(count)s) n",
}
"""The statement that stores rows of an age, for each table that declares it."""

INDEX = {
    "conversation": "conversation_updated_idx",
    "tool_call": "tool_call_created_idx",
    "erased_call": "erased_call_made_idx",
    "allowance": "allowance_day_idx",
}
OF_THE_DOMAIN = [example.table] if example.expiring else []
if example.expiring:
    STORE[example.table], INDEX[example.table] = example.expiring


class Deployed(EmptyDatabase):
    """A database with both roles."""

    def __init__(self, server: Postgres) -> None:
        super().__init__(server)
        self.retention_role = f"retention_{uuid4().hex}"
        self.retention_url = self.app_url.replace(self.role, self.retention_role)
        self.migrate()

    def migrate(self, retention_url: str = "") -> subprocess.CompletedProcess[str]:
        """Run `make migrate` with RETENTION_DATABASE_URL."""
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("RETENTION_DATABASE_URL", retention_url or self.retention_url)
            done = migrate(self.owner_url, self.app_url)
        assert retention_url or done.returncode == 0, done.stderr
        return done


@pytest.fixture(scope="module")
def deployed(server: Postgres) -> Deployed:
    """Return a database of this file's own."""
    return Deployed(server)


@pytest.fixture(scope="module")
def database_url(deployed: Deployed) -> str:
    """Give that database to the people of the tests."""
    return deployed.app_url


@pytest.fixture
def rows(deployed: Deployed) -> Iterator[Rows]:
    """Connect as its superuser, to empty tables."""
    with psycopg.connect(deployed.superuser_url, autocommit=True) as connection:
        connection.execute(f"truncate {', '.join(SQLModel.metadata.tables)}".encode())
        yield connection


@pytest.fixture
def as_role(deployed: Deployed) -> Iterator[Rows]:
    """Connect as the retention role."""
    with psycopg.connect(deployed.retention_url) as connection:
        yield connection


@pytest.fixture(autouse=True)
def settings(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the function's variables."""
    monkeypatch.setenv("RETENTION_DATABASE_URL", deployed.retention_url)
    monkeypatch.setenv("RETENTION_DAYS", str(DAYS))


def store(rows: Rows, table: str, days: float, count: int = 1) -> None:
    """Store rows that are this many days old."""
    at = rows.execute("select now() - %s", [timedelta(days=days)]).fetchone()
    assert at
    rows.execute(STORE[table].encode(), {"user": uuid4().hex, "at": at[0], "count": count})


def count(rows: Rows, table: str) -> int:
    """Return the number of rows in the table."""
    found = rows.execute(sql.SQL("select count(*) from {}").format(sql.Identifier(table))).fetchone()
    assert found
    return int(found[0])


def run(seconds: float = 300) -> dict[str, Any]:
    """Invoke the function as EventBridge does."""
    answer: dict[str, Any] = handler(EVENT, LambdaContext(seconds))
    return answer


def test_every_table_that_declares_it_is_tested() -> None:
    """A new table of this list needs an index and a statement here."""
    assert {table.name for table in expiring_tables()} == set(STORE) == set(INDEX)


class TestOldRows:
    """Old rows go, young ones stay."""

    @pytest.mark.parametrize("table", STORE)
    def test_only_old_rows_go(self, rows: Rows, table: str) -> None:
        """Of each table."""
        store(rows, table, OLD, 3)
        store(rows, table, YOUNG, 2)
        assert run() == {"deleted": {**dict.fromkeys(STORE, 0), table: 3}, "finished": True}
        assert count(rows, table) == 2

    def test_messages_go_with_their_conversation(self, rows: Rows) -> None:
        """Postgres deletes them as the owner of the table: the role itself has no right on them."""
        for days in (OLD, YOUNG):
            store(rows, "conversation", days)
        rows.execute(
            "insert into message (user_id, conversation_id, position, turn_id, role, content, created_at)"
            " select user_id, id, 0, gen_random_uuid(), 'user', 'hello', updated_at from conversation"
        )
        run()
        assert (count(rows, "conversation"), count(rows, "message")) == (1, 1)

    @pytest.mark.parametrize(("lease_days", "left"), [(-0.01, 1), (0.01, 1), (OLD, 0)])
    def test_a_conversation_with_a_young_lease_stays(self, rows: Rows, lease_days: float, left: int) -> None:
        """A turn runs in an old conversation, or has just crashed. Its client may repeat the request."""
        store(rows, "conversation", OLD)
        rows.execute("update conversation set lease_until = now() - %s", [timedelta(days=lease_days)])
        run()
        assert count(rows, "conversation") == left

    def test_a_call_stays_with_its_conversation(self, rows: Rows, alice: Person) -> None:
        """An interrupted turn of it that is sent again makes no call twice. With its conversation, the call goes."""
        first = alice.say(example.add("milk"), key="k").json
        rows.execute("delete from message where role = 'assistant'")  # as if the process had been killed
        rows.execute("update tool_call set created_at = created_at - interval '400 days'")
        run()
        again = alice.say(example.add("milk"), key="k").json
        assert again["tool_calls"] == first["tool_calls"]
        assert count(rows, example.table) == 1
        rows.execute("update conversation set updated_at = updated_at - interval '400 days'")
        run()
        assert (count(rows, "conversation"), count(rows, "tool_call")) == (0, 0)

    def test_a_thing_that_has_not_changed_stays(self, rows: Rows) -> None:
        """However old it is."""
        for table in OF_THE_DOMAIN:
            store(rows, table, 10 * OLD)
        rows.execute(example.insert.encode(), ["alice", "milk"])
        rows.execute(example.compose("update {table} set {state} = %s"), [example.states[0]])
        run()
        assert count(rows, example.table) == 1 + len(OF_THE_DOMAIN)

    def test_a_user_whom_the_operator_refuses_until_a_later_day_stays_refused(self, rows: Rows) -> None:
        """docs/limits.md tells how."""
        store(rows, "allowance", OLD)
        rows.execute("update allowance set full_at = now() + interval '1 day'")
        run()
        assert count(rows, "allowance") == 1

    def test_0_days_delete_nothing(self, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a connection to the database."""
        store(rows, "tool_call", 10 * OLD)
        monkeypatch.setenv("RETENTION_DAYS", "0")
        monkeypatch.setenv("RETENTION_DATABASE_URL", "postgresql://u:p@127.0.0.1:1/d?sslmode=disable")
        assert run() == {"deleted": {}, "finished": True}
        assert count(rows, "tool_call") == 1


KILLED_IN_THE_THIRD_BATCH = """
import os, signal
from sqlalchemy import Engine, event
commits = []

@event.listens_for(Engine, "commit")
def count(connection):
    commits.append(connection)
    if len(commits) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

from taskchat.personal_data import retention
from retention.app import delete_old_rows
table = retention.SQLModel.metadata.tables["tool_call"]
retention.expiring_tables = lambda: [table]
delete_old_rows(lambda: True)
"""


class TestBatches:
    """Each batch is a transaction, and leaves rows that others have locked."""

    def test_a_run_that_is_killed_leaves_whole_batches(self, rows: Rows) -> None:
        """The next run does the rest."""
        store(rows, "tool_call", OLD, 4 * BATCH)
        done = subprocess.run([sys.executable, "-c", KILLED_IN_THE_THIRD_BATCH], cwd=ROOT, check=False)  # noqa: S603
        assert done.returncode == -signal.SIGKILL
        assert count(rows, "tool_call") == 2 * BATCH
        assert run()["deleted"]["tool_call"] == 2 * BATCH
        assert count(rows, "tool_call") == 0

    def test_a_conversation_s_batches_are_small(self, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
        """Many messages go with each. The run ends between two batches when its time is over."""
        store(rows, "conversation", OLD, 3 * PARENT_BATCH)
        monkeypatch.setattr(retention, "expiring_tables", lambda: [SQLModel.metadata.tables["conversation"]])
        answers = iter([True, True, False])
        done = delete_old_rows(lambda: next(answers))
        assert (done.deleted, done.unfinished) == ({"conversation": 2 * PARENT_BATCH}, ["conversation"])
        assert count(rows, "conversation") == PARENT_BATCH

    def test_two_runs_at_once_share_the_work(self, rows: Rows) -> None:
        """Neither waits for the other, and no row is counted twice."""
        store(rows, "tool_call", OLD, 5 * BATCH)
        barrier = Barrier(2)

        def begin_together(_: int) -> retention.Run:
            barrier.wait(30)
            return delete_old_rows(lambda: True)

        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(begin_together, range(2)))
        assert sum(one.deleted["tool_call"] for one in done) == 5 * BATCH
        assert [one.failed for one in done] == [[], []]
        assert count(rows, "tool_call") == 0

    @pytest.mark.parametrize("lock", ["update", "share"])
    def test_a_row_that_a_turn_has_locked_is_left(self, deployed: Deployed, rows: Rows, lock: LiteralString) -> None:
        """The run does not wait for it. The next run deletes it."""
        store(rows, "conversation", OLD, 3)
        with psycopg.connect(deployed.superuser_url) as turn:
            turn.execute(sql.SQL("select from conversation limit 1 for {}").format(sql.SQL(lock)))
            assert run()["deleted"]["conversation"] == 2
        assert run()["deleted"]["conversation"] == 1

    def test_no_batch_begins_when_the_time_is_short(self, rows: Rows, logs: Logs) -> None:
        """Lambda would kill it. The log line names the tables that are left."""
        store(rows, "tool_call", OLD)
        assert run(retention.BATCH_SECONDS) == {"deleted": dict.fromkeys(STORE, 0), "finished": False}
        assert count(rows, "tool_call") == 1
        [line] = logs()
        assert (line["finished"], set(line["unfinished"])) == (False, set(STORE))

    def test_a_failure_in_one_table_does_not_stop_the_others(self, rows: Rows, logs: Logs) -> None:
        """The invocation fails, and neither its error nor the log quotes a row."""
        for table in STORE:
            store(rows, table, OLD)
        rows.execute("create function refuse() returns trigger language plpgsql as $$ begin raise 'secret'; end $$")
        rows.execute("create trigger refuse before delete on tool_call for each row execute function refuse()")
        try:
            with pytest.raises(RetentionFailed, match=r"^tool_call$"):
                run()
        finally:
            rows.execute("drop function refuse cascade")
        assert {table: count(rows, table) for table in STORE} == {**dict.fromkeys(STORE, 0), "tool_call": 1}
        assert "secret" not in str(logs())
        assert logs()[-1]["failed"] == ["tool_call"]

    def test_a_person_s_turns_go_on_meanwhile(self, rows: Rows, alice: Person) -> None:
        """All are answered, and none of the person's rows goes."""
        for table in STORE:
            store(rows, table, OLD, 3_000)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(delete_old_rows, lambda: True)
            answers = [alice.say(example.add("milk")) for _ in range(5)]
            assert running.result(120).is_finished
        assert [answer.status for answer in answers] == [200] * 5
        mine = rows.execute("select count(*) from tool_call where user_id = %s", [alice.id]).fetchone()
        assert (mine, count(rows, "message")) == ((5,), 10)


FORBIDDEN = [
    *("select title from conversation", "select fence from conversation", "select user_id from allowance"),
    *("select arguments from tool_call", "select result from tool_call", "select turn_id from tool_call"),
    *("select pseudonym from erased_call", "select {text} from {table}", "select * from conversation"),
    *("select content from message", "delete from message", "select from message", "select * from alembic_version"),
    *("update conversation set title = ''", "truncate conversation", "truncate {table}"),
    *("update conversation set updated_at = now()", "update allowance set day = current_date"),
    *("update {table} set {state} = {state}", "select * from {table}"),
    *("insert into {table} (user_id) values ('alice')", "create table public.x ()"),
    *("select passwd from pg_shadow", "set role taskchat_owner"),
]


def check_rights(deployed: Deployed, rows: Rows) -> None:
    """Check that the role has rights and policies on the declared tables only."""
    granted = rows.execute(
        "select table_name, privilege_type from information_schema.role_table_grants where grantee = %s",
        [deployed.retention_role],
    ).fetchall()
    assert sorted(granted) == sorted((table, "DELETE") for table in STORE)
    policies = rows.execute(
        "select tablename, policyname from pg_policies where %s = any(roles)", [deployed.retention_role]
    ).fetchall()
    assert sorted(policies) == sorted((table, name) for table in STORE for name in ("retention", "retention_only"))


class TestTheRole:
    """It may delete old rows and nothing else, also when it names a user."""

    @pytest.mark.parametrize("user", ["", "alice"])
    @pytest.mark.parametrize("statement", FORBIDDEN)
    def test_it_may_not(self, rows: Rows, as_role: Rows, statement: LiteralString, user: str) -> None:
        """Columns with texts and ids are closed to it, and it can write none."""
        rows.execute(example.insert.encode(), ["alice", "milk"])
        rows.execute("insert into conversation (user_id, id, title) values ('alice', gen_random_uuid(), 'x')")
        rows.execute("insert into allowance values ('alice', 'chat', now(), current_date, 1)")
        as_role.execute("select set_config('app.user_id', %s, false)", [user])
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            as_role.execute(example.compose(statement))

    @pytest.mark.parametrize("user", ["", "alice"])
    def test_it_deletes_no_row_that_cannot_get_old(self, rows: Rows, as_role: Rows, user: str) -> None:
        """The policy has the table's condition: a thing that has not changed does not exist for it."""
        rows.execute(example.insert.encode(), ["alice", "milk"])
        as_role.execute("select set_config('app.user_id', %s, false)", [user])
        with suppress(psycopg.errors.InsufficientPrivilege):  # of a domain that declares no expiry
            as_role.execute(example.compose("delete from {table}"))
        as_role.commit()
        assert count(rows, example.table) == 1

    def test_it_cannot_bypass_policies(self, deployed: Deployed, rows: Rows) -> None:
        """It is no administrator, and has rights on the declared tables only."""
        found = rows.execute(
            "select rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication,"
            " has_schema_privilege(oid, 'public', 'create') from pg_roles where rolname = %s",
            [deployed.retention_role],
        ).fetchone()
        assert found == (False,) * 6
        check_rights(deployed, rows)

    @pytest.mark.parametrize("url", ["owner_url", "superuser_url"])
    def test_the_function_refuses_another_role(
        self, deployed: Deployed, rows: Rows, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One that row-level security would not bind."""
        store(rows, "tool_call", OLD)
        monkeypatch.setenv("RETENTION_DATABASE_URL", getattr(deployed, url))
        with pytest.raises(RetentionFailed):
            run()
        assert count(rows, "tool_call") == 1


class TestMigrate:
    """`make migrate` makes the role when RETENTION_DATABASE_URL is set."""

    def test_it_makes_no_role_without_the_variable(self, server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
        """And no policy."""
        monkeypatch.delenv("RETENTION_DATABASE_URL")
        empty = EmptyDatabase(server)
        assert migrate(empty.owner_url, empty.app_url).returncode == 0
        with psycopg.connect(empty.superuser_url) as connection:
            assert connection.execute("select from pg_policies where policyname ~ 'retention'").fetchall() == []

    def test_a_second_run_keeps_the_policies(self, deployed: Deployed, rows: Rows) -> None:
        """To replace one, Postgres would wait for every transaction on the table."""
        policies = "select oid from pg_policy where polname ~ 'retention' order by oid"
        before = rows.execute(policies).fetchall()
        assert "existed; its password was not changed." in deployed.migrate().stdout
        assert rows.execute(policies).fetchall() == before

    def test_it_takes_back_what_is_too_much(self, deployed: Deployed, rows: Rows) -> None:
        """As after a table has lost its declaration."""
        rows.execute(f"grant select, update on message to {deployed.retention_role}".encode())
        rows.execute(f"grant select ({example.text}) on {example.table} to {deployed.retention_role}".encode())
        rows.execute(f"create policy retention on message to {deployed.retention_role} using (true)".encode())
        deployed.migrate()
        check_rights(deployed, rows)
        columns = rows.execute(
            "select table_name, column_name, privilege_type from information_schema.column_privileges"
            " where grantee = %s and column_name in ('title', 'content', 'user_id', %s)",
            [deployed.retention_role, example.text],
        )
        keys = {(table, "user_id", "SELECT") for table in ("conversation", "tool_call")}  # a call stays with the other
        assert set(columns.fetchall()) == keys

    @pytest.mark.parametrize("role", ["owner", "administrator", "runtime"])
    def test_it_refuses_an_unsafe_role(self, deployed: Deployed, rows: Rows, role: str) -> None:
        """One line names the variable."""
        name = f"admin_{uuid4().hex}"
        rows.execute(f"create role {name} login createdb password 'x'".encode())
        urls = {
            "owner": deployed.owner_url,
            "administrator": deployed.retention_url.replace(deployed.retention_role, name),
            "runtime": deployed.app_url,
        }
        done = deployed.migrate(urls[role])
        assert done.returncode != 0
        assert "RETENTION_DATABASE_URL" in (done.stdout + done.stderr).splitlines()[-1]

    @pytest.mark.parametrize("url", ["postgresql://u:secret@h:secret/d", "postgresql://u@h/d"])
    def test_a_wrong_url_is_named(self, deployed: Deployed, url: str) -> None:
        """Without the password."""
        done = deployed.migrate(url)
        assert done.returncode != 0
        assert "RETENTION_DATABASE_URL" in (done.stdout + done.stderr).splitlines()[-1]
        assert "secret" not in done.stdout + done.stderr


def plan(as_role: Rows, table: str) -> str:
    """Return the plan of a batch, as the role gets it."""
    sqlalchemy_table = SQLModel.metadata.tables[table]
    compiled = retention.delete_batch(sqlalchemy_table).compile(dialect=postgresql.psycopg.dialect())
    values = compiled.params | {"age": timedelta(days=DAYS), "most": retention.batch_size(sqlalchemy_table)}
    return json.dumps(as_role.execute(f"explain (format json) {compiled}".encode(), values).fetchall())


@pytest.mark.parametrize("old", [0, 100, 30_000])
@pytest.mark.parametrize("table", STORE)
def test_a_batch_finds_its_rows_by_index(rows: Rows, as_role: Rows, table: str, old: int) -> None:
    """Among many rows, whether none, few or most of them are old."""
    store(rows, table, OLD, old)
    store(rows, table, YOUNG, 20_000)
    rows.execute(f"analyze {table}".encode())
    found = plan(as_role, table)
    assert INDEX[table] in found
    assert "Seq Scan" not in found


class TestReports:
    """Each run writes one log line and one metric document, without the id or text of a user."""

    def test_a_run_writes_one_line_and_one_metric(
        self, rows: Rows, logs: Logs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Both hold numbers, and the line the names of tables."""
        store(rows, "tool_call", OLD, 3)
        run()
        [line] = logs()
        expected = {"message": "retention run", "schema": "taskchat.retention/1", "days": DAYS, "finished": True}
        assert line.items() >= expected.items()
        assert (line["deleted"], line["failed"]) == ({**dict.fromkeys(STORE, 0), "tool_call": 3}, [])
        [metric] = map(json.loads, capsys.readouterr().out.splitlines())
        assert (metric["RetentionRowsDeleted"], metric["RetentionFinished"]) == ([3.0], [1.0])
        assert set(metric) == {"_aws", "service", "RetentionRowsDeleted", "RetentionFinished"}

    @pytest.mark.parametrize(
        "wrong",
        [
            {"RETENTION_DAYS": "canary"},
            {"RETENTION_DAYS": "-1"},
            {"RETENTION_DAYS": "36501"},
            {"RETENTION_DATABASE_URL": ""},
            {"RETENTION_DATABASE_URL": "postgresql://canary:canary@h:canary/d"},
        ],
    )
    def test_a_wrong_setting_ends_the_start(self, wrong: dict[str, str]) -> None:
        """The error names the variable, and not its value."""
        variables = os.environ | {"AWS_LAMBDA_RUNTIME_API": "127.0.0.1:1"} | wrong
        command = [sys.executable, "-c", "import retention.app"]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)  # noqa: S603
        assert done.returncode != 0
        last = done.stderr.splitlines()[-1]
        assert next(iter(wrong)) in last
        assert "canary" not in last

    def test_a_run_from_the_command_line(self, rows: Rows) -> None:
        """As docs/retention.md shows it."""
        store(rows, "tool_call", OLD)
        subprocess.run([sys.executable, "-m", "retention"], cwd=ROOT, check=True, capture_output=True)
        assert count(rows, "tool_call") == 0

    def test_it_imports_neither_web_framework_nor_agent(self) -> None:
        """It needs the tables alone."""
        assert imported("retention.app") & {"fastapi", "agents", "openai", "mangum", "boto3"} == set()


def test_the_connection_is_closed_after_a_run(rows: Rows, deployed: Deployed) -> None:
    """The next run is a day later: Postgres need not keep it."""
    run()
    sessions = "select from pg_stat_activity where usename = %s"
    for _ in processes.attempts(10):  # Postgres ends the session after the client has closed the socket
        if not rows.execute(sessions, [deployed.retention_role]).fetchall():
            return
    pytest.fail("the session is still there")
