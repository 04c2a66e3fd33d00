"""A cold start: what it imports and what it does not, what it does ahead, and what a snapshot must not hold."""

import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from pydantic import BaseModel, TypeAdapter
from starlette.responses import JSONResponse

from bench.cold import NAIVE
from dev.model.client import StandIn
from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from dev.tokens import Issuer
from taskchat import audit, deadline, imports, lifecycle, tasks
from taskchat.auth import KeySet
from taskchat.errors import DatabaseUnavailable
from taskchat.rehearsal import RehearsalFailed
from tests.conftest import ROOT, Logs, Person, forget, serving, variables
from tests.gateway import event

Rows = psycopg.Connection[dict[str, Any]]

PATIENCE = 30
"""Seconds that a test may wait for what takes none."""

TABLES = ("allowance", "conversation", "message", "task", "tool_call")

NEVER = {
    "agents.realtime": "a conversation by voice",
    "agents.repl": "a terminal",
    "agents.voice": "a conversation by voice",
    "boto3": "for those who keep a secret, and then only once all else is imported",
    "botocore.session": "the same",
    "docket": "FastMCP's queue of jobs",
    "email_validator": "no address of anybody's is read",
    "fastmcp.client": "the tools are called directly",
    "joserfc": "tokens are judged in auth.py",
    "keyring": "FastMCP's, for the clients of its own",
    "openai.lib.streaming": "answers come whole",
    "openai.resources.beta": "sold by the vendor, and not used",
    "openai.types.eval_create_params": "the same",
    "openai.types.responses.response_text_delta_event": "of a stream",
    "openai.types.video": "the same",
    "requests": "there is one HTTP client",
    "sqlalchemy.dialects.postgresql.asyncpg": "there is one driver",
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
        """Neither a module that is left out, nor one that nobody should begin to need."""
        assert "chat.app" in chat
        assert not {name for name in chat if name == module or name.startswith(f"{module}.")}

    def test_neither_function_imports_many_more_modules_than_their_dependencies_alone(self, chat: set[str]) -> None:
        """Ours, the SDK's that a turn needs and FastMCP's server come on top; it was a fifth more before."""
        naive = imported(NAIVE)
        assert len(chat) <= 1.06 * len(naive)
        assert len(imported("mcp_tools.app")) <= 0.75 * len(naive)

    @pytest.mark.parametrize("module", imports.LEFT_OUT)
    def test_what_is_left_out_is_there_to_be_left_out(self, module: str) -> None:
        """A dependency that has moved or dropped a module makes its line on the list a dead one."""
        assert find_spec(module)

    @pytest.mark.parametrize("package", ["chat", "mcp_tools"])
    def test_nothing_of_it_stays(self, package: str) -> None:
        """After the import, garbage is collected, schemas are built at once, and what was left out can be imported."""
        code = f"""
import {package}, gc, json, sys
import email_validator, openai.types.video, pydantic
from pydantic import v1  # by its parent's attribute, not by its name
class Built(pydantic.BaseModel): pass
print(json.dumps([gc.isenabled(), gc.get_freeze_count() > 100_000, Built.__pydantic_complete__,
    pydantic.TypeAdapter(list[int]).pydantic_complete, "defer_build" in pydantic.BaseModel.model_config,
    callable(email_validator.validate_email), v1.BaseModel.__module__, openai.types.video.Video.__mro__[1].__name__]))
"""
        assert fresh(code) == [True, True, True, True, False, True, "pydantic.v1.main", "BaseModel"]

    @pytest.mark.parametrize("package", ["chat", "mcp_tools"])
    def test_the_vendor_s_package_is_whole_again(self, package: str) -> None:
        """Every public name of it and of its types is the real one; the client that streams can be imported."""
        code = f"""
import {package}, ast, json
from pathlib import Path
import openai, openai.types, openai.types.responses
from openai.resources.responses import Responses
from taskchat.imports import _Absent
packages = [openai, openai.types, openai.types.responses]
names = [(package, name.asname) for package in packages for node in ast.parse(Path(package.__file__).read_text()).body
    if isinstance(node, ast.ImportFrom) for name in node.names if name.asname]
named = [getattr(package, name) for package, name in names]
print(json.dumps([Responses.__module__, len([value for value in named if isinstance(value, type)]) > 300,
    [value.__qualname__ for value in named if isinstance(value, type) and issubclass(value, _Absent)],
    hasattr(openai.types, "Nothing"), openai.types.responses.ResponseTextDeltaEvent.__module__]))
"""
        module, many, absent, nothing, event_module = fresh(code)
        assert (module, many, absent, nothing) == ("openai.resources.responses.responses", True, [], False)
        assert event_module == "openai.types.responses.response_text_delta_event"

    def test_what_is_left_out_is_missed_aloud(self) -> None:
        """Whoever makes one of its classes after all is told which."""
        with imports.lean():
            hollow = imports._Hollow()
            spec = hollow.find_spec("joserfc.jws", None)
            assert spec is not None
            module = type(sys)("joserfc.jws")
            hollow.exec_module(module)
        with pytest.raises(imports.LeftOutError, match=r"joserfc\.jws\.JWS"):
            module.JWS()

    def test_a_module_that_is_only_looked_for_is_none(self) -> None:
        """As a library does that has more to offer where another one is installed."""
        with imports.lean():
            assert find_spec("email_validator")
        assert gc.isenabled()

    def test_an_error_inside_leaves_nothing_behind(self) -> None:
        """An import that fails does not leave a process without its collector."""
        finders = list(sys.meta_path)
        with pytest.raises(ZeroDivisionError), imports.lean():
            1 / 0  # noqa: B018
        assert (gc.isenabled(), sys.meta_path) == (True, finders)
        assert "defer_build" not in BaseModel.model_config
        assert TypeAdapter(list[int]).pydantic_complete


class TestGettingReady:
    """What is done before the first request, on Lambda."""

    def test_steps_go_side_by_side(self) -> None:
        """Each waits for the other, so that neither could end alone."""
        both = threading.Barrier(2, timeout=PATIENCE)
        with deadline.within(PATIENCE):
            lifecycle.side_by_side(both.wait, both.wait)
        assert not both.broken

    def test_a_step_has_the_deadline_of_all(self) -> None:
        """What a thread waits for ends when the rest must."""
        left: list[float] = []
        with deadline.within(PATIENCE):
            lifecycle.side_by_side(lambda: left.append(deadline.remaining()))
        assert 0 < left[0] <= PATIENCE

    def test_a_step_that_never_ends_is_left_behind(self) -> None:
        """Getting ready is over when its time is, whatever hangs."""
        released = threading.Event()
        with deadline.within(0.05):
            lifecycle.side_by_side(released.wait)
        released.set()

    def test_a_failure_is_told_and_no_more(self, logs: Logs) -> None:
        """By its kind: its text may hold an address, and a request may find that it has passed."""

        def fail() -> None:
            raise ConnectionRefusedError("canary")

        lifecycle.side_by_side(fail)
        lifecycle.attempt(fail)
        assert [(line["message"], line["reason"]) for line in logs()] == 2 * [
            ("not ready ahead", "ConnectionRefusedError")
        ]
        assert "canary" not in json.dumps(logs())

    def test_only_lambda_gets_ready(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tests, migrations and a developer's server import the same modules, and connect when they want to."""
        done: list[str] = []
        monkeypatch.delenv("AWS_LAMBDA_RUNTIME_API", raising=False)
        lifecycle.begin(lambda: done.append("ready"), lambda: None)
        assert done == []

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
        from chat import app

        monkeypatch.setenv("DATABASE_URL", "postgresql://taskchat_app:x@127.0.0.1:1/taskchat?sslmode=disable")
        app.get_ready()
        assert alice.say("Add buy milk").status == 503
        forget()
        monkeypatch.setenv("DATABASE_URL", server.app_url)
        app.get_ready()
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


def everything(rows: Rows) -> dict[str, int]:
    """How many rows there are."""
    return {table: rows.execute(f"select count(*) from {table}").fetchone()["count"] for table in TABLES}  # type: ignore[index]  # noqa: S608


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


class TestTheRehearsal:
    """One request of nobody's, before the first person's."""

    @pytest.fixture(params=["chat", "mcp_tools"])
    def app(self, request: pytest.FixtureRequest, environment: None) -> Any:
        """Either function."""
        return import_module(f"{request.param}.app")

    @pytest.mark.parametrize("model_api", ["responses", "chat_completions"], indirect=True)
    def test_nothing_of_it_is_seen(
        self, app: Any, rows: Rows, standin: StandIn, logs: Logs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """No row, no call of the model, no line of log or audit, nothing counted."""
        before = everything(rows)
        app.rehearse()
        assert everything(rows) == before
        assert (standin.requests(), logs(), capsys.readouterr().out) == ([], [], "")

    def test_all_five_tools_are_called(self, app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """And each does what it is there for."""
        called: list[tuple[str, str]] = []
        monkeypatch.setattr(audit, "_report", lambda record, _: called.append((record["tool"], record["outcome"])))
        app.rehearse()
        assert set(called) == {
            (tool, "ok") for tool in ("add_task", "list_tasks", "update_task", "complete_task", "delete_task")
        }

    def test_one_that_fails_leaves_nothing_either(
        self, environment: None, rows: Rows, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It raises, and what was done up to there is rolled back."""
        from chat import app

        def fail(*_: Any, **__: Any) -> None:
            raise DatabaseUnavailable

        before = everything(rows)
        monkeypatch.setattr(tasks, "remove", fail)
        with pytest.raises(RehearsalFailed, match="503"):
            app.rehearse()
        assert everything(rows) == before

    def test_only_what_is_inside_is_rolled_back(self, environment: None, alice: Person, rows: Rows) -> None:
        """Each transaction there sees what the ones before it did; after it, they commit again."""
        from taskchat.tools import database

        with database().rehearsal():
            for expected in ([], ["x"]):
                with database().transaction(alice.id) as session:
                    assert [task.title for task in tasks.page(session, alice.id, "all", None).tasks] == expected
                    tasks.add(session, alice.id, "x", "")
        with database().transaction(alice.id) as session:
            tasks.add(session, alice.id, "kept", "")
        kept = rows.execute("select title from task where user_id = %s", [alice.id]).fetchall()
        assert kept == [{"title": "kept"}]


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
        """No connection, no setting, no key, no client."""
        assert told["held"] == {"alive": [], "sockets": 0}

    def test_each_that_starts_from_it_is_ready_and_its_own(self, told: dict[str, Any]) -> None:
        """With a connection and random numbers that no other has, made before the first request, which succeeds."""
        restored = told["restored"]
        assert [(one["status"], one["connected"]) for one in restored] == [(200, 1), (200, 1)]
        for what in ("connection", "random"):
            assert len({str(one[what]) for one in [*restored, told["before"]]}) == 3

    def test_the_first_request_builds_nothing(self, told: dict[str, Any]) -> None:
        """No module is imported in it, no statement compiled, no schema built: all of that has been rehearsed."""
        nothing = {"modules": 0, "statements": 0, "schemas": 0}
        assert [one["built"] for one in (told["started"], *told["restored"])] == [nothing, nothing, nothing]

    def test_settings_are_read_again(self, told: dict[str, Any], server: Postgres, pooler: PgBouncer) -> None:
        """An address that has changed since the snapshot was taken, or a password, is the one that is used."""
        there, elsewhere = (urlsplit(url).port for url in (server.app_url, pooler.url(server.app_url)))
        ports = [one["port"] for one in (told["before"], *told["restored"])]
        assert ports == [there, elsewhere, elsewhere]
