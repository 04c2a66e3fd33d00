"""`make doctor` finds each fault of a deployment, says how to mend it, and prints no secret."""

import io
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import boto3
import httpx2
import psycopg
import pytest
from moto import mock_aws
from starlette.middleware.cors import CORSMiddleware

from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from operations import doctor
from operations.checks.deployment import Deployment
from operations.checks.settings import bits
from tests.conftest import ROOT, migrate, reset_processes, serving, variables
from tests.test_migrations import EmptyDatabase

Rows = psycopg.Connection[dict[str, Any]]
NEON = "ep-cool-name-123456-pooler.eu-central-1.aws.neon.tech"
NEON_URL = f"postgresql://taskchat_app:{'5f' * 12}a1b2c3d4@{NEON}/neondb?sslmode=require&channel_binding=require"


def no_secret(arn: str) -> str:
    raise AssertionError(arn)


@dataclass
class Report:
    """The lines of a run, by check."""

    lines: dict[str, str] = field(default_factory=dict)

    def write(self, text: str) -> None:
        self.lines[text[:11].strip()] = text[11:].strip()

    @property
    def wrong(self) -> dict[str, str]:
        return {name: line for name, line in self.lines.items() if line.startswith("WRONG")}


def examine(deployment: Deployment, *names: str) -> Report:
    """Run these checks, or all."""
    report = Report()
    checks = {name: doctor.CHECKS[name] for name in names} if names else doctor.CHECKS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "CHECKS", checks)
        assert doctor.examine(deployment, report.write) == (not report.wrong)
    return report


@pytest.fixture(scope="module")
def key_sets() -> Iterator[str]:
    """Serve a key set, an answer that is none, and a 500, and give the address."""

    class Handler(BaseHTTPRequestHandler):
        bodies: ClassVar[dict[str, bytes]] = {
            "/none": b"<html>",
            "/useless": b'{"keys": [{"kty": "oct", "kid": "k", "k": "AAAA"}]}',
        }

        def do_GET(self) -> None:
            body = self.bodies.get(self.path)
            self.send_response(200 if body else 500)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: Any) -> None: ...

    Handler.bodies["/jwks"] = Issuer.new().jwks_json.encode()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Setting:
    """A healthy deployment that a breakage changes."""

    values: dict[str, str]
    server: Postgres
    pooler: PgBouncer
    rows: Rows
    standin: StandIn
    clock: Callable[[], float] = time.time
    region: str | None = None
    undo: list[str] = field(default_factory=list)

    def deployment(self) -> Deployment:
        return Deployment(self.values, no_secret, clock=self.clock, region=self.region)

    def sql(self, do: str, undo: str) -> None:
        """Run a statement as the superuser, and another one after the test."""
        self.undo.append(undo)
        self.rows.execute(do)

    def url(self, **parts: str) -> None:
        """Replace texts in DATABASE_URL."""
        for old, new in parts.items():
            self.values["DATABASE_URL"] = self.values["DATABASE_URL"].replace(old, new)


@pytest.fixture
def healthy(
    server: Postgres, pooler: PgBouncer, rows: Rows, standin: StandIn, issuer: Issuer, key_sets: str
) -> Iterator[Setting]:
    """Describe a deployment of real parts on this machine."""
    values = variables(pooler.url(server.app_url), standin, issuer)
    del values["AUTH_JWKS_JSON"]
    values |= {"AUTH_JWKS_URL": f"{key_sets}/jwks", "AUTH_ISSUER": key_sets, "AUTH_AUDIENCE": key_sets}
    values |= {"MIGRATION_DATABASE_URL": server.owner_url}
    setting = Setting(values, server, pooler, rows, standin)
    yield setting
    for statement in reversed(setting.undo):
        rows.execute(statement)


def test_a_healthy_deployment_has_nothing_to_mend(healthy: Setting) -> None:
    """Every check runs, or says why it cannot run here."""
    report = examine(healthy.deployment())
    assert report.wrong == {}
    assert list(report.lines) == list(doctor.CHECKS)
    skipped = {name for name, line in report.lines.items() if line.startswith("skipped")}
    assert skipped == {"secret", "endpoint", "region", "retention", "API", "MCP", "CORS"}


