"""A cold start: what it imports and what it does not, what it does ahead, and what a snapshot must not hold."""

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

Rows = psycopg.Connection[dict[str, Any]]

PATIENCE = 30
"""Seconds that a test may wait for what takes none."""

TABLES = ("allowance", "conversation", "message", "task", "tool_call")

NEVER = {
    "agents.realtime": "a conversation by voice",
    "agents.voice": "a conversation by voice",
    "boto3": "for those who keep a secret, and then only once all else is imported",
    "botocore.session": "the same",
    "docket": "FastMCP's queue of jobs",
    "fastmcp.client": "the tools are called directly",
    "keyring": "FastMCP's, for the clients of its own",
    "openai.resources.beta": "sold by the vendor, and not used",
    "requests": "there is one HTTP client",
    "sqlalchemy.dialects.sqlite": "there is one database",
}


def fresh(code: str, **variables: str) -> Any:
    """What a new process prints, parsed: it has the environment of a test, and every warning is an error."""
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


def imported(what: str) -> set[str]:
    """The modules that a process has, once it has imported this."""
    return set(fresh(f"import {what}, sys, json; print(json.dumps(sorted(sys.modules)))"))


@pytest.fixture(scope="module")
def chat() -> set[str]:
    """The modules of the chat function."""
    return imported("chat.app")


class TestImports:
    """What costs most of a cold start."""

    @pytest.mark.parametrize("module", sorted(NEVER))
    def test_what_no_request_uses_is_not_imported(self, chat: set[str], module: str) -> None:
        """It costs a start time and memory, and no request would be answered better."""
        assert "chat.app" in chat
        assert not {name for name in chat if name == module or name.startswith(f"{module}.")}

    def test_neither_function_imports_many_more_modules_than_their_dependencies_alone(self, chat: set[str]) -> None:
        """Ours, the parts of the SDK that a turn needs and FastMCP's server come on top."""
        naive = imported(NAIVE)
        assert len(chat) <= 1.2 * len(naive)
        assert len(imported("mcp_tools.app")) <= len(naive)

    @pytest.mark.parametrize("package", ["chat", "mcp_tools"])
    def test_nothing_of_it_stays(self, package: str) -> None:
        """After the import, garbage is collected and schemas are built at once."""
        code = f"""
import {package}, gc, json, pydantic
class Built(pydantic.BaseModel): pass
print(json.dumps([gc.isenabled(), gc.get_freeze_count() > 100_000, Built.__pydantic_complete__,
    pydantic.TypeAdapter(list[int]).pydantic_complete, "defer_build" in pydantic.BaseModel.model_config]))
"""
        assert fresh(code) == [True, True, True, True, False]

    def test_an_error_inside_leaves_nothing_behind(self) -> None:
        """An import that fails does not leave a process without its collector."""
        with pytest.raises(ZeroDivisionError), imports.fast():
            1 / 0  # noqa: B018
        assert gc.isenabled()
        assert "defer_build" not in BaseModel.model_config
        assert TypeAdapter(list[int]).pydantic_complete


