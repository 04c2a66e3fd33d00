"""The database's password and the model's key are rotated while turns run, and no turn fails.

Promises: a process that is refused reads the secret again, and the same request goes on. A wrong secret does not make
every request read it. The functions run in processes of their own, and Secrets Manager answers over HTTP.
"""

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from dev import processes
from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from migrations.roles import make_runtime_role, read_role
from taskchat import credentials, deadline
from taskchat.credentials import Credentials
from taskchat.database.engine import create_engine_for
from taskchat.settings import Settings, forget_secret, read_again
from testing.callers import Caller
from testing.gateway import Response
from tests import secrets_manager
from tests.conftest import ROOT, variables
from tests.db_assertions import Rows
from tests.domain import example
from tests.environments import Environment, Fleet, ForkServer
from tests.secrets_manager import SecretsManager
from tests.test_mcp_endpoint import McpClient

PATIENCE = 40
PAGE = (ROOT / "docs" / "rotation.md").read_text().replace("\n   ", "\n")
SEEN = "role taskchat_app_b was made."
URL = "postgresql://u:p@h/d"
AFTER = 2
"""Requests of each worker that must succeed before a change, and after it."""


@dataclass
class Deployment:
    """A deployment whose secret has a role of its own, and a key that the model accepts."""

    secret: SecretsManager
    model: StandIn
    server: Postgres
    rows: Rows
    through: Callable[[str], str]
    """Return the URL that the functions use for a direct one."""
    fleet: Fleet
    url: str = ""
    key: str = ""

    def new_role(self) -> str:
        """Make a runtime role with the code of `make migrate`, and return its direct URL."""
        role, password = f"app_{uuid4().hex}", uuid4().hex
        url = f"postgresql://{role}:{password}@{self.server.host}:{self.server.port}/taskchat?sslmode=disable"
        engine = create_engine_for(lambda: self.server.owner_url)
        with engine.begin() as connection:
            assert make_runtime_role(connection, read_role("DATABASE_URL", url)) == SEEN.replace("taskchat_app_b", role)
        engine.dispose()
        return url

    def store(self, url: str | None = None, key: str | None = None) -> None:
        """Put new credentials into the secret. What is left out stays."""
        self.url, self.key = url or self.url, key or self.key
        self.secret.put(DATABASE_URL=self.through(self.url), OPENAI_API_KEY=self.key)

    def change_password(self, password: str) -> str:
        """Give the role another password, and return its new URL."""
        parts = urlsplit(self.url)
        statement = sql.SQL("alter role {} password {}").format(sql.Identifier(parts.username or ""), password)
        self.rows.execute(statement)
        return self.url.replace(quote(str(parts.password)), password)

    def follow(self, step: str, old: str) -> None:
        """Run the statements of docs/rotation.md that begin with `step`, as the owner, for the role of the old URL."""
        (block,) = [
            found for found in re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL) if found.strip().startswith(step)
        ]
        role = urlsplit(old).username or ""
        with psycopg.connect(self.server.owner_url, autocommit=True) as owner:
            owner.execute(block.replace("taskchat_app", role).encode())