def test_no_line_holds_a_secret(healthy: Setting) -> None:
    """No password and no key is printed, whether the checks pass or fail."""
    password = healthy.server.passwords["taskchat_app"]
    printed = str(examine(healthy.deployment()).lines)
    healthy.values["OPENAI_API_KEY"] = "sk-secret-of-the-test"
    healthy.values["DATABASE_URL"] = healthy.values["DATABASE_URL"].replace("@", "wrong@")
    healthy.standin.fault("unauthorized", times=None)
    printed += str(examine(healthy.deployment()).lines)
    assert not [secret for secret in (password, "sk-secret", "sk-stand-in") if secret in printed]


BREAKAGES: dict[str, tuple[str, Callable[[Setting], Any], str]] = {
    "no issuer": ("settings", lambda it: it.values.pop("AUTH_ISSUER"), "AUTH_ISSUER not set"),
    "no key set": ("settings", lambda it: it.values.pop("AUTH_JWKS_URL"), "neither AUTH_JWKS_URL nor"),
    "no number": ("settings", lambda it: it.values.update(TURN_BURST="many"), "TURN_BURST: Input should be"),
    "no database URL": ("settings", lambda it: it.values.update(DATABASE_URL="mysql://a:b@c/d"), "DATABASE_URL: Value"),
    "direct endpoint": (
        "endpoint",
        lambda it: it.values.update(DATABASE_URL=NEON_URL.replace("-pooler", "")),
        "names the direct endpoint",
    ),
    "pooled migrations": (
        "endpoint",
        lambda it: it.values.update(MIGRATION_DATABASE_URL=NEON_URL),
        "MIGRATION_DATABASE_URL names the pooled",
    ),
    "clear text": (
        "TLS",
        lambda it: it.values.update(DATABASE_URL=NEON_URL.replace("=require", "=disable")),
        "clear text",
    ),
    "weak password": (
        "passwords",
        lambda it: it.values.update(DATABASE_URL="postgresql://u:hunter2@h/d"),
        "DATABASE_URL has less than 60 bits",
    ),
    "another region": (
        "region",
        lambda it: (it.values.update(DATABASE_URL=NEON_URL), setattr(it, "region", "us-east-1")),
        "the database is in eu-central-1, and the functions in us-east-1",
    ),
    "wrong password": (
        "database",
        lambda it: it.values.update(DATABASE_URL=it.server.app_url.replace(it.server.passwords["taskchat_app"], "x")),
        "refuses the login (28P01)",
    ),
    "wrong password at the pooler": (
        "database",
        lambda it: it.url(**{it.server.passwords["taskchat_app"]: "x"}),
        "refuses the connection (08P01)",
    ),
    "unknown role": ("database", lambda it: it.url(taskchat_app="nobody"), "refuses the connection (08P01)"),
    "untrusted certificate": (
        "database",
        lambda it: it.values.update(DATABASE_URL=it.values["DATABASE_URL"].partition("&sslrootcert")[0]),
        "certificate is not trusted",
    ),
    "clear text refused": (
        "database",
        lambda it: it.values.update(DATABASE_URL=it.values["DATABASE_URL"].partition("?")[0] + "?sslmode=disable"),
        "refuses the connection",
    ),
    "channel binding": (
        "database",
        lambda it: it.values.update(DATABASE_URL=it.values["DATABASE_URL"] + "&channel_binding=require"),
        "no connection (InterfaceError)",
    ),
    "no server": (
        "database",
        lambda it: it.url(**{str(it.pooler.port): "1"}),
        "no connection (ConnectionRefusedError)",
    ),
    "no such database": (
        "database",
        lambda it: it.values.update(DATABASE_URL=it.server.app_url.replace("/taskchat?", "/nothing?")),
        "(3D000)",
    ),
    "no pooler": (
        "pooler",
        lambda it: it.values.update(DATABASE_URL=it.server.app_url.replace("127.0.0.1", "127.1")),
        "Postgres itself answers",
    ),
    "migrations through the pooler": (
        "migrations",
        lambda it: it.values.update(MIGRATION_DATABASE_URL=it.pooler.url(it.server.owner_url)),
        "leads to a pooler",
    ),
    "BYPASSRLS": (
        "role",
        lambda it: it.sql("alter role taskchat_app bypassrls", "alter role taskchat_app nobypassrls"),
        "does not bind the role",
    ),
    "the owner": ("role", lambda it: it.values.update(DATABASE_URL=it.server.owner_url), "does not bind the role"),
    "an older schema": (
        "schema",
        lambda it: it.sql(
            "update alembic_version set version_num = '0001'",
            f"update alembic_version set version_num = '{revision(it)}'",  # noqa: S608  (the test's own text)
        ),
        "the schema is at 0001, and this code at",
    ),
    "policy off": (
        "policies",
        lambda it: it.sql(
            "alter table message no force row level security", "alter table message force row level security"
        ),
        "the policies of message",
    ),
    "policy open": (
        "policies",
        lambda it: it.sql("create policy open on message using (true)", "drop policy open on message"),
        "the policies of message",
    ),
    "policy changed": (
        "policies",
        lambda it: it.sql(
            "alter policy owner_only on message using (true)",
            "alter policy owner_only on message"
            " using (user_id = (select nullif(current_setting('app.user_id', true), '')))",
        ),
        "the policies of message",
    ),
    "a right too many": (
        "rights",
        lambda it: it.sql("grant truncate on message to taskchat_app", "revoke truncate on message from taskchat_app"),
        "other rights than declared: truncate on message",
    ),
    "a right too few": (
        "rights",
        lambda it: it.sql("revoke delete on message from taskchat_app", "grant delete on message to taskchat_app"),
        "delete on message",
    ),
    "a column too many": (
        "rights",
        lambda it: it.sql(
            "grant update (outcome) on tool_call to taskchat_app",
            "revoke update (outcome) on tool_call from taskchat_app",
        ),
        "update on tool_call",
    ),
    "one role for both": (
        "retention",
        lambda it: it.values.update(RETENTION_DATABASE_URL=it.values["DATABASE_URL"]),
        "it is the runtime role",
    ),
    "no policy for retention": (
        "retention",
        lambda it: (
            it.sql("create role tidy login password 'x'", "drop role tidy"),
            it.values.update(
                RETENTION_DATABASE_URL=f"postgresql://tidy:x@127.0.0.1:{it.server.port}/taskchat?sslmode=disable"
            ),
        ),
        "no policy opens old rows",
    ),
    "an owner for retention": (
        "retention",
        lambda it: it.values.update(RETENTION_DATABASE_URL=it.server.owner_url),
        "does not bind it",
    ),
    "clocks": ("clock", lambda it: setattr(it, "clock", lambda: time.time() + 90), "differ by 90 s"),
    "key set down": ("key set", lambda it: it.values.update(AUTH_JWKS_URL="http://127.0.0.1:1/"), "cannot be fetched"),
    "key set fails": ("key set", lambda it: move(it, "/gone"), "the server answers 500"),
    "no key set there": ("key set", lambda it: move(it, "/none"), "not a key set"),
    "useless keys": ("key set", lambda it: move(it, "/useless"), "no key in it can verify"),
    "another issuer": (
        "key set",
        lambda it: it.values.update(AUTH_ISSUER="https://other.example.com"),
        "AUTH_ISSUER and",
    ),
    "model's key": ("model", lambda it: it.standin.fault("unauthorized", times=None), "the key is refused (401)"),
    "model's quota": ("model", lambda it: it.standin.fault("quota", times=None), "quota is used up (429)"),
    "model's answer": ("model", lambda it: it.standin.fault("malformed_body", times=None), "AnswerUnreadable"),
    "model refuses the request": (
        "model",
        lambda it: it.standin.fault("context_length_exceeded", times=None),
        "the request is refused (400)",
    ),
    "model without tools": ("model", lambda it: it.standin.fault("refusal", times=None), "calls no tool"),
    "no such model path": ("model", lambda it: it.values.update(OPENAI_BASE_URL=it.standin.base_url + "/x"), "(404)"),
    "model down": ("model", lambda it: it.values.update(OPENAI_BASE_URL="http://127.0.0.1:1/v1"), "APIConnectionError"),
}
"""Each fault: the check that finds it, its injection, and the beginning of its line."""

