"""A streamed turn happens once, wherever its process is killed or frozen.

Promises: SIGKILL may end the process at any event of the stream, and at any moment between two. The same key then gives
each effect once and one list of events: complete, in order, and equal to Postgres and to the JSON answer. A call that
was shown as finished before the kill is in that list, as it was shown. A process that wakes up after its lease writes
nothing, and its stream ends with `failed`.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest

from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from testing.callers import Caller
from testing.gateway import Response
from tests import db_assertions, personal_data
from tests.crash_points import Trap
from tests.db_assertions import Rows
from tests.domain import example
from tests.environments import Environment, Fleet, Outcome
from tests.stream_lists import AG_UI, AI_SDK, EVENTS, JSON, STREAMS, Asked, Shown, read

Report = Callable[[str], None]
SEVERAL = example.add("milk", "call mum").then(example.change("milk"))
BEFORE = "Let me see what can be done."
"""A message that the model writes before its first calls."""
IS_THOROUGH = "THOROUGH" in os.environ


RENEWAL = [
    f"{when} {what}" for what in ("select set_config", "UPDATE conversation", "commit") for when in ("before", "after")
]
"""The points of a renewal's transaction."""
AMONG_RENEWALS = 30
"""Number of a point that only renewals reach so often: a turn has a handful of transactions without them."""


@pytest.fixture(autouse=True)
def watched(rows: Rows) -> Iterator[None]:
    """Have Postgres record every effect."""
    with db_assertions.watched(rows):
        yield


@dataclass
class Trial:
    """A new user sends one message in several attempts."""

    rows: Rows
    issuer: Issuer
    standin: StandIn
    is_new_thread: bool = True
    """True if the protocol lets the client choose the conversation's id."""
    key: str = field(default_factory=lambda: f"key-{uuid4()}")

    def __post_init__(self) -> None:
        self.caller = Caller.new(self.issuer)
        self.asked = Asked(SEVERAL, str(uuid4()) if self.is_new_thread else None, self.key)
        self.standin.reset()
        self.standin.fault("preamble", match=SEVERAL, text=BEFORE)

    def ask(self, environment: Environment, protocol: str, trap: Trap | None = None) -> Outcome:
        """Send the request."""
        request = self.caller.request(self.asked.body(protocol), None, **self.asked.headers(protocol))
        return environment.ask(request, trap, is_streamed=protocol != JSON)

    def let_leases_run_out(self) -> None:
        """End the lease of a process that is dead or frozen, after Postgres has run its last statements."""
        db_assertions.settle(self.rows)
        db_assertions.let_leases_run_out(self.rows, self.caller.id)

    def check_done(self, environment: Environment, protocol: str, *others: str) -> Shown:
        """Send the request until it is done. Check its list, its rows and its replays in these other protocols."""
        shown = read(protocol, self.ask(environment, protocol).shown)
        answer = self._replay(environment)
        shown.check_equals(answer.json)
        for other in others:
            again = read(other, self.ask(environment, other).shown)
            again.check_equals(answer.json)
            assert again.accepted["replayed"] is True
            assert again.messages == [answer.json["response"]]
        db_assertions.check_turn(self.rows, self.caller.id, SEVERAL, answer)
        assert db_assertions.effects(self.rows, self.caller.id) == SEVERAL.effects
        return shown

    def _replay(self, environment: Environment) -> Response:
        answer = self.ask(environment, JSON).answer
        assert answer.headers["idempotent-replayed"] == "true"
        return answer

    def written(self) -> dict[str, Any]:
        """Return the user's rows, without the tokens of the day: they are counted in any case."""
        stored = personal_data.stored(self.rows, self.caller.id)
        del stored["allowance"]
        return stored

    def check_kept(self, before: Shown, after: Shown) -> None:
        """Check that each call that was shown as finished is in the later list, as it was."""
        kept = {call.call_id: call for call in after.done}
        assert all(kept[call.call_id] == call for call in before.done)


