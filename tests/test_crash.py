"""A turn happens once, wherever its process is killed or frozen.

Promises: SIGKILL may end the process at any point. A retry with the key then has one user message, one assistant
message, each effect once and complete tool_calls. Until the lease has run out, the retry gets 409 with Retry-After. A
further retry is replayed byte for byte. A process that wakes up after its lease writes nothing.
"""

import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import uuid4

import pytest

from dev import processes
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from taskchat.conversations.lease import LEASE_SECONDS
from testing.callers import Caller
from testing.gateway import Response
from tests import db_assertions, personal_data
from tests.conftest import variables
from tests.crash_points import SOCKET, STATEMENT, Trap
from tests.db_assertions import Rows
from tests.domain import example
from tests.environments import Environment, Fleet, ForkServer, Outcome
from tests.example_domain import Row, Sentence

Report = Callable[[str], None]
AT_ONCE = 4
"""Concurrent runs. Each is a sequence of processes, and spends most of its time waiting."""
PAIRS = 40 if "THOROUGH" in os.environ else 10
"""Turns that are killed twice in each scenario, at random points."""
SEED = int(os.environ.get("CRASH_SEED") or random.SystemRandom().randrange(10**6))


@dataclass(frozen=True)
class Scenario:
    """A message and its expected effects."""

    message: Sentence
    things: list[Row]
    """The user's rows in the end."""
    before: list[Sentence] = field(default_factory=list)
    """Earlier messages in the same conversation."""
    aside: bool = False
    """True if the earlier messages are in another conversation."""

    @property
    def title(self) -> str:
        """Return the name in the summary."""
        return f"“{self.message}”" + (", as a later turn" if self.before and not self.aside else "")


MILK, MUM = example.row("milk"), example.row("call mum")
CHANGED_MILK = example.row("milk", changed=True)
ADD_MILK, ADD_MUM = example.add("milk"), example.add("call mum")

ONE = Scenario(ADD_MILK, [MILK])
SEVERAL = Scenario(example.add("milk", "call mum").then(example.change("milk")), [CHANGED_MILK, MUM])
DELETE = Scenario(example.delete("milk"), [], [ADD_MILK], aside=True)
RENAME = Scenario(example.rename("milk", "oat milk"), [example.row("oat milk")], [ADD_MILK])
LATER = Scenario(ADD_MUM.then(example.change("milk")), [CHANGED_MILK, MUM], [ADD_MILK, example.show()])
FAILING = Scenario(example.fail().then(ADD_MILK), [MILK])


@pytest.fixture(autouse=True)
def watched(rows: Rows) -> Iterator[None]:
    """Have Postgres record every effect."""
    with db_assertions.watched(rows):
        yield


class Trial:
    """One user sends one message in several attempts."""

    def __init__(self, scenario: Scenario, fleet: Fleet, rows: Rows, issuer: Issuer) -> None:
        self.scenario, self.fleet, self.rows = scenario, fleet, rows
        self.client, self.key, self.conversation_id = Caller.new(issuer), f"key-{uuid4()}", None
        self.refusals = 0

    def prepare(self, environment: Environment) -> None:
        """Send the earlier messages."""
        conversation_id = None
        for message in self.scenario.before:
            asked = {"message": message, "conversation_id": conversation_id}
            conversation_id = environment.ask(self.client.request(asked)).answer.json["conversation_id"]
        self.conversation_id = None if self.scenario.aside else conversation_id
        self.effects_before = db_assertions.effects(self.rows, self.client.id)

    @property
    def request(self) -> dict[str, Any]:
        """Return the request, the same each time."""
        return self.client.request(
            {"message": self.scenario.message, "conversation_id": self.conversation_id}, self.key
        )

    def attempt(self, trap: Trap) -> Outcome:
        """Send the request to a cold environment that dies at the trap, or answers before it."""
        with self.fleet.cold() as environment:
            return environment.ask(self.request, trap)

    def check_refused_while_leased(self, environment: Environment) -> None:
        """Check that the request gets 409 with Retry-After while the lease holds."""
        held = self._lease()
        if held is None:
            return
        response = environment.ask(self.request).answer
        if self._lease() != held:  # Postgres ran the dead process's last statements only now
            return
        assert response.status == 409, response.body
        assert 1 <= int(response.headers["retry-after"]) <= LEASE_SECONDS
        self.refusals += 1

    def retry(self, trap: Trap | None = None) -> Outcome:
        """Send the request again after its lease, until Postgres has run the dead process's last statements."""
        for _ in processes.attempts(20):
            db_assertions.let_leases_run_out(self.rows, self.client.id)
            with self.fleet.cold() as environment:
                outcome = environment.ask(self.request, trap)
            if outcome.response is None or outcome.response.status != 409:
                return outcome
        raise AssertionError("the conversation never became free")

    def check_done(self, environment: Environment) -> None:
        """Send the request twice more. Check that it is done once, returned whole, and replayed by any process."""
        scenario, user_id = self.scenario, self.client.id
        response = self.retry().answer
        db_assertions.check_turn(self.rows, user_id, scenario.message, response)
        assert [call["tool"] for call in response.json["tool_calls"]] == scenario.message.tools
        assert db_assertions.effects(self.rows, user_id) == self.effects_before + scenario.message.effects
        assert example.rows_of(self.rows, user_id) == scenario.things
        again = environment.ask(self.request).answer
        assert again.headers["idempotent-replayed"] == "true"
        assert (again.status, again.body) == (200, response.body)
        assert db_assertions.effects(self.rows, user_id) == self.effects_before + scenario.message.effects

    def _lease(self) -> dict[str, Any] | None:
        return self.rows.execute(
            "select id, lease_until, fence from conversation where user_id = %s and lease_until > clock_timestamp()",
            [self.client.id],
        ).fetchone()