ON_CONNECTIONS = ("pooler", "role", "schema", "policies", "rights", "clock")
"""Checks that use the connections of `database` and `migrations`."""


def revision(setting: Setting) -> str:
    return str(setting.rows.execute("select version_num from alembic_version").fetchone()["version_num"])  # type: ignore[index]


def move(setting: Setting, path: str) -> None:
    setting.values["AUTH_JWKS_URL"] = setting.values["AUTH_ISSUER"] + path


@pytest.mark.parametrize("name", BREAKAGES)
def test_each_fault_has_a_line_that_says_how_to_mend_it(healthy: Setting, name: str) -> None:
    """The check reports the fault, and what to do."""
    check, break_it, text = BREAKAGES[name]
    break_it(healthy)
    before = ["database", "migrations"] if check in ON_CONNECTIONS else []
    line = examine(healthy.deployment(), *before, check).wrong[check]
    assert text in line
    assert ". To mend it: " in line


def test_every_check_has_a_fault_that_it_finds() -> None:
    """Latency is only shown. The checks of the secret, the API, MCP and CORS have tests of their own below."""
    tested_below = {"secret", "API", "MCP", "CORS", "latency"}
    assert {check for check, *_ in BREAKAGES.values()} | tested_below == set(doctor.CHECKS)