def points(passed: list[str], *, is_brief: bool) -> Iterator[Trap]:
    """Yield a trap for each point of a turn, or for some points in each of its parts."""
    numbers = Counter[str]()
    for label in passed:
        numbers[label] += 1
        is_event = label.startswith("stream: after")
        if (
            IS_THOROUGH
            or (is_event and (not is_brief or numbers[label] == 1))
            or (not is_brief and label == "before commit")
        ):
            yield Trap.kill(numbers[label], label)


WAYS = [
    # protocol, model API
    (EVENTS, "responses"),
    (EVENTS, "chat_completions"),
    (AG_UI, "responses"),
    (AI_SDK, "responses"),
]


@pytest.mark.parametrize("database_url", ["pooled"], indirect=True)
@pytest.mark.parametrize(("protocol", "model_api"), WAYS, indirect=["model_api"])
def test_killed_at_any_event_the_same_key_gives_one_complete_list(
    protocol: str, model_api: str, fleet: Fleet, rows: Rows, issuer: Issuer, standin: StandIn, report: Report
) -> None:
    """It is killed after events of each kind and before each commit; with THOROUGH, at every point."""
    environment = fleet.start()
    whole = Trial(rows, issuer, standin, protocol != EVENTS)
    reference = whole.ask(environment, protocol)
    shown = read(protocol, reference.shown)
    assert (shown.messages[0], len(shown.done)) == (BEFORE, len(SEVERAL.tools))
    killed = Counter[str]()
    is_brief = (protocol, model_api) != (EVENTS, "responses")
    for trap in points(reference.passed, is_brief=is_brief):
        trial = Trial(rows, issuer, standin, protocol != EVENTS)
        try:
            killed[_kill(trial, trap, protocol, fleet, environment)] += 1
        except (AssertionError, KeyError) as error:
            raise AssertionError(f"killed at {trap.on}, number {trap.at}: {error!r}") from error
    assert killed["killed"] > killed["not killed"]
    report(f"a stream ({protocol}, {model_api}): killed at {killed['killed']} points, {killed['not killed']} missed")


def _kill(trial: Trial, trap: Trap, protocol: str, fleet: Fleet, environment: Environment) -> str:
    with fleet.cold() as dying:
        outcome = trial.ask(dying, protocol, trap)
    trial.let_leases_run_out()
    after = trial.check_done(environment, protocol, *(STREAMS if trial.is_new_thread and trap.at == 1 else [EVENTS]))
    if outcome.shown:
        before = read(protocol, outcome.shown, is_cut=outcome.response is None)
        trial.check_kept(before, after)
        for name in ("conversation_id", "turn_id"):
            assert before.accepted[name] == after.accepted[name]
    return "not killed" if outcome.response else "killed"


class TestZombie:
    """A process is stopped in the middle of its stream, and continues after another one has done the turn."""

    @pytest.mark.parametrize("database_url", ["pooled"], indirect=True)
    @pytest.mark.parametrize("protocol", STREAMS)
    @pytest.mark.parametrize("calls", [0, 1, len(SEVERAL.tools)])
    def test_it_writes_nothing_and_ends_its_stream_with_failed(
        self, calls: int, protocol: str, fleet: Fleet, rows: Rows, issuer: Issuer, standin: StandIn
    ) -> None:
        """It was stopped after so many results. Its list tells no call that is not recorded."""
        trial = Trial(rows, issuer, standin, protocol != EVENTS)
        zombie, environment = fleet.start(), fleet.start()
        frozen = trial.ask(zombie, protocol, _freeze(protocol, calls))
        assert frozen.trapped
        trial.let_leases_run_out()
        after = trial.check_done(environment, protocol)
        before = trial.written()
        zombie.thaw()
        late = zombie.outcome()
        assert late.response
        shown = read(protocol, late.shown)
        shown.check_failed()
        shown.check_calls([vars(call) for call in after.done], is_whole=False)
        assert _is_in_progress(shown.problem), shown.problem
        assert trial.written() == before
        assert db_assertions.effects(rows, trial.caller.id) == SEVERAL.effects

    @pytest.mark.parametrize("database_url", ["pooled"], indirect=True)
    def test_stopped_in_its_reply_it_stores_none(
        self, fleet: Fleet, rows: Rows, issuer: Issuer, standin: StandIn
    ) -> None:
        """The model had not ended its reply. The words that were shown are not taken back, and `failed` follows."""
        trial = Trial(rows, issuer, standin, is_new_thread=False)
        zombie, environment = fleet.start(), fleet.start()
        standin.fault("pause", match=SEVERAL, after_calls=len(SEVERAL.tools), pieces=2)
        frozen = trial.ask(zombie, EVENTS, _freeze_at("text", len(BEFORE.split()) + 2))
        assert frozen.trapped, frozen.shown
        trial.let_leases_run_out()
        after = trial.check_done(environment, EVENTS)
        before = trial.written()
        zombie.thaw()
        standin.release()
        late = zombie.outcome().shown
        assert late.startswith(frozen.shown)
        shown = read(EVENTS, late)
        shown.check_failed()
        assert after.messages[-1].startswith(read(EVENTS, frozen.shown, is_cut=True).messages[-1])
        assert _is_in_progress(shown.problem), shown.problem
        assert trial.written() == before