@dataclass
class Exploration:
    """All runs of one scenario. Each kills a process at another point, until one run finishes."""

    scenario: Scenario
    fleet: Fleet
    rows: Rows
    issuer: Issuer
    level: str = STATEMENT

    def __post_init__(self) -> None:
        self.runs, self.refusals, self.labels = 0, 0, dict[int, str]()
        self._numbers, self._through, self._lock = count(1), threading.Event(), threading.Lock()

    def explore(self) -> None:
        """Kill a process at every point."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for done in [pool.submit(self._work) for _ in range(AT_ONCE)]:
                done.result()
        with self.fleet.cold() as environment:
            for number in sorted(set(range(1, max(self.labels))) - set(self.labels)):
                self._run(number, environment)  # another run finished before these points were tried
        assert set(self.labels) == set(range(1, len(self.labels) + 1)), "a point was left out"

    def _work(self) -> None:
        with self.fleet.cold() as environment:
            while not self._through.is_set():
                self._run(next(self._numbers), environment)

    def _run(self, number: int, environment: Environment) -> None:
        trial = Trial(self.scenario, self.fleet, self.rows, self.issuer)
        trial.prepare(environment)
        first = trial.attempt(Trap.kill(number, level=self.level))
        if first.response:
            self._through.set()
        try:
            if number % 3 == 0:
                trial.check_refused_while_leased(environment)
            trial.check_done(environment)
        except AssertionError as error:
            self._through.set()
            raise AssertionError(f"killed at point {number} ({first.trapped}): {error}") from error
        with self._lock:
            self.runs += 1
            self.refusals += trial.refusals
            if first.trapped:
                self.labels[number] = first.trapped

    def __str__(self) -> str:
        points = "at the socket" if self.level == SOCKET else "in the turn"
        return (
            f"{self.scenario.title}: killed at each of {len(self.labels)} points {points}, {self.runs} runs,"
            f" {self.refusals} refused while leased"
        )


ALL = [ONE, SEVERAL, DELETE, RENAME, LATER, FAILING]
HERE = [
    # database, model API, level, scenarios
    ("pooled", "responses", STATEMENT, ALL),
    ("direct", "chat_completions", STATEMENT, [ONE]),
]
AT_FULL_LENGTH = [
    ("direct", "responses", STATEMENT, [SEVERAL, DELETE, FAILING]),
    ("pooled", "chat_completions", STATEMENT, [SEVERAL, LATER]),
    ("direct", "responses", SOCKET, [ONE]),
    ("pooled", "responses", SOCKET, [SEVERAL]),
]
EXPLORED = [
    pytest.param(*ways, scenario, id="-".join((*ways, scenario.message.replace(" ", "_"))))
    for *ways, scenarios in HERE + (AT_FULL_LENGTH if "THOROUGH" in os.environ else [])
    for scenario in scenarios
]


@pytest.mark.parametrize(
    ("database_url", "model_api", "level", "scenario"), EXPLORED, indirect=["database_url", "model_api"]
)
def test_killed_at_any_point_a_turn_happens_once(
    scenario: Scenario,
    level: str,
    fleet: Fleet,
    rows: Rows,
    issuer: Issuer,
    report: Report,
    request: pytest.FixtureRequest,
) -> None:
    """It is killed at each statement, commit and model call. A retry with its key finds each effect once."""
    exploration = Exploration(scenario, fleet, rows, issuer, level)
    exploration.explore()
    report(f"{exploration} ({request.node.callspec.id.rsplit('-', 2)[0]})")


@pytest.mark.parametrize("database_url", ["pooled"], indirect=True)
@pytest.mark.parametrize("scenario", [SEVERAL, DELETE, LATER], ids=lambda scenario: scenario.message.replace(" ", "_"))
def test_killed_twice_a_turn_happens_once(
    scenario: Scenario, fleet: Fleet, rows: Rows, issuer: Issuer, report: Report
) -> None:
    """The attempt that continues from the first one's records may be killed too."""
    chance = random.Random(SEED)  # noqa: S311
    whole = Trial(scenario, fleet, rows, issuer)
    with fleet.cold() as environment:
        whole.prepare(environment)
        points = len(environment.ask(whole.request).passed)
        killed_again = 0
        for _ in range(PAIRS):
            trial = Trial(scenario, fleet, rows, issuer)
            trial.prepare(environment)
            first, second = chance.randint(1, points), chance.randint(1, points)
            dead = trial.attempt(Trap.kill(first))
            again = trial.retry(Trap.kill(second))
            killed_again += again.response is None
            try:
                trial.check_done(environment)
            except AssertionError as error:
                where = f"killed at {first} ({dead.trapped}), then at {second} ({again.trapped})"
                raise AssertionError(f"{where}, seed {SEED}: {error}") from error
    report(f"{scenario.title}: {PAIRS} turns killed, {killed_again} of them once more (CRASH_SEED={SEED})")


