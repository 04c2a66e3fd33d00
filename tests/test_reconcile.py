"""`make reconcile` finds each audit line without its record, each record without its line, and each difference."""

import json
import os
import random
import shlex
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
import yaml
from moto import mock_aws
from psycopg import sql
from sqlmodel import SQLModel

from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.template_rules.transformed import template
from dev.tokens import Issuer
from operations import deployment, reconcile
from operations.call_records import CallRecords
from operations.deployment import Deployment
from operations.log_source import MARGIN, FileLog, OperatorError
from operations.reconcile import Reconciliation, Report
from taskchat import settings
from taskchat.database.engine import create_engine_for
from taskchat.database.transaction import LOOKUP_SECONDS
from taskchat.http.telemetry import Metric
from testing.callers import Caller
from testing.gateway import event
from tests import db_assertions, proxy
from tests.audited import AuditedDatabase, Line, audit_line
from tests.conftest import ROOT, variables
from tests.crash_points import Trap
from tests.domain import example
from tests.environments import Environment, Fleet, ForkServer
from tests.proxy import Proxy

Rows = psycopg.Connection[Any]
WORKFLOW = ROOT / ".github" / "workflows" / "deploy.yml"
DAY = datetime(2026, 3, 10, tzinfo=UTC)
RANGE = ["--since", "2026-03-10", "--until", "2026-03-11"]
NOON = DAY + timedelta(hours=12)
MS = timedelta(milliseconds=1)


@pytest.fixture(scope="module")
def audited(server: Postgres) -> AuditedDatabase:
    """Return a database of this file's own."""
    return AuditedDatabase(server)


@pytest.fixture
def rows(audited: AuditedDatabase) -> Iterator[Rows]:
    """Connect as its superuser, to empty tables."""
    with psycopg.connect(audited.superuser_url, autocommit=True) as connection:
        connection.execute(f"truncate {', '.join(SQLModel.metadata.tables)}".encode())
        yield connection


@dataclass
class Operator:
    """Writes lines and records, and reconciles them."""

    database: AuditedDatabase
    file: Path
    lines: list[Line] = field(default_factory=list)

    def log(self, at: datetime = NOON, **fields: Any) -> Line:
        """Write a line without a record."""
        self.lines.append(audit_line(at, **fields))
        return self.lines[-1]

    def store(self, at: datetime = NOON, **fields: Any) -> Line:
        """Store a record without a line."""
        line = audit_line(at, **fields)
        self.database.store(line, at)
        return line

    def call(self, at: datetime = NOON, **fields: Any) -> Line:
        """Store a record and write its line."""
        line = self.log(at + MS, **fields)
        self.database.store(line, at)
        return line

    def reconcile(self, since: datetime = DAY, until: datetime = DAY + timedelta(days=1), **options: Any) -> Report:
        """Compare the day, or another range."""
        self.file.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        records = CallRecords(create_engine_for(lambda: self.database.audit_url))
        try:
            return Reconciliation(FileLog(str(self.file)), records, since, until, **options).run()
        finally:
            records.engine.dispose()


@pytest.fixture
def operator(audited: AuditedDatabase, rows: Rows, tmp_path: Path) -> Operator:
    """Return an operator with no lines and no records."""
    return Operator(audited, tmp_path / "log.jsonl")


def problems(report: Report) -> list[str]:
    """Return the mismatches in words."""
    return [mismatch["problem"] for mismatch in report.mismatches]


def test_pairs_agree(operator: Operator) -> None:
    """Calls of both entry points, one with a name that the model made up among them."""
    operator.call()
    operator.call(door="mcp", conversation_id=None)
    operator.call(tool="unknown", outcome="error")
    report = operator.reconcile()
    assert (report.checked, problems(report)) == (3, [])


def test_a_line_without_its_record_is_found(operator: Operator) -> None:
    """The person has an earlier record, so no erasure explains it."""
    operator.call(NOON - MARGIN)
    line = operator.log()
    report = operator.reconcile()
    assert problems(report) == ["line without a record"]
    assert report.mismatches[0]["line"]["call_id"] == line["call_id"]


