"""Provide real parts to every test:

Postgres, PgBouncer with TLS and SCRAM, the stand-in model over HTTP, signed tokens.
"""

import asyncio
import gc
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
from testing.callers import Caller, identity
from testing.gateway import Response, invoke

if TYPE_CHECKING:
    from taskchat.database.transaction import Database
    from tests.privacy import LogSearch

T = TypeVar("T")
Logs = Callable[[], list[dict[str, Any]]]
ROOT = Path(__file__).parent.parent

# Powertools reads these when taskchat makes its logger. The plugins below import taskchat.
os.environ["POWERTOOLS_SERVICE_NAME"] = "taskchat"
os.environ["POWERTOOLS_METRICS_NAMESPACE"] = "taskchat"

pytest_plugins = ["tests.privacy", "tests.tally", "tests.environments", "tests.large_tables"]


def pytest_configure() -> None:
    """Set an event loop: Mangum asks for one when a handler is imported."""
    asyncio.set_event_loop(asyncio.new_event_loop())


LONG = (
    *("test_crash", "test_outages", "test_any_answer", "test_stateful", "test_pooler_restarts", "test_deadline"),
    *("test_stream_crash", "test_stream_random", "test_dev", "test_shutdown", "test_limits", "test_failures"),
    *("test_clocks", "test_cold_start", "test_reconcile", "test_operations"),
)
"""Files that take a minute or more, the longest first. Begun last, one of them would keep the run waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the long files first. Keep the order within a file."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def migrate(owner_url: str, app_url: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run Alembic as `make migrate` does."""
    environment = os.environ | {"MIGRATION_DATABASE_URL": owner_url, "DATABASE_URL": app_url}
    arguments = [sys.executable, "-m", "alembic", *(command or ("upgrade", "head"))]
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)  # noqa: S603


@pytest.fixture(scope="session", autouse=True)
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Provide the process's one event loop. Mangum uses the current one, as on Lambda."""
    loop = asyncio.get_event_loop()
    yield loop
    gc.collect()
    loop.run_until_complete(_end_streams())
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture(autouse=True)
def keep_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Make it the current one again: `asyncio.run` in the test before has left the process without a loop."""
    asyncio.set_event_loop(loop)


async def _end_streams() -> None:
    """Let streams end that a test broke off. The collector only schedules that in the loop."""
    await asyncio.sleep(0)
    if pending := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(pending, timeout=5)
    await asyncio.get_running_loop().shutdown_asyncgens()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run the coroutine in the current loop."""
    return asyncio.get_event_loop().run_until_complete(coroutine)


@pytest.fixture(scope="session")
def server(log_search: "LogSearch") -> Iterator[Postgres]:
    """Run an embedded Postgres with the schema in place."""
    with postgres.temporary() as running:
        log_search.secrets.update(running.passwords.values())
        done = migrate(running.owner_url, running.app_url)
        assert done.returncode == 0, done.stderr
        yield running
        log_search.add_texts_from(running.superuser_url)


@pytest.fixture(scope="session")
def pooler(request: pytest.FixtureRequest, server: Postgres) -> Iterator[pgbouncer.PgBouncer]:
    """Run PgBouncer in transaction mode. Without the Debian package the tests are skipped, except in CI."""
    if not shutil.which("pgbouncer", path=pgbouncer.PATH) and "CI" not in os.environ:
        pytest.skip("PgBouncer is not installed (apt-get install pgbouncer)")
    with pgbouncer.running(server) as running:
        yield running
        if request.session.testsfailed:
            _keep_log(request.config, running)


def _keep_log(config: pytest.Config, pooler: pgbouncer.PgBouncer) -> None:
    """Copy the pooler's log to a place that outlives the run, and print the place at the end."""
    from tests.tally import report_at_end  # a plugin: pytest imports it first

    kept = ROOT / ".dev" / "test-logs" / f"pgbouncer-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}.log"
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(pooler.log, kept)
    report_at_end(config, f"a test failed: the pooler's log is kept in {kept.relative_to(ROOT)}")


@pytest.fixture(scope="session", params=["direct", "pooled"])
def database_url(request: pytest.FixtureRequest, server: Postgres) -> str:
    """Give the runtime role's URL, once to Postgres directly and once to the pooler."""
    if request.param == "direct":
        return server.app_url
    pooler: pgbouncer.PgBouncer = request.getfixturevalue("pooler")
    return pooler.url(server.app_url)


@pytest.fixture(scope="session")
def rows(server: Postgres) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    """Connect as Postgres's superuser, with psycopg, which the program does not use."""
    with psycopg.connect(server.superuser_url, autocommit=True, row_factory=dict_row) as connection:
        yield connection


