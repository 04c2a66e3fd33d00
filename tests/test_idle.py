"""An execution environment that was frozen for long, and all of whose connections have died meanwhile.

Promises: the next request is answered with 200 before its deadline, its effects are there once, and it waits at most
the time in which the database must answer. A connection to the model that went dead within five seconds, without a word
to either end, costs one request its time: 504, and its key goes on.
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
from tests import db_assertions as truth
from tests import proxy
from tests.conftest import Person, forget, variables
from tests.db_assertions import Rows
from tests.environments import Environment, Fleet, Zygote
from tests.proxy import Proxy
from tests.test_auth import listening

MESSAGE = "Add buy milk, then finish the milk"
MODEL_KEPT_FOR = 5.0
"""Seconds for which an idle connection to the model is kept, by docs/failures.md."""
EFFECTS = ["insert buy milk", "update buy milk"]


@dataclass(frozen=True)
class Wires:
    """What an environment reaches others through."""

    database: Proxy
    model: Proxy
    keys: Proxy

    @property
    def all(self) -> list[Proxy]:
        """Every one of them."""
        return [self.database, self.model, self.keys]


@pytest.fixture
def wires(server: Postgres, standin: StandIn, issuer: Issuer, reached: dict[str, str], rows: Rows) -> Iterator[Wires]:
    """Wires to the database, to the model and to a server that publishes the key set."""
    with ExitStack() as stack:
        published = stack.enter_context(listening())
        published.body = issuer.jwks_json.encode()
        stack.enter_context(truth.watched(rows))
        urls = server.app_url, standin.base_url, published.url
        found = Wires(*(stack.enter_context(proxy.running(url)) for url in urls))
        names = "DATABASE_URL", "OPENAI_BASE_URL", "AUTH_JWKS_URL"
        reached |= {name: wire.url(url) for name, wire, url in zip(names, found.all, urls, strict=True)}
        yield found


@pytest.fixture
def reached(server: Postgres, standin: StandIn, issuer: Issuer) -> dict[str, str]:
    """The variables of an environment that fetches its keys."""
    return variables(server.app_url, standin, issuer) | {"AUTH_JWKS_JSON": ""}


@pytest.fixture
def client(issuer: Issuer) -> Caller:
    """Somebody who calls."""
    return Caller.new(issuer)


@pytest.fixture
def idle(warm_zygote: Zygote, wires: Wires, reached: dict[str, str], client: Caller) -> Iterator[Environment]:
    """An environment that has done a turn, and is frozen."""
    fleet = Fleet(warm_zygote, reached)
    environment = fleet.start()
    assert environment.ask(client.request({"message": "hello"})).answer.status == 200
    environment.freeze()
    yield environment
    fleet.stop()


def test_every_connection_was_closed(idle: Environment, wires: Wires, client: Caller, rows: Rows) -> None:
    """By the servers, as after an hour: nobody notices."""
    for wire in wires.all:
        wire.forget_connections(tell=True)
    idle.thaw()
    truth.check_turn(rows, client.id, MESSAGE, idle.ask(client.request({"message": MESSAGE}), seconds=10).answer)
    assert truth.effects(rows, client.id) == EFFECTS


@pytest.mark.parametrize("seconds", [30.0, 8.0])
def test_the_database_connection_is_dead_and_nobody_was_told(
    idle: Environment, wires: Wires, client: Caller, rows: Rows, seconds: float
) -> None:
    """What is sent on it vanishes. The first statement waits for its answer for a while, and is sent on a new one."""
    wires.database.forget_connections(tell=False)
    idle.thaw()
    began = time.monotonic()
    answer = idle.ask(client.request({"message": MESSAGE}), seconds=seconds).answer
    took = time.monotonic() - began
    truth.check_turn(rows, client.id, MESSAGE, answer)
    assert truth.effects(rows, client.id) == EFFECTS
    assert took < min(CONNECT_TIMEOUT + 2, seconds)


def test_a_database_connection_of_a_while_ago_is_not_even_tried(
    wires: Wires, reached: dict[str, str], issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is replaced by its age, by the time of day: a monotonic clock may stand still in a frozen process."""
    for name, value in reached.items():
        monkeypatch.setenv(name, value)
    alice, now = Person(uuid4().hex, issuer), time.time()
    token = f"Bearer {alice.token}"
    try:
        assert alice.say("hello").status == 200
        wires.database.forget_connections(tell=False)
        monkeypatch.setattr(time, "time", lambda: now + RECYCLE_AFTER + 1)
        began = time.monotonic()
        assert alice.say("hello", authorization=token).status == 200
        assert time.monotonic() - began < CONNECT_TIMEOUT
    finally:
        forget()


def test_model_connections_are_not_kept_for_long() -> None:
    """Shorter than servers and firewalls keep an idle one."""
    assert openai.DEFAULT_CONNECTION_LIMITS.keepalive_expiry == MODEL_KEPT_FOR


def test_the_model_connection_is_dead_and_nobody_was_told(
    idle: Environment, wires: Wires, client: Caller, rows: Rows
) -> None:
    """Nothing tells it from a model that thinks: the request is out of time, and its key goes on."""
    wires.model.forget_connections(tell=False)
    idle.thaw()
    request = client.request({"message": MESSAGE}, "key")
    late = idle.ask(request, seconds=4).answer
    assert (late.status, late.json["tool_calls"]) == (504, [])
    truth.check_turn(rows, client.id, MESSAGE, idle.ask(request).answer)
    assert truth.effects(rows, client.id) == EFFECTS