@dataclass
class Load:
    """Workers that send one request after another, each for a caller of its own, until the load stops."""

    pool: ThreadPoolExecutor
    stop: threading.Event = field(default_factory=threading.Event)
    workers: list[Future[None]] = field(default_factory=list)
    sent: list[tuple[Caller, list[str]]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def add(self, caller: Caller, send: Callable[[str], Response]) -> None:
        """Begin a worker."""
        self.sent.append((caller, []))
        self.workers.append(self.pool.submit(self._work, send, self.sent[-1][1]))

    def _work(self, send: Callable[[str], Response], sent: list[str]) -> None:
        while not self.stop.is_set():
            mark = f"n{uuid4().hex[:8]}"
            response = send(mark)
            if response.status != 200:
                self.failed.append(f"{response.status} {response.body}")
            sent.append(mark)

    def go_on(self) -> None:
        """Return when each worker has had some more answers."""
        before = [len(marks) for _, marks in self.sent]
        for _ in processes.attempts(PATIENCE):
            for worker in self.workers:
                assert not worker.done(), worker.exception()
            if all(len(marks) >= then + AFTER for (_, marks), then in zip(self.sent, before, strict=True)):
                return
        raise AssertionError("a worker does not go on")


@contextmanager
def load(rows: Rows) -> Iterator[Load]:
    """Run the workers that the block adds, and check that each request succeeded and took effect once."""
    with ThreadPoolExecutor() as pool:
        running = Load(pool)
        try:
            yield running
            running.go_on()
        finally:
            running.stop.set()
    for worker in running.workers:
        worker.result()
    assert running.failed == []
    for caller, marks in running.sent:
        assert example.rows_of(rows, caller.id) == [example.row(mark) for mark in marks]


def chat(environment: Environment, caller: Caller) -> Callable[[str], Response]:
    """Return a function that takes a turn."""
    return lambda mark: environment.ask(caller.request({"message": example.add(mark)})).answer


def mcp(environment: Environment, caller: Caller) -> Callable[[str], Response]:
    """Return a function that calls a tool."""

    def handle(event: dict[str, Any], _context: Any) -> dict[str, Any]:
        answer = environment.ask(event).answer
        return {
            "statusCode": answer.status,
            "headers": answer.headers,
            "body": answer.body,
            "isBase64Encoded": False,
        }

    client = McpClient(caller.mcp_token)
    return lambda mark: client.request("tools/call", handler=handle, **example.call_add(mark))


@pytest.fixture
def deployment(
    warm_fork_server: ForkServer,
    server: Postgres,
    standin: StandIn,
    issuer: Issuer,
    rows: Rows,
    request: pytest.FixtureRequest,
) -> Iterator[Deployment]:
    """Deploy functions whose credentials are only in the secret. Each of their transactions connects anew."""
    pooler: PgBouncer | None = request.getfixturevalue("pooler") if getattr(request, "param", "") == "pooled" else None
    with secrets_manager.running() as secret:
        known = variables("", standin, issuer) | {"OPENAI_API_KEY": "", "RECYCLE_AFTER": "0"} | secret.environment
        fleet = Fleet(warm_fork_server, known)
        through = pooler.url if pooler else str
        made = Deployment(secret, standin, server, rows, through, fleet)
        made.store(made.new_role(), "sk-one")
        standin.accept("sk-one")
        yield made
        fleet.stop()


@pytest.mark.parametrize("deployment", ["direct", "pooled"], indirect=True)
def test_no_request_fails(deployment: Deployment, issuer: Issuer) -> None:
    """Chat turns and MCP calls run during both rotations of docs/rotation.md."""
    with load(deployment.rows) as running:
        for begin in (chat, chat, mcp):
            caller = Caller.new(issuer)
            running.add(caller, begin(deployment.fleet.start(), caller))
        running.go_on()
        two_roles_take_turns(deployment, running)
        assert deployment.secret.reads < 20
        running.go_on()
        old_credentials_end_first(deployment)


def two_roles_take_turns(deployment: Deployment, running: Load) -> None:
    """Make the new credentials, name them in the secret, and then end the old ones."""
    assert SEEN in PAGE
    old = deployment.url
    new = deployment.new_role()
    deployment.model.accept("sk-one", "sk-two")
    deployment.store(new, "sk-two")
    running.go_on()
    deployment.follow("alter role", old)
    deployment.model.accept("sk-two")
    running.go_on()
    deployment.follow("select", old)
    deployment.follow("grant", old)


def old_credentials_end_first(deployment: Deployment) -> None:
    """Requests between the two changes wait for the secret, and go on."""
    new = deployment.change_password(uuid4().hex)
    deployment.model.accept("sk-three")
    deployment.store(new, "sk-three")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[SecretsManager]:
    """Give a secret that this process reads, and make all times of a renewal shorter."""
    for name, seconds in {"RENEW_SECONDS": 0.2, "QUIET_SECONDS": 0.5, "FIRST_PAUSE": 0.02}.items():
        monkeypatch.setattr(credentials, name, seconds)
    with secrets_manager.running() as secret:
        for name, value in secret.environment.items():
            monkeypatch.setenv(name, value)
        secret.put(DATABASE_URL=URL, OPENAI_API_KEY="one")
        yield secret
        forget_secret()


class TestReadingAgain:
    """A refusal makes the process read the secret, but not for ever, and not in every request."""

    def test_a_new_value_is_used_at_once(self, held: SecretsManager) -> None:
        """Both credentials are taken over, and no other setting is."""
        known = Credentials(read_again(Settings, 1))
        held.put(DATABASE_URL=URL + "2", OPENAI_API_KEY="two", MODEL="another")
        assert known.renew("openai_api_key")
        assert (known.model_key(), known.database_url()) == ("two", URL + "2")

    def test_a_wrong_secret_is_read_a_few_times_only(self, held: SecretsManager) -> None:
        """Of a hundred refusals, the first ones read it. Later ones fail at once, until some time has passed."""
        known = Credentials(read_again(Settings, 1))
        before = held.reads
        tries = [known.renew("database_url") for _ in range(100)]
        assert (tries[0], tries[-1]) == (True, False)
        assert held.reads - before <= 7

    def test_a_refusal_of_one_does_not_hide_the_other(self, held: SecretsManager) -> None:
        """The time without reads is that of one credential."""
        known = Credentials(read_again(Settings, 1))
        while known.renew("openai_api_key"):
            pass
        held.put(DATABASE_URL=URL + "2", OPENAI_API_KEY="one")
        assert known.renew("database_url")
        assert known.database_url() == URL + "2"

    def test_a_key_that_is_left_out_stays(self, held: SecretsManager) -> None:
        """Without one, each model call would fail before it is sent: no refusal would make the process read again."""
        known = Credentials(read_again(Settings, 1))
        held.put(DATABASE_URL=URL + "2")
        assert known.renew("database_url")
        assert (known.database_url(), known.model_key()) == (URL + "2", "one")
        assert known.renew("openai_api_key")
        held.put(DATABASE_URL=URL + "2", OPENAI_API_KEY="two")
        while known.model_key() != "two":
            assert known.renew("openai_api_key")

    @pytest.mark.parametrize("broken", ["down", "no URL", "a wrong URL"])
    def test_a_secret_that_cannot_be_used_changes_nothing(self, held: SecretsManager, broken: str) -> None:
        """The old credentials stay, and the request fails as before."""
        known = Credentials(read_again(Settings, 1))
        held.is_down = broken == "down"
        held.put(**{"no URL": {}, "a wrong URL": {"DATABASE_URL": "x"}}.get(broken, {"DATABASE_URL": URL}))
        while known.renew("database_url"):
            pass
        assert (known.database_url(), known.model_key()) == (URL, "one")

    def test_the_deadline_ends_it(self, held: SecretsManager) -> None:
        """A request that has no time left does not wait."""
        known = Credentials(read_again(Settings, 1))
        before = held.reads
        with deadline.within(0.01):
            assert not known.renew("database_url")
        assert held.reads == before

    def test_without_a_secret_nothing_is_read(self, held: SecretsManager, monkeypatch: pytest.MonkeyPatch) -> None:
        """The environment of a process does not change."""
        known = Credentials(read_again(Settings, 1))
        monkeypatch.delenv("APP_SECRET_ARN")
        before = held.reads
        assert not known.renew("database_url")
        assert held.reads == before