@pytest.fixture(scope="session")
def console_url(server: Postgres, rows: psycopg.Connection[dict[str, Any]]) -> str:
    """Give the URL of a role like those of Neon's console, which policies do not bind."""
    rows.execute("create role console login bypassrls password 'x'")
    rows.execute("grant pg_read_all_data, pg_write_all_data to console")
    return f"postgresql://console:x@{server.host}:{server.port}/taskchat?sslmode=disable"


@pytest.fixture(scope="session")
def issuer() -> Issuer:
    """Make an issuer of tokens."""
    return Issuer.new()


@pytest.fixture(scope="session")
def running_model() -> Iterator[StandIn]:
    """Run the stand-in model over HTTP."""
    with model.running() as running:
        yield running


@pytest.fixture
def standin(running_model: StandIn) -> Iterator[StandIn]:
    """Reset the stand-in model before and after the test."""
    running_model.reset()
    yield running_model
    running_model.reset()


@pytest.fixture(params=["responses"])
def model_api(request: pytest.FixtureRequest) -> str:
    """Name the model API. Tests of the turn run with both."""
    return str(request.param)


def variables(database_url: str, standin: StandIn, issuer: Issuer, model_api: str = "responses") -> dict[str, str]:
    """Return the environment variables of a function, as the template sets them."""
    return {
        "DATABASE_URL": database_url,
        "OPENAI_API_KEY": "sk-stand-in",
        "OPENAI_BASE_URL": standin.base_url,
        "MODEL": "stand-in",
        "MODEL_API": model_api,
        **identity(issuer),
        # The limits are on, as in production, but too high to reach: some tests send hundreds of requests.
        "TURN_BURST": "999999",
        "TURNS_PER_MINUTE": "999999",
        "DAILY_MODEL_TOKENS": "999999999999",
        "DATA_BURST": "999999",
        "DATA_REQUESTS_PER_MINUTE": "999999",
        "MCP_BURST": "0",
        "MCP_REQUESTS_PER_MINUTE": "0",
    }


@pytest.fixture
def environment(
    monkeypatch: pytest.MonkeyPatch, database_url: str, standin: StandIn, issuer: Issuer, model_api: str
) -> Iterator[None]:
    """Set the environment variables, and drop what the processes hold after the test."""
    for name, value in variables(database_url, standin, issuer, model_api).items():
        monkeypatch.setenv(name, value)
    yield
    reset_processes()


def reset_processes() -> None:
    """Close and drop what a process keeps between invocations, as if it were new."""
    for module in filter(None, map(sys.modules.get, ("chat.app", "mcp_tools.app"))):
        process = module.process
        process.reset()
        process.database = process.create_database()  # a reset keeps the engine, and its listeners


def databases() -> "list[Database]":
    """Return the database of each function. On Lambda each process has one of them; here one process has both."""
    from chat.app import process as chat
    from mcp_tools.app import process as mcp_tools

    return [chat.database, mcp_tools.database]


@contextmanager
def serving(app: Any, grace: int | None = None) -> Iterator[str]:
    """Serve the app with a real HTTP server on this machine, and give its address.

    At the end, requests have `grace` seconds, or as long as they take.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app, lifespan="on", ws="none", log_config=None, timeout_graceful_shutdown=grace)
        server = uvicorn.Server(config)
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


class Person(Caller):
    """Send a caller's requests to the real handler in this process."""

    def post(self, body: Any, *, key: str | None = None, seconds: float = 30, **headers: str) -> Response:
        """Post to the chat route. Bytes are sent as they are, any other body as JSON."""
        from chat.app import handler

        return invoke(handler, self.request(body, key, **headers), seconds=seconds)

    def call(self, method: str, path: str, body: Any = b"", *, of: str | None = None, **query: Any) -> Response:
        """Send a request to a route of the person's own data, such as `/conversations`, or `of` another person's."""
        from chat.app import handler

        return invoke(handler, self.own(method, path, body=body, query=query, of=of))

    def get(self, path: str, **query: Any) -> Response:
        """Read one of the person's own routes."""
        return self.call("GET", path, **query)

    def say(self, message: str, conversation_id: str | None = None, **options: Any) -> Response:
        """Take one turn."""
        return self.post({"message": message, "conversation_id": conversation_id}, **options)


@pytest.fixture
def logs(environment: None) -> Iterator[Logs]:
    """Give a function that returns the lines logged since the test began. Each line must be JSON."""
    from taskchat.toolcalls.audit_log import logger

    handler = logger.registered_handler
    assert isinstance(handler, logging.StreamHandler)
    written = io.StringIO()
    before = handler.setStream(written)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    handler.setStream(before)


@pytest.fixture
def alice(environment: None, issuer: Issuer) -> Person:
    """Return a user that the service does not know yet."""
    return Person(uuid4().hex, issuer)


@pytest.fixture
def bob(environment: None, issuer: Issuer) -> Person:
    """Return a second such user."""
    return Person(uuid4().hex, issuer)