ERRANDS: dict[str, dict[str, Any]] = {
    "rename": {"method": "PATCH", "rest": "/conversations/{}", "body": {"title": "Groceries"}},
    "delete": {"method": "DELETE", "rest": "/conversations/{}"},
    "erase": {"method": "DELETE", "rest": "", "confirm": "erase"},
}
"""Requests that change what a person owns: the arguments of Caller.own."""


class TestErrand:
    """A process that is killed in such a request leaves a state that the next request makes whole."""

    @pytest.fixture
    def neighbour(self, fleet: Fleet, issuer: Issuer) -> Caller:
        """Return another person with rows."""
        neighbour = Caller.new(issuer)
        with fleet.cold() as environment:
            assert environment.ask(neighbour.request({"message": ADD_MILK})).answer.status == 200
        return neighbour

    @pytest.mark.parametrize("database_url", ["pooled"], indirect=True)
    @pytest.mark.parametrize("errand", ERRANDS)
    def test_killed_at_any_point_it_can_be_repeated(
        self, errand: str, neighbour: Caller, fleet: Fleet, rows: Rows, issuer: Issuer, report: Report
    ) -> None:
        """It happens whole or not at all; an erasure, table by table. The neighbour's rows stay byte for byte."""
        before, killed = personal_data.versions(rows, neighbour.id), list[str]()
        with fleet.cold() as environment:
            for point in count(1, 5 if errand == "erase" else 1):  # test_personal_data.py tries others, with more rows
                person, conversation_id = self._talk(environment, issuer)
                options = ERRANDS[errand] | {"rest": ERRANDS[errand]["rest"].format(conversation_id)}
                request = person.own(**options)
                with fleet.cold() as dying:
                    outcome = dying.ask(request, Trap.kill(point))
                db_assertions.settle(rows)
                self._check_between(rows, person, errand)
                answer = outcome.response or environment.ask(request).answer
                assert answer.status in ((200,) if errand == "rename" else (204, 404) if errand == "delete" else (204,))
                self._check_after(environment, rows, person, errand)
                assert personal_data.versions(rows, neighbour.id) == before
                if outcome.response:
                    break
                killed.append(outcome.trapped or "")
        assert {label.partition(" ")[0] for label in killed} >= {"before", "after"}
        report(f"a request to {errand}: killed at {len(killed)} points")

    def _talk(self, environment: Environment, issuer: Issuer) -> tuple[Caller, str]:
        """Return a new person with a conversation of one turn."""
        person = Caller.new(issuer)
        answer = environment.ask(person.request({"message": ADD_MILK}, "k")).answer
        return person, answer.json["conversation_id"]

    def _check_between(self, rows: Rows, person: Caller, errand: str) -> None:
        """Check what the dead process left behind."""
        stored = personal_data.stored(rows, person.id)
        left = len(stored["conversation"]), len(stored["message"])
        if errand != "erase":
            assert left in (((1, 2),) if errand == "rename" else ((1, 2), (0, 0)))
            (call,) = stored["tool_call"]
            assert (call["arguments"] == {}) == (left == (0, 0))
        assert all(one["turn_id"] is None for one in stored["conversation"])
        assert left[0] or not left[1], "messages without their conversation"

    def _check_after(self, environment: Environment, rows: Rows, person: Caller, errand: str) -> None:
        """Check that the request took effect. A retry of the turn acts only if the person was erased."""
        if errand == "erase":
            assert personal_data.count(rows, person.id) == {}
            return
        stored = personal_data.stored(rows, person.id)
        again = environment.ask(person.request({"message": ADD_MILK}, "k")).answer
        assert db_assertions.effects(rows, person.id) == ADD_MILK.effects
        assert again.status == (200 if errand == "rename" else 404)
        titles = [one["title"] for one in stored["conversation"]]
        assert titles == (["Groceries"] if errand == "rename" else [])


