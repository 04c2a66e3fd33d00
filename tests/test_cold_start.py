"""A cold start imports no module without use, gets ready in bounded time, and leaves no secret in a snapshot.

Promises: an import loads few modules and leaves the process as it was; a failure while getting ready delays the first
request but does not fail it; a function without a setting does not start; and each process restored from a snapshot
has its own connection, settings and random numbers.
"""

import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from pydantic import BaseModel, TypeAdapter
from starlette.responses import JSONResponse

from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from taskchat import deadline, imports
from taskchat.http.auth import KeySet
from taskchat.process import run_concurrently, start
from testing.gateway import event
from testing.naive import IMPORTS as NAIVE
from tests.conftest import ROOT, Logs, Person, reset_processes, serving, variables
from tests.domain import example

Rows = psycopg.Connection[dict[str, Any]]

PATIENCE = 30
"""Seconds after which a test gives up on a step that takes no time."""

UNUSED = {
    "agents.realtime": "a conversation by voice",
    "agents.voice": "a conversation by voice",
    "boto3": "for deployments with a secret, and only after all other imports",
    "botocore.session": "the same",
    "docket": "FastMCP's queue of jobs",
    "fastmcp.client": "the tools are called directly",
    "keyring": "FastMCP's, for its own clients",
    "openai.resources.beta": "routes that no request calls",
    "requests": "there is one HTTP client",
    "sqlalchemy.dialects.sqlite": "there is one database",
}
"""Modules that no request uses, and the reason."""


def fresh(code: str, **variables: str) -> Any:
    """Run code in a new process with the environment of a test, and return its output, parsed.

    Every warning is an error.
    """
    environment = {
        "PYTHONPATH": f"{ROOT / 'shared'}:{ROOT / 'functions'}",
        "DATABASE_URL": "postgresql://u:p@localhost/d",
        "OPENAI_API_KEY": "sk-any",
        "AUTH_ISSUER": "https://auth.example.com",
        "AUTH_AUDIENCE": "https://auth.example.com",
        "AUTH_JWKS_JSON": '{"keys": []}',
        "MCP_RESOURCE_URL": "https://api.example.com/mcp",
        "POWERTOOLS_METRICS_NAMESPACE": "taskchat",
    }
    no_loop = "ignore:There is no current event loop:DeprecationWarning"  # Mangum asks for one when it is made
    command = [sys.executable, "-W", "error", "-W", no_loop, "-c", code]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def imported(names: str) -> set[str]:
    """Return the modules that a process has after this import."""
    return set(fresh(f"import {names}, sys, json; print(json.dumps(sorted(sys.modules)))"))


@pytest.fixture(scope="module")
def chat() -> set[str]:
    """Return the modules of the chat function."""
    return imported("chat.app")


class TestImports:
    """Imports take most of a cold start."""

    @pytest.mark.parametrize("module", sorted(UNUSED))
    def test_a_module_that_no_request_uses_is_not_imported(self, chat: set[str], module: str) -> None:
        """It would cost time and memory."""
        assert "chat.app" in chat
        assert not {name for name in chat if name == module or name.startswith(f"{module}.")}

    def test_neither_function_imports_many_more_modules_than_their_dependencies_alone(self, chat: set[str]) -> None:
        """The parts of the SDK that a turn needs and FastMCP's server come on top. Our own modules are not counted."""
        naive = imported(NAIVE)
        others = {name for name in chat if name.partition(".")[0] not in {"chat", "taskchat"}}
        assert len(others) <= 1.18 * len(naive)
        assert len(imported("mcp_tools.app")) <= len(naive)

    @pytest.mark.parametrize("package", ["chat", "mcp_tools"])
    def test_an_import_leaves_the_process_as_it_was(self, package: str) -> None:
        """After it, garbage is collected and schemas are built at once."""
        code = f"""
import {package}, gc, json, pydantic
class Built(pydantic.BaseModel): pass
print(json.dumps([gc.isenabled(), gc.get_freeze_count() > 100_000, Built.__pydantic_complete__,
    pydantic.TypeAdapter(list[int]).pydantic_complete, "defer_build" in pydantic.BaseModel.model_config]))
"""
        assert fresh(code) == [True, True, True, True, False]

    def test_a_failed_import_leaves_the_process_as_it_was(self) -> None:
        """The garbage collector is on again."""
        with pytest.raises(ZeroDivisionError), imports.fast():
            1 / 0  # noqa: B018
        assert gc.isenabled()
        assert "defer_build" not in BaseModel.model_config
        assert TypeAdapter(list[int]).pydantic_complete


