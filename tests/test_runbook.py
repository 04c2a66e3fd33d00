"""Each entry of docs/runbook.md is true: its fault has the symptom, the query shows it, and the cure mends it."""

import gc
import io
import json
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import boto3
import psycopg
import pytest
from alembic import command
from alembic.config import Config
from moto import mock_aws
from psycopg import sql
from psycopg.rows import dict_row

from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from operations import doctor
from operations.checks.deployment import Deployment
from taskchat.process import get_ready
from taskchat.settings import SettingsError
from testing.gateway import LambdaContext, Response, invoke
from tests import db_assertions
from tests.conftest import ROOT, Logs, Person, reset_processes
from tests.domain import example
from tests.test_mcp_endpoint import McpClient
from tests.test_migrations import EmptyDatabase

PAGE = (ROOT / "docs/runbook.md").read_text()
Rows = psycopg.Connection[dict[str, Any]]
ADD = example.add("buy milk")


def slug(heading: str) -> str:
    """Return the anchor of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


ENTRIES = {
    slug(text.partition("\n")[0]): text
    for text in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    if not text.startswith("Before you begin")
}
ALARMED = {
    *("server-errors", "function-errors", "timeouts", "throttles", "slow-turns", "database-refused", "model-failing"),
    *("tokens", "reconciliation", "retention", "gateway-errors", "cost"),
}
"""Entries that alarms link to."""


@dataclass
class Scene:
    """The local stack, and one entry of the page."""

    name: str
    alice: Person
    standin: StandIn
    logs: Logs
    rows: Rows
    server: Postgres
    pooler: PgBouncer
    patch: pytest.MonkeyPatch
    named: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Return the entry."""
        return ENTRIES[self.name]

    def set(self, **variables: str) -> None:
        """Change variables of the environment, as a deployment does: new processes read them."""
        for name, value in variables.items():
            self.patch.setenv(name, value)
        reset_processes()

    def check_symptom(self, answer: Response) -> None:
        """Check that the page names the status and the problem type."""
        symptom = self.text.partition("**Look.**")[0]
        kind = answer.json["type"].removeprefix("urn:taskchat:problem:")
        assert f"{answer.status} `{kind}`" in symptom
        assert ("retry-after" in answer.headers) <= ("`Retry-After`" in symptom or answer.status == 429)

    def query(self, index: int = 0) -> list[dict[str, Any]]:
        """Run the entry's query over the lines of the log, and check that the lines have each field it uses."""
        queries = [each for each in re.findall(r"```\n(.*?)```", self.text, re.DOTALL) if each.startswith("filter")]
        conditions, _, shown = queries[index].strip().partition(" | ")
        wanted = dict(re.findall(r'([\w.]+) = "([^"]*)"', conditions))
        found = [line for line in self.logs() if wanted.items() <= line.items()]
        for name in re.findall(r"[a-z_]{2,}(?=[,)]|$)", shown.replace("@timestamp", "")):
            assert all(name in line for line in found), name
        return found

    def sql(self, index: int = 0) -> list[dict[str, Any]]:
        """Run a statement of the entry as the page says: as the owner for one person, or as one who reads all rows."""
        text = re.findall(r"```sql\n(.*?)```", self.text, re.DOTALL)[index]
        url = self.server.owner_url if "set app.user_id" in text else self.server.superuser_url
        with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection, connection.cursor() as cursor:
            for statement in filter(str.strip, text.split(";")):
                filled = re.sub(
                    r":'(\w+)'", lambda m: "'{}'".format(str(self.named[m[1]]).replace("'", "''")), statement
                )
                cursor.execute(filled.encode())
            return cursor.fetchall() if cursor.description else []


Exercise = Callable[[Scene], None]
EXERCISES: dict[str, Exercise] = {}


def exercise(name: str) -> Callable[[Exercise], Exercise]:
    def register(function: Exercise) -> Exercise:
        EXERCISES[name] = function
        return function

    return register


@pytest.fixture
def database_url(server: Postgres, pooler: PgBouncer) -> str:
    """Give the pooler's URL."""
    return pooler.url(server.app_url)


@pytest.fixture
def scene(
    request: pytest.FixtureRequest,
    alice: Person,
    standin: StandIn,
    logs: Logs,
    rows: Rows,
    server: Postgres,
    pooler: PgBouncer,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Scene]:
    """Begin with a stack that works."""
    reset_processes()
    person = {"person": alice.id}
    yield Scene(request.param, alice, standin, logs, rows, server, pooler, monkeypatch, person)
    monkeypatch.undo()
    reset_processes()