def test_a_record_without_its_line_is_found(operator: Operator) -> None:
    """The mismatch has everything but texts that the line would have had."""
    made = operator.store()
    (mismatch,) = operator.reconcile().mismatches
    assert mismatch["problem"] == "record without a line"
    assert mismatch["person"] == made["actor"]
    same = ("turn_id", "call_id", "conversation_id", "request_id", "door", "tool", "outcome", "duration_ms")
    assert {name: mismatch["record"][name] for name in same} == {name: made[name] for name in same}


def test_a_name_that_the_model_made_up_is_not_shown(operator: Operator) -> None:
    """It may be the person's text."""
    operator.store(tool="unknown", outcome="error")
    report = operator.reconcile()
    assert report.mismatches[0]["record"]["tool"] == "unknown"
    assert "xylophone" not in str(report)


@pytest.mark.parametrize(
    ("name", "value"),
    [("tool", "add_task"), ("outcome", "error"), ("door", "mcp"), ("conversation_id", None), ("request_id", "another")],
)
def test_each_difference_is_named(operator: Operator, name: str, value: str | None) -> None:
    """A pair must have the same values."""
    operator.call()[name] = value
    assert problems(operator.reconcile()) == [f"line and record differ in {name}"]


def test_two_lines_for_one_call_are_found(operator: Operator) -> None:
    """A call is logged once."""
    operator.lines.append(operator.call())
    assert problems(operator.reconcile()) == ["2 lines for one call"]


def test_an_unknown_outcome_is_resolved_by_the_later_line_or_the_record(operator: Operator) -> None:
    """A commit that the database did not answer is no mismatch, whether it took effect or not."""
    known = operator.call()
    operator.lines.append(known | {"outcome": "unknown"})
    operator.call()["outcome"] = "unknown"
    operator.log(outcome="unknown")
    report = operator.reconcile()
    assert (problems(report), report.resolved, report.without_effect) == ([], 1, 1)


def test_calls_at_the_ends_of_the_range_find_their_pair(operator: Operator) -> None:
    """A pair is compared once, in the run whose range has its record."""
    end = DAY + timedelta(days=1)
    operator.call(DAY)
    operator.call(end - MS / 2)  # its line is of the next day
    operator.call(end)
    assert [operator.reconcile().checked, operator.reconcile(end, end + MARGIN).checked] == [2, 1]
    assert problems(operator.reconcile()) == []


def test_lines_may_be_out_of_order_within_the_margin(operator: Operator) -> None:
    """Several processes write one log. A log that is not sorted at all is refused."""
    operator.call(NOON)
    operator.call(NOON - MARGIN / 2)
    assert problems(operator.reconcile()) == []
    operator.call(NOON - 3 * MARGIN)
    with pytest.raises(OperatorError, match="not in order of time"):
        operator.reconcile()


def test_a_deleted_conversation_is_no_mismatch(operator: Operator, rows: Rows) -> None:
    """Its calls stay, without their texts."""
    operator.call(tool="unknown", outcome="error")
    rows.execute("update tool_call set tool = 'unknown', arguments = '{}', result = '{}'")
    assert problems(operator.reconcile()) == []


def test_an_erased_person_is_no_mismatch(operator: Operator, rows: Rows) -> None:
    """As many lines without a record as there are erased calls of that kind are explained."""
    operator.call(actor="bob")
    operator.log()
    operator.log()
    erase(rows, 2)
    report = operator.reconcile()
    assert (problems(report), report.erased) == ([], 2)


def test_more_lines_than_erased_calls_are_mismatches(operator: Operator, rows: Rows) -> None:
    """Nothing tells which of them was erased, so each is shown, with the number."""
    operator.log()
    operator.log(actor="bob")
    erase(rows, 1)
    assert problems(operator.reconcile()) == ["line without a record (1 of these 2 may be erased)"] * 2


def test_a_lost_record_is_not_explained_by_another_person_s_erasure(operator: Operator, rows: Rows) -> None:
    """A person with an earlier record has not been erased since."""
    operator.call(NOON - MARGIN, actor="bob")
    operator.log(actor="bob")
    erase(rows, 1)
    assert problems(operator.reconcile()) == ["line without a record"]


def erase(rows: Rows, count: int) -> None:
    """Store what erased calls leave."""
    rows.execute(
        "insert into erased_call (pseudonym, door, tool, outcome, made_on)"
        " select gen_random_uuid(), 'chat', 'delete_task', 'ok', %s from generate_series(1, %s)",
        [NOON.date(), count],
    )


