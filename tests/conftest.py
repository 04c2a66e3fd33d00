"""Real parts for every test: Postgres, PgBouncer with TLS and SCRAM, the stand-in model over HTTP, signed tokens."""

import asyncio
import io
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import psycopg
import pytest
import uvicorn
from psycopg.rows import dict_row

from dev import pgbouncer, postgres
from dev import standin_model as model
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from tests.gateway import Response, event, invoke

if TYPE_CHECKING:
    from taskchat.database.transaction import Database
    from tests.privacy import Watch

T = TypeVar("T")
Logs = Callable[[], list[dict[str, Any]]]
ROOT = Path(__file__).parent.parent
AUTH = "https://auth.example.com"
RESOURCE = "https://api.example.com/mcp"

pytest_plugins = ["tests.privacy", "tests.tally", "tests.environments"]


def pytest_configure() -> None:
    """Name the service before anything is imported: Powertools reads that when a logger is made. And set the loop."""
    os.environ["POWERTOOLS_SERVICE_NAME"] = "taskchat"
    os.environ["POWERTOOLS_METRICS_NAMESPACE"] = "taskchat"
    asyncio.set_event_loop(asyncio.new_event_loop())  # Mangum asks for one when a handler is imported


LONG = (
    *("test_crash", "test_outages", "test_any_answer", "test_stateful", "test_pooler_restarts", "test_deadline"),
    *("test_dev", "test_shutdown", "test_limits", "test_failures", "test_clocks", "test_cold_start"),
)
"""Files that take a minute or more, the longest first: a worker that began one last would keep the others waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files. Within one, the order stays."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def migrate(owner_url: str, app_url: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Alembic as `make migrate` does."""
    environment = os.environ | {"MIGRATION_DATABASE_URL": owner_url, "DATABASE_URL": app_url}
    arguments = [sys.executable, "-m", "alembic", *(command or ("upgrade", "head"))]
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)  # noqa: S603


@pytest.fixture(scope="session", autouse=True)
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The one event loop of the process, as in an execution environment: Mangum takes whatever is current."""
    loop = asyncio.get_event_loop()
    yield loop
    asyncio.set_event_loop(None)
    loop.close()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result. Not `asyncio.run`, which would leave the process without a loop."""
    return asyncio.get_event_loop().run_until_complete(coroutine)


@pytest.fixture(scope="session")
def server(watch: "Watch") -> Iterator[Postgres]:
    """An embedded Postgres with the schema in place."""
    with postgres.temporary() as running:
        watch.secrets.update(running.passwords.values())
        done = migrate(running.owner_url, running.app_url)
        assert done.returncode == 0, done.stderr
        yield running
        watch.know_people(running.superuser_url)


@pytest.fixture(scope="session")
def pooler(request: pytest.FixtureRequest, server: Postgres) -> Iterator[pgbouncer.PgBouncer]:
    """PgBouncer before it, in transaction mode. Not to be had without the Debian package; CI must have it."""
    if not shutil.which("pgbouncer", path=pgbouncer.PATH) and "CI" not in os.environ:
        pytest.skip("PgBouncer is not installed (apt-get install pgbouncer)")
    with pgbouncer.running(server) as running:
        yield running
        if request.session.testsfailed:
            _keep_log(request.config, running)


def _keep_log(config: pytest.Config, pooler: pgbouncer.PgBouncer) -> None:
    """Copy the pooler's log to where it outlives the run, and tell the place at its end."""
    from tests.tally import tell_at_the_end  # a plugin: pytest imports it first

    kept = ROOT / ".dev" / "test-logs" / f"pgbouncer-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}.log"
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(pooler.log, kept)
    tell_at_the_end(config, f"a test failed: the pooler's log is kept in {kept.relative_to(ROOT)}")


@pytest.fixture(scope="session", params=["direct", "pooled"])
def database_url(request: pytest.FixtureRequest, server: Postgres) -> str:
    """The runtime role's URL, to Postgres itself and through the pooler."""
    if request.param == "direct":
        return server.app_url
    pooler: pgbouncer.PgBouncer = request.getfixturevalue("pooler")
    return pooler.url(server.app_url)


@pytest.fixture(scope="session")
def rows(server: Postgres) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    """The database as its superuser sees it, through a driver that is not ours."""
    with psycopg.connect(server.superuser_url, autocommit=True, row_factory=dict_row) as connection:
        yield connection


@pytest.fixture(scope="session")
def console_url(server: Postgres, rows: psycopg.Connection[dict[str, Any]]) -> str:
    """The URL of a role as Neon's console makes them: the policies do not bind it."""
    rows.execute("create role console login bypassrls password 'x'")
    rows.execute("grant pg_read_all_data, pg_write_all_data to console")
    return f"postgresql://console:x@{server.host}:{server.port}/taskchat?sslmode=disable"