@pytest.mark.parametrize("scene", ENTRIES, indirect=True)
def test_each_entry_is_true(scene: Scene) -> None:
    """The fault is caused, seen with the page's own query, and mended."""
    EXERCISES[scene.name](scene)


def test_each_entry_has_an_exercise_and_three_parts() -> None:
    """An entry without an exercise is not true yet, and an alarm must not link to nothing."""
    assert set(EXERCISES) == set(ENTRIES)
    assert set(ENTRIES) >= ALARMED
    for text in ENTRIES.values():
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == ["Symptom", "Look", "Do"]


def test_each_link_within_the_documents_leads_to_a_heading() -> None:
    """The page links to its own entries and to sections of other pages."""
    for page, anchor in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", PAGE):
        text = (ROOT / "docs" / page).read_text() if page else PAGE
        assert anchor in map(slug, re.findall(r"^#+ (.*)$", text, re.MULTILINE)), anchor


@exercise("server-errors")
def _server_errors(scene: Scene) -> None:
    scene.rows.execute("alter role taskchat_app bypassrls")
    try:
        scene.check_symptom(scene.alice.say(ADD))
    finally:
        scene.rows.execute("alter role taskchat_app nobypassrls")
    assert "the role in DATABASE_URL" in scene.query()[0]["error"]
    assert scene.alice.say(ADD).status == 200


@exercise("function-errors")
def _function_errors(scene: Scene) -> None:
    from chat.app import ChatProcess, process

    scene.set(DATABASE_URL="")
    with pytest.raises(SettingsError, match="DATABASE_URL"):  # at the start, Lambda logs it and ends the process
        get_ready(ChatProcess(process.toolset))
    scene.set(DATABASE_URL=scene.pooler.url(scene.server.app_url))
    assert scene.alice.say(ADD).status == 200


@exercise("timeouts")
def _timeouts(scene: Scene) -> None:
    scene.standin.fault("hang", match=ADD, seconds=40, after_calls=1)
    answer = scene.alice.say(ADD, key="k", seconds=2.5)
    scene.check_symptom(answer)
    assert [line["turn_id"] for line in scene.query()] == [answer.json["turn_id"]]
    assert scene.alice.say(ADD, key="k").json["tool_calls"] == answer.json["tool_calls"]


@exercise("throttles")
def _throttles(scene: Scene) -> None:
    scene.set(TURN_BURST="1", TURNS_PER_MINUTE="1")
    assert scene.alice.say(ADD).status == 200
    scene.check_symptom(scene.alice.say(ADD))
    assert [line["actor"] for line in scene.query()] == [scene.alice.id]
    scene.set(TURN_BURST="20")
    assert scene.alice.say(ADD).status == 200


@exercise("slow-turns")
def _slow_turns(scene: Scene) -> None:
    scene.standin.fault("slow", match=ADD, seconds=0.5)
    answer = scene.alice.say(ADD)
    (turn,), calls = scene.query(), scene.query(1)
    assert turn["turn_id"] == answer.json["turn_id"]
    assert turn["duration_ms"] > 500 > turn["database_ms"]
    assert max(call["duration_ms"] for call in calls) >= 500


@exercise("database-refused")
def _database_refused(scene: Scene) -> None:
    scene.pooler.stop()
    try:
        scene.check_symptom(scene.alice.say(ADD, key="k", seconds=4))
    finally:
        scene.pooler.restart()
    assert scene.query()[0]["reason"]
    assert scene.alice.say(ADD, key="k").status == 200


@exercise("model-failing")
def _model_failing(scene: Scene) -> None:
    scene.standin.fault("unauthorized", match=ADD, times=None)
    scene.check_symptom(scene.alice.say(ADD, key="k"))
    assert [line["reason"] for line in scene.query()] == ["AuthenticationError 401 invalid_api_key"]
    scene.standin.reset()
    assert scene.alice.say(ADD, key="k").status == 200


@exercise("tokens")
def _tokens(scene: Scene) -> None:
    assert scene.alice.say(ADD).status == 200
    scene.rows.execute("update allowance set model_tokens = 10^9 where user_id = %s", [scene.alice.id])
    assert scene.sql()[0]["user_id"] == scene.alice.id
    scene.set(DAILY_MODEL_TOKENS="1000")
    scene.check_symptom(scene.alice.say(ADD))