def test_records_that_retention_deleted_are_no_mismatch(operator: Operator) -> None:
    """The log may keep lines for longer than the database keeps records."""
    operator.call(NOON - MARGIN)
    operator.log()
    report = operator.reconcile(retention_limit=NOON + MS)
    assert (problems(report), report.expired) == ([], 1)


def test_memory_holds_only_the_calls_of_the_margin(operator: Operator, rows: Rows) -> None:
    """A month has many calls: nothing but their number is kept."""
    month = [DAY + timedelta(minutes=3 * n) for n in range(2_000)]
    operator.lines = [audit_line(at) for at in month]
    with (
        rows.cursor() as cursor,
        cursor.copy(
            "copy tool_call (user_id, turn_id, call_id, position, conversation_id, door, tool, arguments, outcome,"
            " result, duration_ms, created_at) from stdin"
        ) as copy,
    ):
        for at, line in zip(month, operator.lines, strict=True):
            ids = (line["actor"], line["turn_id"], line["call_id"], 0, line["conversation_id"])
            copy.write_row((*ids, "chat", "delete_task", "{}", "ok", "{}", 1.0, at))
    most = 0

    class Watched(Reconciliation):
        def _judge_before(self, limit: datetime | None) -> None:
            nonlocal most
            super()._judge_before(limit)
            most = max(most, len(self._near))

    operator.file.write_text("".join(json.dumps(line) + "\n" for line in operator.lines))
    records = CallRecords(create_engine_for(lambda: operator.database.audit_url))
    report = Watched(FileLog(str(operator.file)), records, DAY, DAY + timedelta(days=30)).run()
    records.engine.dispose()
    assert (report.checked, report.found) == (2_000, 0)
    assert most <= MARGIN / timedelta(minutes=3) + 2


