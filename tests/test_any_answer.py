"""A model that sends anything for as long as it likes: whatever comes, the turn ends in time and within memory.

Promises, for each answer below and for any made by chance: the request is answered before its time is over, with 502 or
504; the process stays below 300 MB; nothing that is at fault is logged as unexpected; and the turn is intact: its key
gives the reply once the model is well, and the conversation goes on.
"""

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from dev.postgres import Postgres
from dev.tokens import Issuer
from testing.callers import Caller
from testing.gateway import Response
from tests import raw_provider
from tests.conftest import variables
from tests.environments import Environment, Fleet, ForkServer
from tests.raw_provider import LASTING, OF_BYTES, OF_JSON, SHAPES, RawProvider, any_shape, good_answer, seconds_of

Rows = psycopg.Connection[dict[str, Any]]

SEED = int(os.environ.get("FUZZ_SEED") or random.SystemRandom().randrange(10**6))
BY_CHANCE = 200 if "THOROUGH" in os.environ else 25
MOST_MEMORY = 300 * 2**20
SECONDS = 12
"""Time of a request: enough for an answer without a bound to take more memory than there may be."""
SHORT = 2.5
"""Time of a request that lasts to its end. It keeps 1.5 s of it to store its progress and to answer."""

APIS = ["responses", "chat_completions"]
EACH = [(what, "responses") for what in OF_BYTES] + [(what, api) for what in OF_JSON for api in APIS]


@pytest.fixture(scope="session")
def database_url(server: Postgres) -> str:
    """Return the URL of Postgres itself: only the model differs here."""
    return server.app_url


@pytest.fixture
def provider() -> Iterator[RawProvider]:
    """Serve the provider of the model."""
    with raw_provider.running() as running:
        yield running


@dataclass(frozen=True)
class Attack:
    """A process of its own, and a model that answers in any way."""

    environment: Environment
    provider: RawProvider
    client: Caller

    def ask(self, message: str, key: str, conversation_id: str | None = None, seconds: float = 30) -> Response:
        """Run one turn."""
        body = {"message": message, "conversation_id": conversation_id}
        return self.environment.ask(self.client.request(body, key), seconds=seconds).answer

    def check_the_turn_is_intact(self, failed: Response) -> None:
        """A request with its key finishes the turn, and another turn follows."""
        self.provider.shapes = [good_answer]
        again = self.ask("hello", "k")
        assert (again.status, again.json["turn_id"]) == (200, failed.json["turn_id"])
        assert self.ask("and now?", "l", failed.json["conversation_id"]).status == 200


@pytest.fixture
def attack(
    warm_fork_server: ForkServer,
    database_url: str,
    running_model: Any,
    issuer: Issuer,
    model_api: str,
    provider: RawProvider,
) -> Iterator[Attack]:
    """Start a process for a new user."""
    known = variables(database_url, running_model, issuer, model_api) | {"OPENAI_BASE_URL": provider.url}
    fleet = Fleet(warm_fork_server, known)
    with fleet.cold() as environment:
        yield Attack(environment, provider, Caller.new(issuer))


def check_memory(attack: Attack) -> None:
    """Check that its highest memory is within the bound."""
    assert attack.environment.peak_memory < MOST_MEMORY, f"{attack.environment.peak_memory / 2**20:.0f} MB"


@pytest.mark.parametrize(("what", "model_api"), EACH, indirect=["model_api"])
def test_no_answer_costs_more_than_it_may(attack: Attack, rows: Rows, what: str) -> None:
    """The answer takes neither more memory nor more time than allowed, and the turn can be resumed."""
    answers: list[Response] = []
    attack.provider.shapes = [SHAPES[what]]
    seconds = SHORT if what in LASTING else SECONDS
    took = seconds_of(lambda: answers.append(attack.ask("hello", "k", seconds=seconds)))
    (failed,) = answers
    check_memory(attack)
    assert took < seconds
    assert failed.status in (502, 504)
    attack.check_the_turn_is_intact(failed)
    said = rows.execute("select role from message where user_id = %s order by position", [attack.client.id]).fetchall()
    assert [row["role"] for row in said] == ["user", "assistant"] * 2
    check_memory(attack)


def test_nor_does_one_that_comes_through_a_proxy(
    warm_fork_server: ForkServer, database_url: str, running_model: Any, issuer: Issuer, provider: RawProvider
) -> None:
    """The client uses HTTP_PROXY as usual, and the bound also holds for answers through the proxy."""
    known = variables(database_url, running_model, issuer) | {"OPENAI_BASE_URL": "http://model.invalid/v1"}
    known |= {"HTTP_PROXY": provider.url.removesuffix("/v1"), "NO_PROXY": "", "no_proxy": ""}
    with Fleet(warm_fork_server, known).cold() as environment:
        attack = Attack(environment, provider, Caller.new(issuer))
        for what in ("a gigabyte in gzip", "an endless body", "an endless error"):
            provider.shapes = [SHAPES[what]]
            assert attack.ask("hello", what.replace(" ", "-"), seconds=SECONDS).status == 502
        check_memory(attack)
        provider.shapes = [good_answer]
        assert attack.ask("hello", "well").status == 200


@pytest.mark.parametrize("model_api", APIS, indirect=True)
def test_nor_does_any_made_by_chance(attack: Attack, model_api: str, report: Callable[[str], None]) -> None:
    """One process for all, as a warm environment: each answer, time and the highest memory are checked."""
    chance, statuses = random.Random(f"{SEED} {model_api}"), []  # noqa: S311 (no secret)
    for number in range(BY_CHANCE):
        attack.provider.shapes = [any_shape(chance)]
        answers: list[Response] = []
        key = f"k{number}"
        took = seconds_of(lambda key=key, answers=answers: answers.append(attack.ask("hello", key, seconds=SHORT)))
        statuses.append(answers[0].status)
        assert took < SHORT, f"number {number} of seed {SEED}"
        assert statuses[-1] in (200, 502, 504), f"number {number} of seed {SEED}"
        check_memory(attack)
    attack.provider.shapes = [good_answer]
    assert attack.ask("hello", "well").status == 200
    told = {status: statuses.count(status) for status in sorted(set(statuses))}
    most = attack.environment.peak_memory >> 20
    report(f"{BY_CHANCE} answers by chance by {model_api}, seed {SEED}: {told}, at most {most} MB")