@exercise("reconciliation")
def _reconciliation(scene: Scene) -> None:
    assert scene.alice.say(ADD).status == 200
    (line,) = scene.query()
    scene.named |= {"turn": line["turn_id"], "call": line["call_id"]}
    assert scene.sql()[0]["tool"] == line["tool"]
    scene.rows.execute("delete from tool_call where user_id = %s", [scene.alice.id])
    assert scene.sql() == []


def migrate_here() -> None:
    """Run `make migrate` in this process, which has imported everything."""
    command.upgrade(Config(toml_file=ROOT / "pyproject.toml", stdout=io.StringIO()), "head")
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()  # migrations leave their connection to the end of the process


@exercise("retention")
def _retention(scene: Scene) -> None:
    from retention.app import RetentionFailed, handler

    empty = EmptyDatabase(scene.server)
    url = empty.app_url.replace("app_", "tidy_", 1)
    scene.set(RETENTION_DATABASE_URL=url, RETENTION_DAYS="30", DATABASE_URL=empty.app_url)
    scene.set(MIGRATION_DATABASE_URL=empty.owner_url)
    migrate_here()
    role = url.split("//")[1].split(":")[0]
    with psycopg.connect(empty.owner_url, autocommit=True) as owner:
        owner.execute(f"revoke delete on conversation from {role}".encode())
    with pytest.raises(RetentionFailed):
        handler({}, LambdaContext(60))
    assert [line["failed"] for line in scene.query()] == [["conversation"]]
    migrate_here()
    handler({}, LambdaContext(60))
    assert scene.query()[-1]["finished"]


@exercise("gateway-errors")
def _gateway_errors(scene: Scene) -> None:
    from chat.app import handler

    scene.check_symptom(invoke(handler, {"version": "2.0"}))


@exercise("cost")
def _cost(scene: Scene) -> None:
    answer = scene.alice.say(ADD)
    (line,) = scene.query()
    today = scene.sql()[0]
    assert line["turn_id"] == answer.json["turn_id"]
    assert today["input"] >= line["input_tokens"] > 0
    assert today["output"] >= line["output_tokens"] > 0


@exercise("it-did-something-i-did-not-ask")
def _not_asked(scene: Scene) -> None:
    said = scene.alice.say(ADD).json
    delete = example.delete("buy milk")
    scene.alice.say(delete, said["conversation_id"])
    McpClient(scene.alice.mcp_token).request("tools/call", **example.call_add("call mum"))
    found = [(row["door"], row["tool"], row["message"]) for row in scene.sql()]
    chat = [("chat", tool, message) for message in (ADD, delete) for tool in message.tools]
    assert found == [*chat, ("mcp", example.add_tool, None)]
    assert example.rows_of(scene.rows, scene.alice.id) == [example.row("call mum")]
    assert scene.alice.say("Oops, undo that", said["conversation_id"]).status == 200
    assert len(example.rows_of(scene.rows, scene.alice.id)) == 2


@exercise("it-lost-my-message")
def _lost_message(scene: Scene) -> None:
    scene.standin.fault("server_error", match=ADD, times=None, after_calls=1)
    answer = scene.alice.say(ADD, key="k")
    scene.check_symptom(answer)
    scene.named["conversation"] = answer.json["conversation_id"]
    assert [row["role"] for row in scene.sql()] == ["user"]
    scene.standin.reset()
    assert scene.alice.say(ADD, key="k").json["tool_calls"] == answer.json["tool_calls"]
    assert [row["role"] for row in scene.sql()] == ["user", "assistant"]
    assert scene.alice.say(ADD, key="k").headers["idempotent-replayed"] == "true"


@exercise("stuck-conversation")
def _stuck(scene: Scene) -> None:
    conversation = scene.alice.say(ADD).json["conversation_id"]
    scene.named["conversation"] = conversation
    scene.rows.execute(
        "update conversation set turn_id = %s, lease_until = now() + interval '1 hour' where user_id = %s",
        [uuid4(), scene.alice.id],
    )
    scene.check_symptom(scene.alice.say(ADD, conversation))
    assert scene.sql()[0]["remaining"].total_seconds() > 15
    scene.sql(1)
    assert scene.alice.say(ADD, conversation).status == 200