@dataclass(frozen=True)
class Freeze:
    """A point at which a process is stopped in a turn with one tool call."""

    name: str
    trap: Trap

    def __str__(self) -> str:
        return self.name


FROZEN = [
    Freeze("while the model thinks", Trap.freeze(1, "model: sent")),
    Freeze("after the model's answer", Trap.freeze(1, "model: read")),
    Freeze("in the tool, before its statements", Trap.freeze(2, "before select set_config")),
    Freeze("after the tool, before the next model call", Trap.freeze(2, "after commit")),
    Freeze("while the model thinks again", Trap.freeze(2, "model: sent")),
    Freeze("before the reply is stored", Trap.freeze(3, "before select set_config")),
]


RENEWAL = ["before UPDATE conversation", "after UPDATE conversation", "before commit", "after commit"]
"""The points of a renewal. Each comes for the second time then: the turn's begin has them too."""


class TestRenewal:
    """A process is killed or frozen while it renews its lease."""

    @pytest.fixture
    def renewing(
        self, warm_fork_server: ForkServer, database_url: str, standin: StandIn, issuer: Issuer
    ) -> Iterator[Fleet]:
        """Deploy environments that renew a lease at once, and let the model think until the end of the test."""
        fleet = Fleet(warm_fork_server, variables(database_url, standin, issuer)).renewing_every(0)
        standin.fault("hang", match=ONE.message)
        yield fleet
        fleet.stop()

    @pytest.mark.parametrize("point", RENEWAL)
    def test_killed_there_its_key_does_the_turn_once(
        self, point: str, renewing: Fleet, fleet: Fleet, rows: Rows, issuer: Issuer, standin: StandIn
    ) -> None:
        """After at most one lease from there."""
        trial = Trial(ONE, renewing, rows, issuer)
        trial.prepare(environment := fleet.start())
        assert trial.attempt(Trap.kill(2, point)).trapped
        left = "select extract(epoch from lease_until - clock_timestamp())::float as left from conversation"
        (held,) = rows.execute(f"{left} where user_id = %s", [trial.client.id]).fetchall()
        assert held["left"] <= LEASE_SECONDS
        trial.fleet = fleet
        standin.reset()
        trial.check_refused_while_leased(environment)
        trial.retry()
        trial.check_done(environment)

    @pytest.mark.parametrize("point", RENEWAL)
    def test_frozen_there_it_writes_nothing(
        self, point: str, renewing: Fleet, fleet: Fleet, rows: Rows, issuer: Issuer, standin: StandIn
    ) -> None:
        """Its lease ran out, and a retry finished the turn."""
        trial = Trial(ONE, renewing, rows, issuer)
        trial.prepare(fleet.start())
        zombie = renewing.start()
        assert zombie.ask(trial.request, Trap.freeze(2, point)).trapped
        trial.fleet = fleet
        standin.reset()
        finished = trial.retry().answer
        zombie.thaw()
        late = zombie.outcome().answer
        assert late.status == 409, late.body
        db_assertions.check_turn(rows, trial.client.id, ONE.message, finished)
        assert db_assertions.effects(rows, trial.client.id) == ADD_MILK.effects


