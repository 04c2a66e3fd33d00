"""An answer before the gateway gives up, from a process of its own and by the client's clock.

Promises: with a model that hangs for 40 seconds the client has its 504 before 29, with conversation_id, turn_id and the
tool_calls that took effect; the same request again finishes the turn without doing any of it twice.
"""

import os
import time
from collections.abc import Callable, Iterator

import pytest

from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from testing.callers import Caller
from tests import db_assertions as truth
from tests.db_assertions import Rows
from tests.environments import Fleet

GATEWAY_PATIENCE = 29.0
"""Seconds that a client may wait for its answer at most."""
MESSAGE = "Add buy milk, then finish the milk"
AFTER = {
    0: ([], []),
    1: (["add_task"], ["insert buy milk"]),
    2: (["add_task", "list_tasks"], ["insert buy milk"]),
    3: (["add_task", "list_tasks", "complete_task"], ["insert buy milk", "update buy milk"]),
}
"""Calls made before the model hangs, and what they have done."""

pytestmark = pytest.mark.parametrize("database_url", ["pooled"], indirect=True)


@pytest.fixture(autouse=True)
def watched(rows: Rows) -> Iterator[None]:
    """The database notes every effect by itself."""
    with truth.watched(rows):
        yield


def check_hanging(fleet: Fleet, standin: StandIn, rows: Rows, client: Caller, calls: int, seconds: float) -> float:
    """Have the model hang after so many calls, with so many seconds to go. The seconds the client waited."""
    standin.fault("hang", match=MESSAGE, after_calls=calls, seconds=40)
    request = client.request({"message": MESSAGE}, "key")
    tools, effects = AFTER[calls]
    with fleet.cold() as environment:
        began = time.monotonic()
        late = environment.ask(request, seconds=seconds).answer
        waited = time.monotonic() - began
        assert (late.status, waited < GATEWAY_PATIENCE) == (504, True), (late.body, waited)
        assert [call["tool"] for call in late.json["tool_calls"]] == tools
        assert truth.effects(rows, client.id) == effects
        done = environment.ask(request).answer
    truth.check_turn(rows, client.id, MESSAGE, done)
    assert (done.json["conversation_id"], done.json["turn_id"]) == (late.json["conversation_id"], late.json["turn_id"])
    assert done.json["tool_calls"][:calls] == late.json["tool_calls"]
    assert [call["tool"] for call in done.json["tool_calls"]] == AFTER[3][0]
    assert truth.effects(rows, client.id) == AFTER[3][1]
    return waited


@pytest.mark.parametrize("calls", AFTER)
def test_a_hanging_model_leaves_an_honest_answer_and_a_turn_to_finish(
    fleet: Fleet, standin: StandIn, rows: Rows, issuer: Issuer, calls: int
) -> None:
    """Wherever in the turn it hangs: 504 tells what was done, and the retry does only the rest."""
    check_hanging(fleet, standin, rows, Caller.new(issuer), calls, seconds=3)


@pytest.mark.skipif("CI" not in os.environ, reason="waits for the real deadline: set CI to run it")
def test_the_answer_comes_before_the_gateway_gives_up(
    fleet: Fleet, standin: StandIn, rows: Rows, issuer: Issuer, tell: Callable[[str], None]
) -> None:
    """With all the time that Lambda and the gateway give: before 29 seconds."""
    waited = check_hanging(fleet, standin, rows, Caller.new(issuer), calls=1, seconds=30)
    tell(f"The model hung for 40 s: 504 after {waited:.1f} s, and the retry finished the turn")