@exercise("mcp-answers-421-or-401")
def _mcp(scene: Scene) -> None:
    scene.set(MCP_RESOURCE_URL="https://other.example.com/mcp")
    scene.check_symptom(McpClient(scene.alice.mcp_token).request("tools/list"))
    scene.set(MCP_RESOURCE_URL="https://api.example.com/mcp")
    assert McpClient(scene.alice.token).request("tools/list").status == 401
    assert McpClient(scene.alice.mcp_token).request("tools/list").status == 200


@exercise("key-set-unreachable")
def _key_set(scene: Scene) -> None:
    scene.set(AUTH_JWKS_JSON="", AUTH_JWKS_URL="http://127.0.0.1:1/jwks")
    scene.check_symptom(scene.alice.say(ADD))
    assert scene.query()[0]["reason"] == "ConnectError"
    scene.set(AUTH_JWKS_JSON=scene.alice.issuer.jwks_json)
    assert scene.alice.say(ADD).status == 200


@exercise("after-a-restore")
def _restored(scene: Scene) -> None:
    first = scene.alice.say(ADD, key="k").json
    scene.named["turn"] = first["turn_id"]
    assert [row["call_id"] for row in scene.sql()] == [call["call_id"] for call in first["tool_calls"]]
    for table in ("tool_call", "message", "conversation", example.table):
        scene.rows.execute(sql.SQL("delete from {} where user_id = %s").format(sql.Identifier(table)), [scene.alice.id])
    assert scene.sql() == []
    again = scene.alice.say(ADD, key="k")
    assert "idempotent-replayed" not in again.headers
    assert [row["call_id"] for row in scene.sql()] == [call["call_id"] for call in again.json["tool_calls"]]


@exercise("secret-rotated-wrongly")
def _wrong_secret(scene: Scene) -> None:
    right = {"DATABASE_URL": scene.pooler.url(scene.server.app_url)}
    wrong = {"DATABASE_URL": right["DATABASE_URL"].replace(scene.server.passwords["taskchat_app"], "wrong")}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        scene.patch.setenv(name, "testing")
    scene.patch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    with mock_aws():
        secrets = boto3.client("secretsmanager")
        made = secrets.create_secret(Name="taskchat", SecretString=json.dumps(right))
        rotated = secrets.put_secret_value(SecretId="taskchat", SecretString=json.dumps(wrong))["VersionId"]
        scene.set(APP_SECRET_ARN=made["ARN"])
        scene.check_symptom(scene.alice.say(ADD, key="k", seconds=6))
        assert re.search("28P01|08P01", scene.query()[0]["reason"])
        secrets.update_secret_version_stage(
            SecretId="taskchat",
            VersionStage="AWSCURRENT",
            MoveToVersionId=made["VersionId"],
            RemoveFromVersionId=rotated,
        )
        earlier = secrets.get_secret_value(SecretId="taskchat", VersionStage="AWSCURRENT")["SecretString"]
        assert json.loads(earlier) == right
        secrets.put_secret_value(SecretId="taskchat", SecretString=earlier)  # moto's default version is the newest one
        reset_processes()
        assert scene.alice.say(ADD, key="k").status == 200


@exercise("schema-older-than-the-code")
def _older_schema(scene: Scene) -> None:
    (before,) = scene.sql()
    scene.rows.execute("alter table message rename column content to text")
    scene.rows.execute("update alembic_version set version_num = '0001'")
    try:
        scene.check_symptom(scene.alice.say(ADD))
        lines: list[str] = []
        values = {"DATABASE_URL": scene.server.app_url, "MIGRATION_DATABASE_URL": scene.server.owner_url}
        checks = {name: doctor.CHECKS[name] for name in ("database", "migrations", "schema")}
        scene.patch.setattr(doctor, "CHECKS", checks)
        assert not doctor.examine(Deployment(values, str), lines.append)
        assert f"the schema is at 0001, and this code at {before['version_num']}" in lines[-1]
    finally:
        scene.rows.execute("alter table message rename column text to content")
        scene.rows.execute("update alembic_version set version_num = %s", [before["version_num"]])
    assert scene.alice.say(ADD).status == 200


@exercise("erasure-request")
def _erasure(scene: Scene) -> None:
    scene.alice.say(ADD)
    assert scene.sql() == [{"messages": 2, "calls": len(ADD.tools)}]
    from chat.app import handler

    assert invoke(handler, scene.alice.own("DELETE", "", confirm="erase")).status == 204
    assert scene.sql() == [{"messages": 0, "calls": 0}]
    assert db_assertions.let_leases_run_out(scene.rows, scene.alice.id) == 0