class TestZombie:
    """A process is stopped, and continues after its lease and its turn are over."""

    @pytest.mark.parametrize("freeze", FROZEN, ids=str)
    def test_it_commits_nothing(self, freeze: Freeze, fleet: Fleet, rows: Rows, issuer: Issuer) -> None:
        """A retry finished its turn, and another turn followed. It writes nothing, and answers 409 or replays."""
        trial = Trial(ONE, fleet, rows, issuer)
        trial.prepare(zombie := fleet.start())
        assert zombie.ask(trial.request, freeze.trap).trapped
        finished = trial.retry().answer
        trial.conversation_id = finished.json["conversation_id"]
        later = self._take_another_turn(trial, fleet)
        zombie.thaw()
        late = zombie.outcome().answer
        self._check_honest(late, finished)
        self._check_untouched(trial, rows, finished, later)

    def test_one_that_stopped_before_its_lease_replays(self, fleet: Fleet, rows: Rows, issuer: Issuer) -> None:
        """It had looked for its turn and found none. With the lease, it looks again."""
        trial = Trial(LATER, fleet, rows, issuer)
        trial.prepare(zombie := fleet.start())
        assert zombie.ask(trial.request, Trap.freeze(1, "before UPDATE conversation")).trapped
        finished = trial.retry().answer
        zombie.thaw()
        late = zombie.outcome().answer
        assert (late.status, late.headers["idempotent-replayed"], late.body) == (200, "true", finished.body)
        trial.check_done(zombie)

    @pytest.mark.parametrize("database_url", ["pooled"], indirect=True)
    @pytest.mark.parametrize("point", [f"before INSERT INTO {example.table}", "before commit"])
    def test_its_open_transaction_blocks_no_request_for_long(
        self, point: str, fleet: Fleet, rows: Rows, issuer: Issuer
    ) -> None:
        """It holds a lock on the conversation. Others get 409 until Postgres ends the transaction."""
        trial = Trial(ONE, fleet, rows, issuer)
        trial.prepare(zombie := fleet.start())
        trap = Trap.freeze(2 if point == "before commit" else 1, point)
        assert zombie.ask(trial.request, trap).trapped
        with fleet.cold() as environment:
            refused = environment.ask(trial.request).answer
        assert refused.status == 409
        assert int(refused.headers["retry-after"]) >= 1
        finished = trial.retry().answer  # waits for the role's idle_in_transaction_session_timeout
        trial.conversation_id = finished.json["conversation_id"]
        later = self._take_another_turn(trial, fleet)
        zombie.thaw()
        late = zombie.outcome().answer
        assert late.status in (409, 503)
        self._check_untouched(trial, rows, finished, later)

    @pytest.mark.parametrize(("path", "confirm"), [("/conversations/{}", ""), ("", "erase")], ids=["deleted", "erased"])
    def test_its_fencing_token_is_worth_nothing_in_a_conversation_begun_anew(
        self, path: str, confirm: str, fleet: Fleet, rows: Rows, issuer: Issuer
    ) -> None:
        """The conversation is gone, and a retry of the turn begins one with the same id, turn and count of leases."""
        trial = Trial(ONE, fleet, rows, issuer)
        trial.prepare(zombie := fleet.start())
        assert zombie.ask(trial.request, Trap.freeze(1, "model: sent")).trapped
        db_assertions.let_leases_run_out(rows, trial.client.id)
        (held,) = rows.execute("select id from conversation where user_id = %s", [trial.client.id]).fetchall()
        retry = fleet.start()
        assert retry.ask(trial.client.own("DELETE", path.format(held["id"]), confirm=confirm)).answer.status == 204
        assert retry.ask(trial.request, Trap.freeze(1, "model: sent")).trapped
        zombie.thaw()
        late = zombie.outcome().answer
        assert late.status == 409, late.body
        assert db_assertions.effects(rows, trial.client.id) == []
        retry.thaw()
        db_assertions.check_turn(rows, trial.client.id, ONE.message, retry.outcome().answer)
        assert db_assertions.effects(rows, trial.client.id) == ADD_MILK.effects

    def _take_another_turn(self, trial: Trial, fleet: Fleet) -> Response:
        with fleet.cold() as environment:
            asked = {"message": ADD_MUM, "conversation_id": trial.conversation_id}
            return environment.ask(trial.client.request(asked)).answer

    def _check_honest(self, late: Response, finished: Response) -> None:
        """Check that it answers 409, or replays the finished turn."""
        if late.status == 200:
            assert (late.headers["idempotent-replayed"], late.body) == ("true", finished.body)
        else:
            assert late.status == 409
            assert int(late.headers["retry-after"]) >= 1

    def _check_untouched(self, trial: Trial, rows: Rows, finished: Response, later: Response) -> None:
        db_assertions.check_turn(rows, trial.client.id, ONE.message, finished)
        db_assertions.check_turn(rows, trial.client.id, ADD_MUM, later)
        assert db_assertions.effects(rows, trial.client.id) == ADD_MILK.effects + ADD_MUM.effects
