"""A model may send any bytes for any time: the turn ends in time and within memory.

Promises, for each answer below and for random ones: the request gets 502 or 504 before its time is over. The process
stays below 300 MB. The turn is intact: its key gives the reply when the model is healthy, and the conversation
continues.
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
RANDOM_ANSWERS = 200 if "THOROUGH" in os.environ else 25
MOST_MEMORY = 300 * 2**20
SECONDS = 12
"""Time of a request: enough for an unbounded answer to exceed the memory."""
SHORT = 2.5
"""Time of a request that uses all of it. The handler keeps 1.5 s to store its progress and to answer."""

APIS = ["responses", "chat_completions"]
EACH = [(what, "responses") for what in OF_BYTES] + [(what, api) for what in OF_JSON for api in APIS]


@pytest.fixture(scope="session")
def database_url(server: Postgres) -> str:
    """Return the URL of Postgres itself. Only the model is unusual here."""
    return server.app_url


@pytest.fixture
def provider() -> Iterator[RawProvider]:
    """Serve the provider of the model."""
    with raw_provider.running() as running:
        yield running


@dataclass(frozen=True)
class Attack:
    """A process and a model that sends it any answer."""

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
def test_each_answer_is_bounded_in_time_and_memory(attack: Attack, rows: Rows, what: str) -> None:
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
    query = "select role from message where user_id = %s order by position"
    assert [row["role"] for row in rows.execute(query, [attack.client.id])] == ["user", "assistant"] * 2
    check_memory(attack)


def test_an_answer_through_a_proxy_is_bounded(
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
def test_random_answers_are_bounded(attack: Attack, model_api: str, report: Callable[[str], None]) -> None:
    """One warm process takes all of them. The test checks each answer, its time and the highest memory."""
    chance, statuses = random.Random(f"{SEED} {model_api}"), []  # noqa: S311 (no secret)
    for number in range(RANDOM_ANSWERS):
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
    counts = {status: statuses.count(status) for status in sorted(set(statuses))}
    most = attack.environment.peak_memory >> 20
    report(f"{RANDOM_ANSWERS} random answers by {model_api}, seed {SEED}: {counts}, at most {most} MB")
