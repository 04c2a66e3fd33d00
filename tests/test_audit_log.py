"""`make audit-log` finds calls by person, conversation, turn, tool, outcome and time, in the logs or the database."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
from botocore.stub import Stubber
from moto import mock_aws

from dev.postgres import Postgres
from operations import audit_log, deployment, log_source
from operations.log_source import AUDIT, MOST_RESULTS, InsightsLog, OperatorError, Query, ScannedLog
from tests.audited import AuditedDatabase, Line, audit_line
from tests.conftest import ROOT

Show = Callable[..., list[dict[str, Any]]]
DAY = datetime(2026, 3, 10, tzinfo=UTC)
NOON = DAY + timedelta(hours=12)
RANGE = ("--since", "2026-03-10", "--until", "2026-03-11")


@pytest.fixture(scope="module")
def audited(server: Postgres) -> AuditedDatabase:
    """Return a database of this file's own."""
    return AuditedDatabase(server)


@pytest.fixture(scope="module")
def calls(audited: AuditedDatabase) -> list[Line]:
    """Store ten calls, two of them at the same millisecond."""
    lines = [
        audit_line(
            NOON + timedelta(minutes=number // 2),
            actor="ann" if number % 3 else "bob",
            tool="delete_task" if number % 2 else "add_task",
            outcome="error" if number == 4 else "ok",
            door="mcp" if number == 7 else "chat",
        )
        for number in range(10)
    ]
    for number, line in enumerate(lines):
        audited.store(line, NOON + timedelta(minutes=number // 2))
    return lines


@pytest.fixture(params=["log", "database"])
def show(
    request: pytest.FixtureRequest,
    audited: AuditedDatabase,
    calls: list[Line],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Show:
    """Return a function that runs the command over the calls in the log or the database, and gives its JSON lines."""
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in calls))
    monkeypatch.setenv("AUDIT_DATABASE_URL", audited.audit_url)
    source = ["--log", str(file)] if request.param == "log" else ["--from-database"]

    def run(*arguments: str) -> list[dict[str, Any]]:
        assert audit_log.main(["--json", *source, *RANGE, *arguments]) == 0
        captured = capsys.readouterr()
        run.__dict__["ending"] = captured.err
        return [json.loads(line) for line in captured.out.splitlines()]

    return run


def ids(found: list[dict[str, Any]]) -> set[str]:
    """Return the ids of the calls."""
    return {entry["call_id"] for entry in found}


@pytest.mark.parametrize(
    ("option", "name", "value"),
    [
        ("--person", "actor", "bob"),
        ("--tool", "tool", "delete_task"),
        ("--outcome", "outcome", "error"),
    ],
)
def test_calls_are_found_by_a_value(show: Show, calls: list[Line], option: str, name: str, value: str) -> None:
    """The log and the database give the same answer."""
    assert ids(show(option, value)) == {line["call_id"] for line in calls if line[name] == value}


@pytest.mark.parametrize(("option", "name"), [("--turn", "turn_id"), ("--conversation", "conversation_id")])
def test_calls_are_found_by_an_id(show: Show, calls: list[Line], option: str, name: str) -> None:
    """An id of one call finds that call."""
    assert ids(show(option, calls[3][name])) == {calls[3]["call_id"]}


def test_both_sources_show_the_same_fields(show: Show, calls: list[Line]) -> None:
    """All ids, the time, the entry point, the outcome and the time that it took."""
    (entry,) = show("--turn", calls[7]["turn_id"])
    expected = {"time": "2026-03-10 12:03:00.000+00:00", "person": "ann"}
    same = ("door", "tool", "outcome", "duration_ms", "turn_id", "conversation_id", "call_id", "request_id")
    expected |= {name: calls[7][name] for name in same}
    assert {name: entry[name] for name in expected} == expected


def test_times_are_in_the_operator_s_zone(show: Show) -> None:
    """A time without an offset is read in it, too."""
    found = show("--timezone", "Asia/Tokyo", "--since", "2026-03-10T21:04")
    assert [entry["time"] for entry in found] == ["2026-03-10 21:04:00.000+09:00"] * 2


def test_pages_follow_each_other(show: Show, calls: list[Line]) -> None:
    """Each call is on one page, also where a page ends between two calls of the same millisecond."""
    pages, cursor = [], list[str]()
    while True:
        pages.append(show("--limit", "3", *cursor))
        ending = show.__dict__["ending"]
        if "no more" in ending:
            break
        cursor = ["--cursor", ending.split("--cursor ")[1].strip()]
    assert [len(page) for page in pages] == [3, 3, 3, 1]
    assert set().union(*map(ids, pages)) == {line["call_id"] for line in calls}


class TestTable:
    """The output for a person."""

    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
        code = audit_log.main([*RANGE, *arguments])
        captured = capsys.readouterr()
        return [str(code), *captured.out.splitlines(), *captured.err.splitlines()]

    def test_its_columns_are_aligned(
        self, calls: list[Line], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It shows numbers and choices of the arguments, which the log has."""
        (tmp_path / "log").write_text("".join(json.dumps(line) + "\n" for line in calls[:2]))
        code, head, first, second, ending = self.run(capsys, "--log", str(tmp_path / "log"))
        assert code == "0"
        assert head.split() == [
            "time",
            "person",
            "door",
            "tool",
            "arguments",
            "outcome",
            "duration",
            "ms",
            "turn",
            "id",
        ]
        assert first.index("delete_task") == second.index("add_task") == head.index("tool")
        assert "task_id=7" in first
        assert "2 calls from 2026-03-10 00:00:00.000+00:00 to 2026-03-11 00:00:00.000+00:00; no more" in ending

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (("--cursor", "x"), "--cursor is not one that a page printed"),
            (("--outcome", "unknown", "--from-database"), "only the log has `unknown`"),
            (("--log", "/nowhere"), "/nowhere cannot be read: No such file"),
            (("--since", "tomorrow"), "'tomorrow' is not a time"),
        ],
    )
    def test_a_mistake_is_one_line(
        self, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str
    ) -> None:
        """The exit code is 2."""
        code, line = self.run(capsys, *arguments)
        assert code == "2"
        assert reason in line

    def test_without_a_database_it_says_what_to_set(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """No `make dev` runs, and there is no URL."""
        monkeypatch.setenv("TASKCHAT_DEV_DIR", str(tmp_path))
        monkeypatch.delenv("AUDIT_DATABASE_URL", raising=False)
        _, line = self.run(capsys, "--from-database")
        assert line == "error: Set AUDIT_DATABASE_URL to the auditor's role, or start make dev."


class TestStrangeLines:
    """A file may hold anything. The command ends with a line about it, and not with a traceback."""

    def run(self, tmp_path: Path, *lines: str) -> int:
        """Run the command over these lines."""
        file = tmp_path / "log.jsonl"
        file.write_text("".join(line + "\n" for line in lines))
        return audit_log.main(["--log", str(file), *RANGE])

    @pytest.mark.parametrize(
        ("name", "value"), [("actor", None), ("turn_id", {"a": 1}), ("call_id", 7), ("tool_arguments", [1])]
    )
    def test_a_line_without_its_ids_is_named(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, value: Any
    ) -> None:
        """To skip it would hide a call."""
        assert self.run(tmp_path, json.dumps(audit_line(NOON)), json.dumps(audit_line(NOON, **{name: value}))) == 2
        expected = f"error: The audit line of 2026-03-10 12:00:00,000+0000 has no valid {name}.\n"
        assert capsys.readouterr().err.endswith(expected)

    @pytest.mark.parametrize("opening", ["[", '{"a":'])
    def test_text_that_is_nested_deep_is_skipped(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], opening: str
    ) -> None:
        """It is no line of the functions."""
        assert self.run(tmp_path, opening * 100_000, json.dumps(audit_line(NOON))) == 0
        assert "1 calls" in capsys.readouterr().err

    def test_no_field_steers_the_terminal(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Control characters are shown, and letters of any language stay."""
        line = audit_line(NOON, tool="\x1b[2J\u202e", actor="Jos\u00e9", tool_arguments={"x": "\x07\n"})
        assert self.run(tmp_path, json.dumps(line)) == 0
        (shown,) = capsys.readouterr().out.splitlines()[1:]
        assert r"\x1b[2J\u202e" in shown
        assert r"x=\x07\n" in shown
        assert "Jos\u00e9" in shown


QUERY = Query(DAY, DAY + timedelta(days=1), (AUDIT,), {"actor": ("ann",)})


@pytest.fixture
def insights() -> Iterator[tuple[InsightsLog, Stubber]]:
    """Return Logs Insights behind botocore's own stub, which checks each request against AWS's description."""
    client = boto3.client("logs", region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="x")
    with Stubber(client) as stub:
        yield InsightsLog(client, ("chat", "mcp"), poll_seconds=0), stub
        stub.assert_no_pending_responses()


def add_query(stub: Stubber, since: datetime, until: datetime, lines: list[Line]) -> None:
    """Expect one query, and answer it after it was asked for twice."""
    asked = {
        "logGroupNames": ["chat", "mcp"],
        "startTime": int(since.timestamp()),
        "endTime": int(until.timestamp()) - 1,
        "queryString": log_source.query_string(QUERY),
        "limit": MOST_RESULTS,
    }
    stub.add_response("start_query", {"queryId": "q"}, asked)
    stub.add_response("get_query_results", {"status": "Running", "results": []}, {"queryId": "q"})
    results = [[{"field": "@message", "value": json.dumps(line)}] for line in lines]
    stub.add_response("get_query_results", {"status": "Complete", "results": results}, {"queryId": "q"})


def test_insights_is_asked_for_the_lines(insights: tuple[InsightsLog, Stubber]) -> None:
    """The query names the schema and the values, and the answer's lines are read."""
    log, stub = insights
    line = audit_line(NOON)
    add_query(stub, QUERY.since, QUERY.until, [line])
    assert list(log.read(QUERY)) == [line]
    assert log_source.query_string(QUERY).splitlines() == [
        "fields @timestamp, @message",
        r"| filter schema like /^(taskchat\.audit)\//",
        '| filter actor in ["ann"]',
        "| sort @timestamp asc",
    ]


def test_a_range_that_is_too_large_is_divided(insights: tuple[InsightsLog, Stubber]) -> None:
    """An answer of 10,000 lines may lack some: both halves are asked for."""
    log, stub = insights
    first, second = audit_line(NOON - timedelta(hours=1)), audit_line(NOON + timedelta(hours=1))
    add_query(stub, QUERY.since, QUERY.until, [first] * MOST_RESULTS)
    add_query(stub, QUERY.since, NOON, [first])
    add_query(stub, NOON, QUERY.until, [second])
    assert list(log.read(QUERY)) == [first, second]


def test_a_failed_query_is_reported(insights: tuple[InsightsLog, Stubber]) -> None:
    """The error has CloudWatch's status."""
    log, stub = insights
    stub.add_response("start_query", {"queryId": "q"})
    stub.add_response("get_query_results", {"status": "Timeout", "results": []})
    with pytest.raises(OperatorError, match="ended with Timeout"):
        list(log.read(QUERY))


def test_a_value_cannot_change_the_query() -> None:
    """Quotes are escaped, and control characters refused."""
    query = Query(DAY, NOON, (AUDIT,), {"actor": ('x"] or 1 = 1 | ["\\',)})
    assert r'| filter actor in ["x\"] or 1 = 1 | [\"\\"]' in log_source.query_string(query)
    with pytest.raises(OperatorError, match="cannot be printed"):
        log_source.query_string(Query(DAY, NOON, (AUDIT,), {"actor": ("x\ny",)}))


@mock_aws
def test_log_groups_are_scanned_without_insights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of both groups come in order of time, without those of other schemas and other values."""
    now = datetime.now(UTC).replace(microsecond=0)
    client = boto3.client("logs", region_name="eu-west-1")
    lines = [audit_line(now + timedelta(seconds=second)) for second in range(4)]
    for number, group in enumerate(("chat", "mcp")):
        client.create_log_group(logGroupName=group)
        client.create_log_stream(logGroupName=group, logStreamName="s")
        written = [lines[number], lines[number + 2], audit_line(now, actor="bob"), {"schema": "taskchat.usage/1"}]
        events = [{"timestamp": int(now.timestamp() * 1000), "message": json.dumps(line)} for line in written]
        client.put_log_events(logGroupName=group, logStreamName="s", logEvents=events)
    query = Query(now, now + timedelta(minutes=1), (AUDIT,), {"actor": ("ann",)})
    assert list(ScannedLog(client, ("chat", "mcp")).read(query)) == lines


class TestDeployment:
    """`--env` finds the stack by samconfig.toml."""

    def test_the_stack_gives_the_log_groups(self) -> None:
        """They are outputs, and the metrics' dimension comes from a parameter."""
        client = boto3.client(
            "cloudformation", region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="x"
        )
        outputs = {"ChatLogGroup": "chat-logs", "McpToolsLogGroup": "mcp-logs", "ApiUrl": "https://x"}
        stack = {
            "StackName": "taskchat-prod",
            "CreationTime": DAY,
            "StackStatus": "CREATE_COMPLETE",
            "Outputs": [{"OutputKey": key, "OutputValue": value} for key, value in outputs.items()],
            "Parameters": [{"ParameterKey": "EnvironmentName", "ParameterValue": "prod"}],
        }
        with Stubber(client) as stub:
            stub.add_response("describe_stacks", {"Stacks": [stack]}, {"StackName": "taskchat-prod"})
            found = deployment.describe(None, client, "taskchat-prod")
        assert (found.log_groups, found.service) == (("chat-logs", "mcp-logs"), "taskchat-prod")

    def test_the_stack_s_name_is_in_samconfig(self) -> None:
        """The region is AWS's own setting, unless the table has one."""
        name, _ = deployment.read_stack("prod", deployment.SAMCONFIG)
        assert name == "taskchat-prod"

    def test_an_unknown_environment_is_named(self, tmp_path: Path) -> None:
        """The error has the table that is missing."""
        with pytest.raises(OperatorError, match=r"no \[staging.deploy.parameters\]"):
            deployment.read_stack("staging", deployment.SAMCONFIG)
        with pytest.raises(OperatorError, match="There is no"):
            deployment.read_stack("prod", tmp_path / "samconfig.toml")


def test_records_are_read_page_by_page(
    audited: AuditedDatabase, calls: list[Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page ends between two records of the same time, and none is lost or repeated."""
    from operations import call_records
    from taskchat.database.engine import create_engine_for

    monkeypatch.setattr(call_records, "PAGE", 3)
    engine = create_engine_for(lambda: audited.audit_url)
    found = list(call_records.CallRecords(engine).read(DAY, DAY + timedelta(days=1)))
    engine.dispose()
    assert sorted(row["call_id"] for row in found) == sorted(line["call_id"] for line in calls)
    assert [row["created_at"] for row in found] == sorted(row["created_at"] for row in found)


def test_the_index_finds_the_records_of_a_time(audited: AuditedDatabase) -> None:
    """The auditor's role may use the index on the time."""
    with psycopg.connect(audited.audit_url) as connection:
        connection.execute("set enable_seqscan = off")
        plan = connection.execute("explain select call_id from tool_call where created_at > now()").fetchall()
    assert "tool_call_created_idx" in str(plan)


def test_a_reader_that_has_enough_ends_it(tmp_path: Path) -> None:
    """`head` closes the pipe long before the last line."""
    file = tmp_path / "log.jsonl"
    file.write_text("".join(f"{json.dumps(audit_line(NOON))}\n" for _ in range(3_000)))
    command = [sys.executable, "-m", "operations.audit_log", "--log", str(file), "--json", "--limit", "3000", *RANGE]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:  # noqa: S603
        assert running.stdout
        assert running.stderr
        assert running.stdout.readline()
        running.stdout.close()
        assert (running.wait(), running.stderr.read()) == (0, b"")