def test_a_neon_deployment_passes_the_checks_of_its_address(healthy: Setting) -> None:
    """These checks read the URL only."""
    healthy.values["DATABASE_URL"], healthy.region = NEON_URL, "eu-central-1"
    report = examine(healthy.deployment(), "endpoint", "TLS", "passwords", "region")
    assert [line.split()[0] for line in report.lines.values()] == ["ok"] * 4


def test_without_a_database_url_no_password_is_called_strong() -> None:
    """An empty environment has none to estimate."""
    assert examine(Deployment({}, lambda _arn: ""), "passwords").lines["passwords"].startswith("skipped")


def test_the_retention_role_of_migrate_is_right(healthy: Setting, server: Postgres) -> None:
    """`make migrate` makes it in an empty database."""
    empty = EmptyDatabase(server)
    retention = empty.app_url.replace("app_", "tidy_", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETENTION_DATABASE_URL", retention)
        assert migrate(empty.owner_url, empty.app_url).returncode == 0
    healthy.values |= {"DATABASE_URL": empty.app_url, "RETENTION_DATABASE_URL": retention}
    assert examine(healthy.deployment(), "database", "retention").wrong == {}


def test_a_schema_without_migrations_is_wrong(healthy: Setting, server: Postgres) -> None:
    """The owner's database is empty: nobody has run `make migrate`."""
    empty = EmptyDatabase(server)
    healthy.values |= {"DATABASE_URL": empty.owner_url, "MIGRATION_DATABASE_URL": empty.owner_url}
    report = examine(healthy.deployment(), "database", "schema", "policies", "rights")
    assert set(report.wrong) == {"schema", "policies", "rights"}
    assert "no revision" in report.wrong["schema"]


def test_a_password_of_openssl_is_strong_enough() -> None:
    """`openssl rand -hex 24` gives 48 hexadecimal digits."""
    assert bits("0123456789abcdef" * 3) == 192
    assert bits("0" * 48) < 60
    assert bits("correct") < 60


class TestServices:
    """The API and the MCP endpoint answer at an address."""

    @pytest.fixture
    def setting(self, healthy: Setting, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
        """Set the environment for the functions that this process serves."""
        for name, value in healthy.values.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("TURN_BURST", "0")
        yield healthy
        reset_processes()

    def serve_mcp(self, setting: Setting, monkeypatch: pytest.MonkeyPatch, resource: str) -> Report:
        """Run the check against the MCP endpoint, which serves `resource`."""
        from mcp_tools.app import app

        with serving(app) as address:
            httpx2.get(address)  # it is answered after the start, which reads the settings too
            monkeypatch.setenv("MCP_RESOURCE_URL", resource.format(address))
            reset_processes()
            setting.values["MCP_RESOURCE_URL"] = f"{address}/mcp"
            deployment = setting.deployment()
            deployment.url = address
            return examine(deployment, "MCP")

    def test_a_deployment_is_right(self, setting: Setting) -> None:
        """It answers, refuses a request without a token, and admits an allowed page."""
        from chat.app import app

        setting.values["CORS_ORIGINS"] = "https://app.example.com"
        gateway = CORSMiddleware(app, allow_origins=["https://app.example.com"], allow_methods=["POST"])
        with serving(gateway) as address:
            deployment = setting.deployment()
            deployment.url = address
            assert examine(deployment, "API", "CORS").wrong == {}
        with serving(app) as address:
            deployment.url = address
            assert (
                "a preflight request of https://app.example.com is refused" in examine(deployment, "CORS").wrong["CORS"]
            )

    def test_another_server_is_not_the_api(self, setting: Setting) -> None:
        """The server of the key set answers neither route."""
        deployment = setting.deployment()
        deployment.url = setting.values["AUTH_ISSUER"]
        assert "/health answers 500" in examine(deployment, "API").wrong["API"]
        deployment.url = "http://127.0.0.1:1"
        assert "no answer: ConnectError" in examine(deployment, "API").wrong["API"]

    def test_the_mcp_endpoint_is_right(self, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
        """It serves the resource that the settings name."""
        assert self.serve_mcp(setting, monkeypatch, "{}/mcp").wrong == {}

    def test_an_mcp_endpoint_of_another_address_is_wrong(
        self, setting: Setting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A deployment without McpResourceUrl of its own answers 421."""
        report = self.serve_mcp(setting, monkeypatch, "https://api.example.com/mcp")
        assert "421: McpResourceUrl names another host" in report.wrong["MCP"]


class TestOnAws:
    """`make doctor ENV=prod` reads the deployed function and its secret."""

    @pytest.fixture
    def aws(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        """Give a function that deploys the chat function with a secret of this text."""
        monkeypatch.chdir(ROOT)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
        with mock_aws():

            def deploy(text: str, environment: dict[str, str]) -> None:
                secret = boto3.client("secretsmanager").create_secret(Name="taskchat", SecretString=text)["ARN"]
                role = boto3.client("iam").create_role(RoleName="chat", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
                code = io.BytesIO()
                with zipfile.ZipFile(code, "w") as archive:
                    archive.writestr("app.py", "")
                found = environment | {"APP_SECRET_ARN": secret, "POWERTOOLS_SERVICE_NAME": "taskchat-prod"}
                functions, name = boto3.client("lambda"), "taskchat-prod-ChatFunction-1"
                functions.create_function(
                    FunctionName=name,
                    Runtime="python3.13",
                    Role=role,
                    Handler="app.handler",
                    Code={"ZipFile": code.getvalue()},
                    Environment={"Variables": found},
                )
                version = functions.publish_version(FunctionName=name)["Version"]
                functions.create_alias(FunctionName=name, Name="live", FunctionVersion=version)
                newest = {
                    "Variables": {"POWERTOOLS_SERVICE_NAME": "taskchat-prod", "AUTH_ISSUER": "not the one that serves"}
                }
                functions.update_function_configuration(FunctionName=name, Environment=newest)

            yield deploy

    def test_settings_of_function_and_secret_are_read_together(self, aws: Any, healthy: Setting) -> None:
        """The secret has the URL and the key, as in the README."""
        secret = {name: healthy.values.pop(name) for name in ("DATABASE_URL", "OPENAI_API_KEY")}
        aws(json.dumps(secret), healthy.values)
        report = examine(doctor.deployed("prod"), "secret", "settings", "database", "role")
        assert report.wrong == {}
        assert report.lines["secret"].endswith("DATABASE_URL, OPENAI_API_KEY")

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ('{"OPENAI_APIKEY": "sk-1"}', "no setting named OPENAI_APIKEY"),
            ("postgresql://not-json", "it is not a JSON object"),
            ('["DATABASE_URL"]', "it is not a JSON object"),
        ],
    )
    def test_a_wrong_secret_is_found(self, aws: Any, text: str, line: str) -> None:
        """The line has the names of its keys and no value."""
        aws(text, {})
        found = examine(doctor.deployed("prod"), "secret").wrong["secret"]
        assert line in found
        assert "sk-1" not in found

    def test_a_secret_that_is_gone_is_found(self, aws: Any) -> None:
        """The line has AWS's code."""
        aws("{}", {})
        boto3.client("secretsmanager").delete_secret(SecretId="taskchat", ForceDeleteWithoutRecovery=True)
        assert "ResourceNotFoundException" in examine(doctor.deployed("prod"), "secret").wrong["secret"]

    def test_a_deployment_that_is_not_there_is_named(
        self, aws: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The command ends with 1."""
        monkeypatch.setattr("sys.argv", ["doctor", "--env", "prod"])
        assert doctor.main() == 1
        assert "no function of the service taskchat-prod" in capsys.readouterr().out


def test_without_credentials_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends with 1, and without a traceback."""
    for name in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("sys.argv", ["doctor", "--env", "prod"])
    assert doctor.main() == 1
    assert capsys.readouterr().out == "The deployment cannot be read: Unable to locate credentials\n"


def test_the_command_ends_with_one_if_a_check_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without any setting, it says what is missing."""
    monkeypatch.setattr("os.environ", {"PATH": "/bin"})
    monkeypatch.setattr("sys.argv", ["doctor"])
    assert doctor.main() == 1
    assert "WRONG    DATABASE_URL, AUTH_ISSUER, AUTH_AUDIENCE, OPENAI_API_KEY not set" in capsys.readouterr().out