@pytest.fixture(scope="session")
def issuer() -> Issuer:
    """Who signs the tokens."""
    return Issuer.new()


@pytest.fixture(scope="session")
def running_model() -> Iterator[StandIn]:
    """The stand-in model, over HTTP."""
    with model.running() as running:
        yield running


@pytest.fixture
def standin(running_model: StandIn) -> Iterator[StandIn]:
    """The stand-in model with nothing remembered from the test before."""
    running_model.reset()
    yield running_model
    running_model.reset()


@pytest.fixture(params=["responses"])
def model_api(request: pytest.FixtureRequest) -> str:
    """The wire the model is spoken to by. Tests of the turn take both."""
    return str(request.param)


def variables(database_url: str, standin: StandIn, issuer: Issuer, model_api: str = "responses") -> dict[str, str]:
    """The variables of an execution environment, as the template sets them."""
    return {
        "DATABASE_URL": database_url,
        "OPENAI_API_KEY": "sk-stand-in",
        "OPENAI_BASE_URL": standin.base_url,
        "MODEL": "stand-in",
        "MODEL_API": model_api,
        "AUTH_ISSUER": AUTH,
        "AUTH_AUDIENCE": AUTH,
        "AUTH_JWKS_JSON": issuer.jwks_json,
        "MCP_RESOURCE_URL": RESOURCE,
        # On, so that every turn does what it does in production, and out of reach: some tests send hundreds.
        "TURN_BURST": "999999",
        "TURNS_PER_MINUTE": "999999",
        "DAILY_MODEL_TOKENS": "999999999999",
        "MCP_BURST": "0",
        "MCP_REQUESTS_PER_MINUTE": "0",
    }


@pytest.fixture
def environment(
    monkeypatch: pytest.MonkeyPatch, database_url: str, standin: StandIn, issuer: Issuer, model_api: str
) -> Iterator[None]:
    """A fresh execution environment."""
    for name, value in variables(database_url, standin, issuer, model_api).items():
        monkeypatch.setenv(name, value)
    yield
    forget()


def forget() -> None:
    """Drop what outlives an invocation, as a new execution environment would start without it."""
    for module in filter(None, map(sys.modules.get, ("chat.app", "mcp_tools.app"))):
        process = module.process
        process.reset()
        process.database = type(process.database)(process.database_url)  # a reset keeps the engine, and its listeners


def databases() -> "list[Database]":
    """The database of each function: in this process there are two, on Lambda one."""
    from chat.app import process as chat
    from mcp_tools.app import process as mcp_tools

    return [chat.database, mcp_tools.database]


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The app behind a real HTTP server on this machine; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", ws="none", log_config=None))
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@dataclass(frozen=True)
class Person:
    """Somebody who chats through the real handler."""

    id: str
    issuer: Issuer

    @property
    def token(self) -> str:
        """A fresh token of theirs."""
        return self.issuer.mint(self.id, issuer=AUTH, audience=AUTH)

    @property
    def mcp_token(self) -> str:
        """A fresh access token of theirs for the MCP door."""
        return self.issuer.mint_for_mcp(self.id, issuer=AUTH, resource=RESOURCE)

    def post(self, body: Any, *, key: str | None = None, seconds: float = 30, **headers: str) -> Response:
        """Post to their chat. `body` is sent as JSON, or as it is when it is bytes."""
        from chat.app import handler

        sent = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        sent |= {"idempotency-key": key} if key else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return invoke(handler, event("POST", f"/api/{self.id}/chat", headers=sent, body=raw), seconds=seconds)

    def say(self, message: str, conversation_id: str | None = None, **options: Any) -> Response:
        """One turn."""
        return self.post({"message": message, "conversation_id": conversation_id}, **options)


@pytest.fixture
def logs(environment: None) -> Iterator[Logs]:
    """What has been logged since the test began, parsed: every line must be JSON."""
    from taskchat.toolcalls.audit_log import logger

    handler = logger.registered_handler
    assert isinstance(handler, logging.StreamHandler)
    written = io.StringIO()
    before = handler.setStream(written)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    handler.setStream(before)


@pytest.fixture
def alice(environment: None, issuer: Issuer) -> Person:
    """A person new to the service."""
    return Person(uuid4().hex, issuer)


@pytest.fixture
def bob(environment: None, issuer: Issuer) -> Person:
    """Another one."""
    return Person(uuid4().hex, issuer)