class TestCommand:
    """The command as `make reconcile` runs it."""

    @pytest.fixture(autouse=True)
    def role(self, audited: AuditedDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AUDIT_DATABASE_URL", audited.audit_url)

    def run(self, operator: Operator, *arguments: str) -> int:
        operator.file.write_text("".join(json.dumps(line) + "\n" for line in operator.lines))
        return reconcile.main(["--log", str(operator.file), *RANGE, *arguments])

    def test_each_mismatch_is_one_line(self, operator: Operator, capsys: pytest.CaptureFixture[str]) -> None:
        """The exit code is 1, and the last line has the numbers."""
        made = operator.store()
        assert self.run(operator) == 1
        line, summary = capsys.readouterr().out.splitlines()
        assert line.startswith("2026-03-10 12:00:00.000+00:00  record without a line: person ann {")
        assert made["call_id"] in line
        assert "1 calls compared: 1 mismatches" in summary

    def test_agreement_is_exit_code_0(self, operator: Operator, capsys: pytest.CaptureFixture[str]) -> None:
        """Only the numbers are printed."""
        operator.call()
        assert self.run(operator) == 0
        assert "1 calls compared: 0 mismatches" in capsys.readouterr().out

    def test_mismatches_as_json(self, operator: Operator, capsys: pytest.CaptureFixture[str]) -> None:
        """A program reads standard output; the numbers are on the other stream."""
        operator.store()
        assert self.run(operator, "--json") == 1
        captured = capsys.readouterr()
        assert json.loads(captured.out)["problem"] == "record without a line"

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["--since", "soon"], "'soon' is not a time"),
            (["--since", "2026-03-12"], "--since must be before --until"),
            (["--timezone", "Mars"], "no time zone 'Mars'"),
            (["--log", "/nowhere"], "/nowhere cannot be read"),
            (["--metrics"], "--metrics needs --env"),
            (["--env", "staging"], "has no [staging.deploy.parameters]"),
        ],
    )
    def test_a_mistake_is_one_line(
        self, operator: Operator, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
    ) -> None:
        """The exit code is 2, so that nobody takes it for a mismatch."""
        assert self.run(operator, *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line

    def test_an_unreachable_database_is_one_line(
        self, operator: Operator, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The password is not in it."""
        monkeypatch.setenv("AUDIT_DATABASE_URL", "postgresql://auditor:opensesame@127.0.0.1:1/x?sslmode=disable")
        assert self.run(operator) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: The database cannot be read")
        assert "opensesame" not in line


class TestDeployed:
    """The command as the nightly job runs it: the URL comes from a secret, and an alarm reads the metrics."""

    @pytest.fixture(autouse=True)
    def aws(self, audited: AuditedDatabase, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Give the deployment, and store the auditor's secret."""
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
        monkeypatch.delenv("AUDIT_DATABASE_URL", raising=False)
        with mock_aws():
            text = json.dumps({"AUDIT_DATABASE_URL": audited.audit_url})
            arn = boto3.client("secretsmanager").create_secret(Name="audit", SecretString=text)["ARN"]
            monkeypatch.setenv("APP_SECRET_ARN", arn)
            found = Deployment(boto3.Session(), {}, {"EnvironmentName": "prod", "RetentionDays": "30"})
            monkeypatch.setattr(deployment, "find", lambda _name: found)  # moto's CloudFormation needs more packages
            yield
            settings.forget_secret()

    def run(self, operator: Operator) -> int:
        operator.file.write_text("".join(json.dumps(line) + "\n" for line in operator.lines))
        return reconcile.main(["--env", "prod", "--metrics", "--log", str(operator.file), *RANGE])

    def test_the_alarm_gets_the_number(self, operator: Operator) -> None:
        """The metric has exactly the name, the namespace and the dimension that the alarm reads."""
        operator.store()
        assert self.run(operator) == 1
        [alarm] = template()["Resources"]["ReconcileAlarm"]["Properties"]["Metrics"]
        asked = alarm["MetricStat"]["Metric"]
        [dimension] = asked["Dimensions"]
        service = dimension["Value"]["Fn::Sub"].replace("${EnvironmentName}", "prod")
        expected = [{"Name": dimension["Name"], "Value": service}]
        found = boto3.client("cloudwatch").list_metrics(Namespace=asked["Namespace"])["Metrics"]
        assert {metric["MetricName"] for metric in found} == {asked["MetricName"], Metric.RECONCILE_CHECKED}
        assert all(metric["Dimensions"] == expected for metric in found)

    def test_the_deployments_retention_counts(self, operator: Operator, capsys: pytest.CaptureFixture[str]) -> None:
        """An older line without a record is no mismatch."""
        operator.call(NOON - MARGIN)
        operator.log()
        assert self.run(operator) == 0
        assert "0 of erased persons, 1 past retention" in capsys.readouterr().out

    def test_make_takes_the_environment_from_the_workflow(self) -> None:
        """The job sets ENV as a variable. Without ENV the command reads the local stack."""
        [command] = [step["run"] for step in nightly_steps() if str(step.get("run")).startswith("make")]
        known = {name: value for name, value in os.environ.items() if name != "ENV"}
        printed = [
            subprocess.run(  # noqa: S603  (the project's own workflow)
                [*shlex.split(command), "--dry-run"], cwd=ROOT, env=given, capture_output=True, text=True, check=True
            ).stdout
            for given in (known, known | {"ENV": "prod"})
        ]
        assert ["--env prod" in text for text in printed] == [False, True]
        assert all("--metrics" in text for text in printed)


def nightly_steps() -> list[Line]:
    """Return the steps of the workflow's nightly job."""
    steps: list[Line] = yaml.safe_load(WORKFLOW.read_text())["jobs"]["reconcile"]["steps"]
    return steps


class TestAuditorsRole:
    """The role that `make migrate` makes reads ids and outcomes of all persons, and nothing else."""

    @pytest.fixture
    def as_role(self, audited: AuditedDatabase) -> Iterator[Rows]:
        with psycopg.connect(audited.audit_url) as connection:
            yield connection

    def test_it_reads_calls_of_all_persons(self, operator: Operator, as_role: Rows) -> None:
        """It names no user."""
        operator.call()
        operator.call(actor="bob")
        assert as_role.execute("select count(call_id) from tool_call").fetchone() == (2,)

    @pytest.mark.parametrize("column", ["arguments", "result"])
    def test_it_reads_no_text(self, as_role: Rows, column: str) -> None:
        """The columns with a person's text are closed to it."""
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            as_role.execute(sql.SQL("select {} from tool_call").format(sql.Identifier(column)))

    def test_it_reads_no_pseudonym(self, as_role: Rows) -> None:
        """Of erased calls it reads what is needed to count them."""
        as_role.execute("select door, tool, outcome, made_on from erased_call")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            as_role.execute("select pseudonym from erased_call")

    @pytest.mark.parametrize("table", sorted(set(SQLModel.metadata.tables) - {"tool_call", "erased_call"}))
    def test_it_reads_no_other_table(self, as_role: Rows, table: str) -> None:
        """Messages, titles, the domain's rows and the limits are closed to it, column by column."""
        for name in SQLModel.metadata.tables[table].columns.keys():
            with pytest.raises(psycopg.errors.InsufficientPrivilege), as_role.transaction():
                as_role.execute(sql.SQL("select {} from {}").format(sql.Identifier(name), sql.Identifier(table)))

    @pytest.mark.parametrize(
        "statement", ["delete from tool_call", "update tool_call set outcome = 'ok'", "create table mine ()"]
    )
    def test_it_writes_nothing(self, as_role: Rows, statement: str) -> None:
        """It has no right to, and its transactions are read-only besides."""
        with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)):
            as_role.execute(statement.encode())

    def test_a_second_run_changes_nothing(self, audited: AuditedDatabase, rows: Rows) -> None:
        """The role keeps its password, and the policy is not replaced."""
        policies = rows.execute("select oid from pg_policy order by 1").fetchall()
        assert audited.migrate(audited.audit_url).returncode == 0
        assert rows.execute("select oid from pg_policy order by 1").fetchall() == policies

    def test_it_is_a_role_of_its_own(self, audited: AuditedDatabase) -> None:
        """The runtime role must not read other persons' calls."""
        refused = audited.migrate(audited.app_url)
        assert "AUDIT_DATABASE_URL and DATABASE_URL must not name the same role" in refused.stdout