class TestRenewal:
    """A process is killed or stopped when it renews its lease, while the model thinks."""

    @pytest.fixture
    def renewing(self, fleet: Fleet) -> Iterator[Fleet]:
        """Deploy processes that renew a lease without a pause."""
        renewing = fleet.renewing_every(0)
        yield renewing
        renewing.stop()

    @pytest.mark.parametrize("database_url", ["pooled"], indirect=True)
    @pytest.mark.parametrize("protocol", [EVENTS, JSON])
    @pytest.mark.parametrize("point", RENEWAL)
    def test_killed_at_any_point_of_it_the_turn_happens_once(
        self,
        point: str,
        protocol: str,
        renewing: Fleet,
        fleet: Fleet,
        rows: Rows,
        issuer: Issuer,
        standin: StandIn,
    ) -> None:
        """The lease has its old end or its new one. Both run out, and the same key goes on."""
        trial = Trial(rows, issuer, standin, is_new_thread=False)
        standin.fault("hang", match=SEVERAL)
        with renewing.cold() as dying:
            assert trial.ask(dying, protocol, Trap.kill(AMONG_RENEWALS, point)).trapped
        standin.reset()
        trial.let_leases_run_out()
        trial.check_done(fleet.start(), EVENTS, EVENTS)

    @pytest.mark.parametrize("database_url", ["pooled"], indirect=True)
    @pytest.mark.parametrize("point", ["after commit"])
    def test_stopped_between_two_it_loses_its_lease_and_ends_at_once(
        self, point: str, renewing: Fleet, fleet: Fleet, rows: Rows, issuer: Issuer, standin: StandIn
    ) -> None:
        """Another process has done the turn. It does not wait for the model any more: `failed`, and nothing written."""
        trial = Trial(rows, issuer, standin, is_new_thread=False)
        standin.fault("hang", match=SEVERAL)
        zombie = renewing.start()
        assert trial.ask(zombie, EVENTS, Trap.freeze(AMONG_RENEWALS, point)).trapped
        standin.reset()
        trial.let_leases_run_out()
        after = trial.check_done(fleet.start(), EVENTS)
        before = trial.written()
        zombie.thaw()
        shown = read(EVENTS, zombie.outcome().shown)
        assert _is_in_progress(shown.check_failed()), shown.problem
        shown.check_calls([vars(call) for call in after.done], is_whole=False)
        assert trial.written() == before


RESULTS = {EVENTS: "tool_finished", AG_UI: "TOOL_CALL_RESULT", AI_SDK: "tool-output-available"}
FIRST = {EVENTS: "accepted", AG_UI: "RUN_STARTED", AI_SDK: "start"}


def _freeze(protocol: str, calls: int) -> Trap:
    return _freeze_at(RESULTS[protocol], calls) if calls else _freeze_at(FIRST[protocol], 1)


def _freeze_at(name: str, number: int) -> Trap:
    return Trap.freeze(number, f'stream: after "{name}"')


def _is_in_progress(problem: dict[str, Any] | None) -> bool:
    return "turn-in-progress" in str(problem) or "still running" in str(problem)