class TestGettingReady:
    """On Lambda, a process connects before the first request."""

    def test_steps_run_concurrently(self) -> None:
        """Each waits for the other, so neither can end alone."""
        both = threading.Barrier(2, timeout=PATIENCE)
        with deadline.within(PATIENCE):
            run_concurrently(both.wait, both.wait)
        assert not both.broken

    def test_a_step_has_the_common_deadline(self) -> None:
        """Its thread sees the same time left."""
        left: list[float] = []
        with deadline.within(PATIENCE):
            run_concurrently(lambda: left.append(deadline.remaining()))
        assert 0 < left[0] <= PATIENCE

    def test_a_step_that_hangs_is_given_up(self) -> None:
        """The process continues when the time is over."""
        released = threading.Event()
        with deadline.within(0.05):
            run_concurrently(released.wait)
        released.set()

    def test_a_failure_is_logged_by_its_kind(self, logs: Logs) -> None:
        """Its text may hold an address. Nothing else fails: the same call may succeed when a request needs it."""

        def fail() -> None:
            raise ConnectionRefusedError("canary")

        run_concurrently(fail)
        assert [(line["message"], line["reason"]) for line in logs()] == [("not ready ahead", "ConnectionRefusedError")]
        assert "canary" not in json.dumps(logs())

    def test_only_lambda_gets_ready(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tests, migrations and a developer's server import the same modules without connecting."""
        from chat.app import ChatProcess

        monkeypatch.delenv("AWS_LAMBDA_RUNTIME_API", raising=False)
        process = ChatProcess(example.toolset)
        opened = set(vars(process))
        start(process)
        assert set(vars(process)) == opened

    @pytest.mark.parametrize("package", ["chat", "mcp_tools"])
    def test_a_function_without_a_setting_does_not_start(self, package: str) -> None:
        """On Lambda it ends with the name of the missing setting."""
        code = f"""
import json
try:
    import {package}
except RuntimeError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""
        kind, message = fresh(code, AWS_LAMBDA_RUNTIME_API="localhost", AUTH_ISSUER="")
        assert (kind, message) == ("SettingsError", "AUTH_ISSUER is not set.")

    def test_a_function_starts_without_its_database(
        self, environment: None, alice: Person, monkeypatch: pytest.MonkeyPatch, server: Postgres
    ) -> None:
        """Requests get 503 while the database is down, and 200 after that."""
        from chat.app import process

        monkeypatch.setenv("DATABASE_URL", "postgresql://taskchat_app:x@127.0.0.1:1/taskchat?sslmode=disable")
        process.get_ready()
        assert alice.say(example.add("milk")).status == 503
        reset_processes()
        monkeypatch.setenv("DATABASE_URL", server.app_url)
        process.get_ready()
        assert alice.say(example.add("milk")).status == 200

    def test_a_key_set_that_failed_is_fetched_again_at_once(self, issuer: Issuer) -> None:
        """The first request does not wait, as it would after a failed fetch of its own."""
        with publishing(issuer, failures=1) as (url, asked):
            keys = KeySet(url, None)
            keys.fetch_ahead()
            assert keys.find(issuer.kid)
        assert len(asked) == 2

    def test_keys_are_fetched_once(self, issuer: Issuer) -> None:
        """The first request uses those that were fetched before it."""
        with publishing(issuer, failures=0) as (url, asked):
            keys = KeySet(url, None)
            keys.fetch_ahead()
            assert keys.find(issuer.kid)
        assert len(asked) == 1


@contextmanager
def publishing(issuer: Issuer, failures: int) -> Iterator[tuple[str, list[str]]]:
    """Serve the issuer's key set over HTTP, after some failures. Give its address and the requested paths."""
    asked: list[str] = []

    async def publish(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            asked.append(scope["path"])
            answer = JSONResponse(json.loads(issuer.jwks_json), 503 if len(asked) <= failures else 200)
            await answer(scope, receive, send)

    with serving(publish) as url:
        yield f"{url}/jwks", asked


def _first_event(package: str, person: Person) -> dict[str, Any]:
    """Return a request to this function that adds a thing."""
    if package == "chat":
        headers = {"authorization": f"Bearer {person.token}", "content-type": "application/json"}
        return event(
            "POST",
            f"/api/{person.id}/chat",
            headers=headers,
            body=json.dumps({"message": example.add("milk")}).encode(),
        )
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": example.call_add("milk")}
    headers = {"authorization": f"Bearer {person.mcp_token}", "content-type": "application/json"}
    headers |= {"accept": "application/json, text/event-stream"}
    return event("POST", "/mcp", headers=headers, body=json.dumps(message).encode())


@pytest.fixture(scope="module", params=["chat responses", "chat chat_completions", "mcp_tools responses"])
def snapshot(
    request: pytest.FixtureRequest,
    server: Postgres,
    pooler: PgBouncer,
    running_model: StandIn,
    issuer: Issuer,
) -> dict[str, Any]:
    """Run tests/snapshot.py and return its report. The database's address changes before the restore."""
    alice = Person(uuid4().hex, issuer)
    package, model_api = request.param.split()
    known = variables(server.app_url, running_model, issuer, model_api) | {"AWS_LAMBDA_RUNTIME_API": "localhost"}
    moved = {"DATABASE_URL": pooler.url(server.app_url)}
    asked = {"event": _first_event(package, alice), "environment": moved}
    done = subprocess.run(  # noqa: S603  # this Python, and a file of ours
        [sys.executable, "-m", "tests.snapshot", package],
        cwd=ROOT,
        env=os.environ | known,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


class TestSnapshot:
    """A snapshot holds no secret and no connection, and a process that is restored from it works."""

    def test_the_process_was_ready(self, snapshot: dict[str, Any]) -> None:
        """It was connected before the snapshot."""
        assert snapshot["before"]["connected"] == 1

    def test_it_holds_nothing_that_must_be_fresh(self, snapshot: dict[str, Any]) -> None:
        """It holds no connection, setting, key or model client."""
        assert snapshot["held"] == {"alive": [], "sockets": 0}

    def test_each_restored_process_is_ready(self, snapshot: dict[str, Any]) -> None:
        """It has its own connection and random numbers before the first request, which succeeds."""
        restored = snapshot["restored"]
        assert [(one["status"], one["connected"]) for one in restored] == [(200, 1), (200, 1)]
        for what in ("connection", "random"):
            assert len({str(one[what]) for one in [*restored, snapshot["before"]]}) == 3

    def test_the_first_request_imports_at_most_two_modules(self, snapshot: dict[str, Any]) -> None:
        """FastMCP imports one at the first tool call, and asyncio one for its threads."""
        assert all(one["modules"] <= 2 for one in (snapshot["started"], *snapshot["restored"]))

    def test_a_restored_process_reads_its_settings_again(
        self, snapshot: dict[str, Any], server: Postgres, pooler: PgBouncer
    ) -> None:
        """It uses an address or a password that changed after the snapshot."""
        there, elsewhere = (urlsplit(url).port for url in (server.app_url, pooler.url(server.app_url)))
        ports = [one["port"] for one in (snapshot["before"], *snapshot["restored"])]
        assert ports == [there, elsewhere, elsewhere]