TURNS = int(os.environ.get("RECONCILE_TURNS") or (300 if "THOROUGH" in os.environ else 60))
"""Turns of each of the two runs."""
AT_ONCE = 6 if TURNS > 500 else 2
"""Processes that take them. While one waits to try again, another works."""
OUTAGE = LOOKUP_SECONDS + 0.5
"""Seconds of an outage in which a request gives up to ask for the outcome of a commit."""
SEED = int(os.environ.get("RECONCILE_SEED") or random.SystemRandom().randrange(10**6))
MODEL_FAULTS: list[tuple[str, Line]] = [
    ("rate_limit", {"retry_after_ms": 1}),
    ("disconnect", {}),
    ("malformed_body", {}),
    ("length", {}),
    ("empty_text", {}),
    ("malformed_arguments", {}),
    ("wrong_arguments", {}),
    ("unknown_tool", {}),
    ("duplicate_call_ids", {}),
]


MCP_HEADERS = {
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
    "mcp-protocol-version": "2025-11-25",
}


@dataclass
class Worker:
    """Sends turns and MCP calls to one process after the other, and injects faults."""

    chance: random.Random
    fleet: Fleet
    fragile: Proxy
    standin: StandIn
    issuer: Issuer
    rows: Rows
    may_kill: bool
    kills: int = 0
    lost: int = 0
    """Answers of the database that were lost, and connections that were cut."""
    killed: set[str] = field(default_factory=set)
    """The persons in whose requests a process was killed."""
    environment: Environment | None = None

    def work(self, turns: int) -> None:
        """Take the turns. A person has five."""
        for number in range(turns):
            if number % 5 == 0:
                caller = Caller.new(self.issuer)
            self._take_turn(caller, number)

    def _take_turn(self, caller: Caller, number: int) -> None:
        """Send a request until it is done. The third attempt has no faults. The first two turns have certain faults."""
        by_mcp = number > 1 and self.chance.random() < 0.2
        request = self._mcp_call(caller) if by_mcp else self._message(caller)
        for attempt in range(3):
            trap = self._fault(attempt, number)
            self.environment = self.environment or self.fleet.start()
            outcome = self.environment.ask(request, trap, seconds=8)
            if outcome.trapped:
                self.environment, self.kills = None, self.kills + 1
                self.killed.add(caller.id)
            elif by_mcp or outcome.answer.status == 200:
                return
            db_assertions.let_leases_run_out(self.rows, caller.id)

    def _message(self, caller: Caller) -> Line:
        mark = f"thing {self.chance.randrange(10**9)}"
        if self.chance.random() < 0.1:
            name, options = self.chance.choice(MODEL_FAULTS)
            self.standin.fault(name, match=mark, after_calls=self.chance.randrange(2), **options)
        message = {"message": example.add(mark).then(example.delete(mark))}
        return caller.request(message, key=f"{self.chance.randrange(10**18)}")

    def _mcp_call(self, caller: Caller) -> Line:
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": example.call_add("milk")}
        headers = MCP_HEADERS | {"authorization": f"Bearer {caller.mcp_token}"}
        return event("POST", "/mcp", headers=headers, body=json.dumps(message).encode())

    def _fault(self, attempt: int, number: int) -> Trap | None:
        """Let the database fail, or return the moment at which the process is killed. End all faults at last."""
        self.lost += self.fragile.lost
        self.fragile.reset()
        self.fragile.accept_again()
        draw = self.chance.random() if attempt < 2 else 1.0
        if attempt == 0 and number == 0 and self.may_kill:
            return AFTER_CALL
        if draw < 0.005 or (attempt == 0 and number == 1):
            self.fragile.refuse_for = OUTAGE
            self.fragile.lose_answer_to, self.fragile.answered_before_loss = b"commit", 1  # the first call's
        elif draw < 0.03:
            self.fragile.lose_answer_to = b"commit"
        elif draw < 0.05:
            self.fragile.cut_received = self.fragile.received + self.chance.randrange(4_000)
        elif draw < 0.06:
            self.fragile.refuse_for = 0.05
            self.fragile.lose_answer_to = b"insert into tool_call"
        elif self.may_kill and draw < 0.1:
            return Trap.kill(self.chance.randrange(1, 40))
        return None


