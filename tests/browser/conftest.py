"""Run the chat page in a real Chromium, on the real server, Postgres and the stand-in model."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import pytest
from playwright.sync_api import Browser, expect

from dev import chromium, processes, state
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from tests import proxy
from tests.browser.names import PERSON
from tests.browser.person import Person
from tests.conftest import variables

if TYPE_CHECKING:
    from tests.privacy import LogSearch

START_SECONDS = 120
HOST = "127.0.0.1"
NO_DATABASE = "postgresql://127.0.0.1:9/none"
"""For the sign-in server of MCP clients, which these tests do not start."""
Rows = psycopg.Connection[dict[str, Any]]
Start = Callable[..., contextlib.AbstractContextManager[str]]

expect.set_options(timeout=15_000)  # milliseconds; a quiet machine needs a hundredth of it


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Run Chromium for these tests alone: while it runs, no other test of the worker can run an event loop."""
    with chromium.running() as running:
        yield running


@pytest.fixture(scope="session")
def start(
    server: Postgres, running_model: StandIn, log_search: "LogSearch", tmp_path_factory: pytest.TempPathFactory
) -> Start:
    """Give a function that serves the page and the API with further variables, at an address that it yields."""

    @contextlib.contextmanager
    def starting(port: int = 0, **more: str) -> Iterator[str]:
        directory = tmp_path_factory.mktemp("site")
        issuer = Issuer.stored(directory / "issuer.pem")
        environment = os.environ | variables(server.app_url, running_model, issuer)
        url = f"http://{HOST}:{port or processes.free_port(HOST)}"
        environment |= {"TASKCHAT_DEV_DIR": str(directory), "AUTH_SERVER_DATABASE_URL": NO_DATABASE, **more}
        with _serving(url, directory / "server.log", environment):
            yield url
        log_search.add_output((directory / "server.log").read_text())

    return starting


@contextlib.contextmanager
def _serving(url: str, log: Path, environment: dict[str, str]) -> Iterator[None]:
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "tests.browser.app:app",
        "--host",
        HOST,
        "--port",
        url.rpartition(":")[2],
    ]
    command += ["--log-level", "warning", "--no-access-log", "--timeout-graceful-shutdown", "1"]
    with log.open("wb") as output:
        process = processes.spawn(command, output=output, cwd=state.ROOT, env=environment)
        try:
            processes.wait_until_listening(process, HOST, int(url.rpartition(":")[2]), START_SECONDS)
            yield
        finally:
            processes.stop(process, signal.SIGTERM)


@pytest.fixture(scope="session")
def database(server: Postgres) -> Iterator[proxy.Proxy]:
    """Run a proxy between the server and Postgres, for tests of a database that cannot be reached."""
    with proxy.running(server.app_url) as running:
        yield running


@pytest.fixture(scope="session")
def site(start: Start, database: proxy.Proxy, server: Postgres) -> Iterator[str]:
    """Serve the page, and give its address."""
    with start(DATABASE_URL=database.url(server.app_url)) as url:
        yield url


@pytest.fixture
def new_person(browser: Browser, rows: Rows, standin: StandIn) -> Iterator[Callable[..., Person]]:
    """Give a function that makes a person with a browser of their own. Fail if a page of theirs reported a fault."""
    made: list[Person] = []

    def make(url: str, user_id: str | None = None, **options: Any) -> Person:
        context = browser.new_context(**options)
        made.append(Person(user_id or uuid4().hex, url, context, rows))
        context.add_cookies([{"name": PERSON, "value": made[-1].id, "url": url}])
        return made[-1]

    yield make
    for person in made:
        person.context.close()
    assert [fault for person in made for fault in person.faults] == []


@pytest.fixture
def alice(new_person: Callable[..., Person], site: str) -> Person:
    """Return a person that the service does not know yet."""
    return new_person(site)