class TestGettingReady:
    """What is done before the first request, on Lambda."""

    def test_steps_run_concurrently(self) -> None:
        """Each waits for the other, so that neither could end alone."""
        both = threading.Barrier(2, timeout=PATIENCE)
        with deadline.within(PATIENCE):
            run_concurrently(both.wait, both.wait)
        assert not both.broken

    def test_a_step_has_the_deadline_of_all(self) -> None:
        """What a thread waits for ends when the rest must."""
        left: list[float] = []
        with deadline.within(PATIENCE):
            run_concurrently(lambda: left.append(deadline.remaining()))
        assert 0 < left[0] <= PATIENCE

    def test_a_step_that_never_ends_is_left_behind(self) -> None:
        """Getting ready is over when its time is, whatever hangs."""
        released = threading.Event()
        with deadline.within(0.05):
            run_concurrently(released.wait)
        released.set()

    def test_a_failure_is_told_and_no_more(self, logs: Logs) -> None:
        """By its kind: its text may hold an address, and a request may find that it has passed."""

        def fail() -> None:
            raise ConnectionRefusedError("canary")

        run_concurrently(fail)
        assert [(line["message"], line["reason"]) for line in logs()] == [("not ready ahead", "ConnectionRefusedError")]
        assert "canary" not in json.dumps(logs())

    def test_only_lambda_gets_ready(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tests, migrations and a developer's server import the same modules, and connect when they want to."""
        from chat.app import ChatProcess
        from taskchat.tasks import toolset

        monkeypatch.delenv("AWS_LAMBDA_RUNTIME_API", raising=False)
        process = ChatProcess(toolset)
        opened = set(vars(process))
        start(process)
        assert set(vars(process)) == opened

    @pytest.mark.parametrize("package", ["chat", "mcp_tools"])
    def test_what_is_missing_is_said_when_it_starts(self, package: str) -> None:
        """On Lambda a function without its settings does not come up, and names the one that it lacks."""
        code = f"""
import json
try:
    import {package}
except RuntimeError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""
        kind, said = fresh(code, AWS_LAMBDA_RUNTIME_API="localhost", AUTH_ISSUER="")
        assert (kind, said) == ("SettingsError", "AUTH_ISSUER is not set.")

    def test_a_database_that_is_away_is_no_obstacle(
        self, environment: None, alice: Person, monkeypatch: pytest.MonkeyPatch, server: Postgres
    ) -> None:
        """Nor to the next request: 503 while it is away, and 200 once it is back."""
        from chat.app import process

        monkeypatch.setenv("DATABASE_URL", "postgresql://taskchat_app:x@127.0.0.1:1/taskchat?sslmode=disable")
        process.get_ready()
        assert alice.say("Add buy milk").status == 503
        reset_processes()
        monkeypatch.setenv("DATABASE_URL", server.app_url)
        process.get_ready()
        assert alice.say("Add buy milk").status == 200

    def test_a_key_set_that_is_away_is_asked_again_at_once(self, issuer: Issuer) -> None:
        """The first request need not wait until a fetch is allowed again, as after a failure of its own."""
        with publishing(issuer, failures=1) as (url, asked):
            keys = KeySet(url, None)
            keys.fetch_ahead()
            assert keys.find(issuer.kid)
        assert len(asked) == 2

    def test_keys_that_came_ahead_are_there(self, issuer: Issuer) -> None:
        """Nobody fetches them a second time."""
        with publishing(issuer, failures=0) as (url, asked):
            keys = KeySet(url, None)
            keys.fetch_ahead()
            assert keys.find(issuer.kid)
        assert len(asked) == 1


@contextmanager
def publishing(issuer: Issuer, failures: int) -> Iterator[tuple[str, list[str]]]:
    """The issuer's key set over HTTP, after some failures: its address, and what was asked for."""
    asked: list[str] = []

    async def publish(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            asked.append(scope["path"])
            answer = JSONResponse(json.loads(issuer.jwks_json), 503 if len(asked) <= failures else 200)
            await answer(scope, receive, send)

    with serving(publish) as url:
        yield f"{url}/jwks", asked


def _first_event(package: str, person: Person) -> dict[str, Any]:
    """A request that adds a task, at the door of this function."""
    if package == "chat":
        headers = {"authorization": f"Bearer {person.token}", "content-type": "application/json"}
        return event("POST", f"/api/{person.id}/chat", headers=headers, body=b'{"message": "Add buy milk"}')
    call = {"name": "add_task", "arguments": {"title": "buy milk"}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    headers = {"authorization": f"Bearer {person.mcp_token}", "content-type": "application/json"}
    headers |= {"accept": "application/json, text/event-stream"}
    return event("POST", "/mcp", headers=headers, body=json.dumps(message).encode())


@pytest.fixture(scope="module", params=["chat responses", "chat chat_completions", "mcp_tools responses"])
def told(
    request: pytest.FixtureRequest,
    server: Postgres,
    pooler: PgBouncer,
    running_model: StandIn,
    issuer: Issuer,
) -> dict[str, Any]:
    """What tests/snapshot.py tells of a function whose database has moved by the time it is restored."""
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
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


class TestSnapshot:
    """What a snapshot must not hold, and what a process does that is started from one."""

    def test_it_was_ready(self, told: dict[str, Any]) -> None:
        """The process had been through everything, and had its connection."""
        assert told["before"]["connected"] == 1

    def test_nothing_that_must_be_fresh_is_in_it(self, told: dict[str, Any]) -> None:
        """No connection, no setting, no key, no model client."""
        assert told["held"] == {"alive": [], "sockets": 0}

    def test_each_that_starts_from_it_is_ready_and_its_own(self, told: dict[str, Any]) -> None:
        """With a connection and random numbers that no other has, made before the first request, which succeeds."""
        restored = told["restored"]
        assert [(one["status"], one["connected"]) for one in restored] == [(200, 1), (200, 1)]
        for what in ("connection", "random"):
            assert len({str(one[what]) for one in [*restored, told["before"]]}) == 3

    def test_the_first_request_imports_next_to_nothing(self, told: dict[str, Any]) -> None:
        """FastMCP imports one module at the first call of a tool, asyncio one for its threads; the rest is there."""
        assert all(one["modules"] <= 2 for one in (told["started"], *told["restored"]))

    def test_settings_are_read_again(self, told: dict[str, Any], server: Postgres, pooler: PgBouncer) -> None:
        """An address that has changed since the snapshot was taken, or a password, is the one that is used."""
        there, elsewhere = (urlsplit(url).port for url in (server.app_url, pooler.url(server.app_url)))
        ports = [one["port"] for one in (told["before"], *told["restored"])]
        assert ports == [there, elsewhere, elsewhere]