AFTER_CALL = Trap.kill(2, on="after commit")
"""The commit of the turn's first call: its record is stored, and its line is not written yet."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("may_kill", [True, False], ids=["with kills", "without kills"])
def test_lines_and_records_agree_after_faults(
    audited: AuditedDatabase,
    operator: Operator,
    rows: Rows,
    warm_fork_server: ForkServer,
    standin: StandIn,
    issuer: Issuer,
    report: Callable[[str], None],
    may_kill: bool,
) -> None:
    """Turns and MCP calls while the model, the database and whole processes fail: exactly the killed ones lack a line.

    A process that is killed between its commit and its line leaves a record without one. Nothing else does.
    """
    begun, log_size = datetime.now(UTC), warm_fork_server.log_size()
    with ExitStack() as stack:
        workers = []
        for number in range(AT_ONCE):
            fragile = stack.enter_context(proxy.running(audited.app_url))
            fleet = Fleet(warm_fork_server, variables(fragile.url(audited.app_url), standin, issuer))
            stack.callback(fleet.stop)
            own_rows = stack.enter_context(psycopg.connect(audited.superuser_url, autocommit=True))
            chance = random.Random(SEED + number)  # noqa: S311  # no secret
            workers.append(Worker(chance, fleet, fragile, standin, issuer, own_rows, may_kill))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda worker: worker.work(TURNS // AT_ONCE), workers))
    text = warm_fork_server.logged(log_size)
    operator.lines = [line for line in map(parse, text.splitlines()) if line]
    found = operator.reconcile(begun - timedelta(seconds=1), datetime.now(UTC) + timedelta(seconds=1))

    logged = {(line["actor"], line["call_id"]) for line in operator.lines if line.get("message") == "tool call"}
    stored = set(rows.execute("select user_id, call_id from tool_call").fetchall())
    named = {(mismatch["person"], mismatch["record"]["call_id"]) for mismatch in found.mismatches}
    lost = sum(worker.lost for worker in workers)
    kills, killed = sum(worker.kills for worker in workers), set[str]().union(*(worker.killed for worker in workers))
    report(f"reconcile: {TURNS} turns, seed {SEED}, {kills} kills, {lost} lost answers: {found.summary}")
    others = [mismatch for mismatch in found.mismatches if mismatch["problem"] != "record without a line"]
    assert others == [], f"RECONCILE_SEED={SEED}: {json.dumps(others[:5], default=str, indent=1)}"
    assert named == stored - logged, f"RECONCILE_SEED={SEED}"
    assert any(line.get("outcome") == "unknown" for line in operator.lines)
    assert {person for person, _ in named} <= killed
    assert bool(may_kill) <= len(named) <= kills
    assert found.checked == len(stored | logged)


def parse(text: str) -> Line | None:
    """Return a line of the JSON log."""
    return json.loads(text) if text.startswith("{") else None
