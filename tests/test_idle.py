"""An execution environment was frozen for a long time, and all its connections have died meanwhile.

Promises: the next request gets a 200 before its deadline. Its effects happen once. It waits no longer than the time in
which Postgres must answer. A connection to the model that died silently within five seconds costs one request its time:
a 504, whose key resumes the turn.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from uuid import uuid4

import openai
import pytest

from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from taskchat.database.engine import CONNECT_TIMEOUT, RECYCLE_AFTER
from testing.callers import Caller
from tests import db_assertions, proxy
from tests.conftest import Person, reset_processes, variables
from tests.db_assertions import Rows
from tests.domain import example
from tests.environments import Environment, Fleet, ForkServer
from tests.proxy import Proxy
from tests.test_auth import listening

MESSAGE = example.add("buy milk").then(example.change("buy milk"))
MODEL_KEPT_FOR = 5.0
"""Seconds for which an idle connection to the model is kept, by docs/failures.md."""


@dataclass(frozen=True)
class Proxies:
    """Hold the proxies between an environment and its servers."""

    database: Proxy
    model: Proxy
    keys: Proxy

    @property
    def all(self) -> list[Proxy]:
        """Return all proxies."""
        return [self.database, self.model, self.keys]


@pytest.fixture
def proxies(
    server: Postgres, standin: StandIn, issuer: Issuer, reached: dict[str, str], rows: Rows
) -> Iterator[Proxies]:
    """Run proxies to Postgres, to the model and to a server with the key set."""
    with ExitStack() as stack:
        published = stack.enter_context(listening())
        published.body = issuer.jwks_json.encode()
        stack.enter_context(db_assertions.watched(rows))
        urls = server.app_url, standin.base_url, published.url
        found = Proxies(*(stack.enter_context(proxy.running(url)) for url in urls))
        names = "DATABASE_URL", "OPENAI_BASE_URL", "AUTH_JWKS_URL"
        reached |= {name: each.url(url) for name, each, url in zip(names, found.all, urls, strict=True)}
        yield found


@pytest.fixture
def reached(server: Postgres, standin: StandIn, issuer: Issuer) -> dict[str, str]:
    """Return the variables of an environment that fetches its keys."""
    return variables(server.app_url, standin, issuer) | {"AUTH_JWKS_JSON": ""}


@pytest.fixture
def client(issuer: Issuer) -> Caller:
    """Return a caller."""
    return Caller.new(issuer)


@pytest.fixture
def idle(
    warm_fork_server: ForkServer, proxies: Proxies, reached: dict[str, str], client: Caller
) -> Iterator[Environment]:
    """Start an environment, take a turn in it and freeze it."""
    fleet = Fleet(warm_fork_server, reached)
    environment = fleet.start()
    assert environment.ask(client.request({"message": "hello"})).answer.status == 200
    environment.freeze()
    yield environment
    fleet.stop()


def test_closed_connections_do_not_fail_a_request(
    idle: Environment, proxies: Proxies, client: Caller, rows: Rows
) -> None:
    """The servers close all connections, as after an hour, and the client sees nothing of it."""
    for each in proxies.all:
        each.abandon_connections(close=True)
    idle.thaw()
    db_assertions.check_turn(
        rows, client.id, MESSAGE, idle.ask(client.request({"message": MESSAGE}), seconds=10).answer
    )
    assert db_assertions.effects(rows, client.id) == MESSAGE.effects


@pytest.mark.parametrize("seconds", [30.0, 8.0])
def test_a_silently_dead_database_connection_delays_a_request_for_a_bounded_time(
    idle: Environment, proxies: Proxies, client: Caller, rows: Rows, seconds: float
) -> None:
    """The first statement gets no answer within its time, and is sent on a new connection."""
    proxies.database.abandon_connections(close=False)
    idle.thaw()
    began = time.monotonic()
    answer = idle.ask(client.request({"message": MESSAGE}), seconds=seconds).answer
    took = time.monotonic() - began
    db_assertions.check_turn(rows, client.id, MESSAGE, answer)
    assert db_assertions.effects(rows, client.id) == MESSAGE.effects
    assert took < min(CONNECT_TIMEOUT + 2, seconds)


def test_an_old_database_connection_is_replaced_before_use(
    proxies: Proxies, reached: dict[str, str], issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its age counts by the time of day: a monotonic clock may stand still in a frozen process."""
    for name, value in reached.items():
        monkeypatch.setenv(name, value)
    alice, now = Person(uuid4().hex, issuer), time.time()
    token = f"Bearer {alice.token}"
    try:
        assert alice.say("hello").status == 200
        proxies.database.abandon_connections(close=False)
        monkeypatch.setattr(time, "time", lambda: now + RECYCLE_AFTER + 1)
        began = time.monotonic()
        assert alice.say("hello", authorization=token).status == 200
        assert time.monotonic() - began < CONNECT_TIMEOUT
    finally:
        reset_processes()


def test_idle_model_connections_are_closed_soon() -> None:
    """The client keeps them for less time than servers and firewalls do."""
    assert openai.DEFAULT_CONNECTION_LIMITS.keepalive_expiry == MODEL_KEPT_FOR


def test_a_silently_dead_model_connection_costs_one_request(
    idle: Environment, proxies: Proxies, client: Caller, rows: Rows
) -> None:
    """It looks like a model that thinks: the request runs out of time, and its key resumes the turn."""
    proxies.model.abandon_connections(close=False)
    idle.thaw()
    request = client.request({"message": MESSAGE}, "key")
    late = idle.ask(request, seconds=4).answer
    assert (late.status, late.json["tool_calls"]) == (504, [])
    db_assertions.check_turn(rows, client.id, MESSAGE, idle.ask(request).answer)
    assert db_assertions.effects(rows, client.id) == MESSAGE.effects
