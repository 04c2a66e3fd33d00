"""The client gets an answer before the gateway's timeout, from a separate process and by the client's clock.

Promises: when the model hangs for 40 seconds, the client gets a 504 within 29, with conversation_id, turn_id and the
tool_calls that took effect. The same request again finishes the turn and repeats none of them.
"""

import os
import time
from collections.abc import Callable, Iterator

import pytest

from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from testing.callers import Caller
from tests import db_assertions
from tests.db_assertions import Rows
from tests.domain import example
from tests.environments import Fleet

GATEWAY_PATIENCE = 29.0
"""Maximum seconds that a client may wait for its answer."""
MESSAGE = example.add("buy milk").then(example.change("buy milk"))
EFFECTS_AFTER = [MESSAGE.effects[:number] for number in (0, 1, 1, 2)]
"""The effects after so many tool calls: the second call only lists."""

pytestmark = pytest.mark.parametrize("database_url", ["pooled"], indirect=True)


@pytest.fixture(autouse=True)
def watched(rows: Rows) -> Iterator[None]:
    """Have Postgres record every effect by itself."""
    with db_assertions.watched(rows):
        yield


def check_hanging(fleet: Fleet, standin: StandIn, rows: Rows, client: Caller, calls: int, seconds: float) -> float:
    """Let the model hang after so many calls, with so many seconds to go. Return the seconds that the client waited."""
    standin.fault("hang", match=MESSAGE, after_calls=calls, seconds=40)
    request = client.request({"message": MESSAGE}, "key")
    with fleet.cold() as environment:
        began = time.monotonic()
        late = environment.ask(request, seconds=seconds).answer
        waited = time.monotonic() - began
        assert (late.status, waited < GATEWAY_PATIENCE) == (504, True), (late.body, waited)
        assert [call["tool"] for call in late.json["tool_calls"]] == MESSAGE.tools[:calls]
        assert db_assertions.effects(rows, client.id) == EFFECTS_AFTER[calls]
        done = environment.ask(request).answer
    db_assertions.check_turn(rows, client.id, MESSAGE, done)
    assert (done.json["conversation_id"], done.json["turn_id"]) == (late.json["conversation_id"], late.json["turn_id"])
    assert done.json["tool_calls"][:calls] == late.json["tool_calls"]
    assert [call["tool"] for call in done.json["tool_calls"]] == MESSAGE.tools
    assert db_assertions.effects(rows, client.id) == MESSAGE.effects
    return waited


@pytest.mark.parametrize("calls", range(len(EFFECTS_AFTER)))
def test_a_504_lists_the_calls_made_and_a_retry_does_only_the_rest(
    fleet: Fleet, standin: StandIn, rows: Rows, issuer: Issuer, calls: int
) -> None:
    """The model may hang before any of the turn's calls."""
    check_hanging(fleet, standin, rows, Caller.new(issuer), calls, seconds=3)


@pytest.mark.skipif("CI" not in os.environ, reason="waits for the real deadline: set CI to run it")
def test_the_answer_comes_before_the_gateways_timeout(
    fleet: Fleet, standin: StandIn, rows: Rows, issuer: Issuer, report: Callable[[str], None]
) -> None:
    """The function has all the time that Lambda and the gateway give."""
    waited = check_hanging(fleet, standin, rows, Caller.new(issuer), calls=1, seconds=30)
    report(f"The model hung for 40 s: 504 after {waited:.1f} s, and the retry finished the turn")
