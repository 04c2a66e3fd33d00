"""A turn happens once, wherever its process is killed or frozen.

Promises: killed with SIGKILL at any point, and sent again with its key, a turn has one user message, one assistant
message, each effect exactly once and complete tool_calls; until its lease has run out it is refused with a time to come
back; sent a third time it is replayed byte for byte. A process that wakes up after its lease writes nothing.
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
from dev.tokens import Issuer
from testing.callers import Caller
from testing.gateway import Response
from tests import db_assertions as truth
from tests.crash_points import SOCKET, STATEMENT, Trap
from tests.db_assertions import Rows
from tests.domain import example
from tests.environments import Environment, Fleet, Outcome
from tests.example_domain import Row, Sentence

Report = Callable[[str], None]
AT_ONCE = 4
"""Runs side by side: each is a sequence of processes, and most of it is waiting."""
PAIRS = 40 if "CI" in os.environ else 10
"""Turns that are killed twice, for each scenario: the points are drawn by lot."""
SEED = int(os.environ.get("CRASH_SEED") or random.SystemRandom().randrange(10**6))
LEASE_SECONDS = 60
"""No lease may be longer, or a crashed conversation stays shut."""


@dataclass(frozen=True)
class Scenario:
    """A message, and all that must come of it, once."""

    message: Sentence
    things: list[Row]
    """What the person has in the end."""
    before: list[Sentence] = field(default_factory=list)
    """What the person has said before, in the same conversation."""
    aside: bool = False
    """Whether what was said before was said in another conversation."""

    @property
    def title(self) -> str:
        """For the summary."""
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
    """The database notes every effect by itself."""
    with truth.watched(rows):
        yield


class Story:
    """One person, one message, as many attempts as it takes."""

    def __init__(self, scenario: Scenario, fleet: Fleet, rows: Rows, issuer: Issuer) -> None:
        self.scenario, self.fleet, self.rows = scenario, fleet, rows
        self.client, self.key, self.conversation_id = Caller.new(issuer), f"key-{uuid4()}", None
        self.refusals = 0

    def prepare(self, environment: Environment) -> None:
        """Say what was said before."""
        conversation_id = None
        for message in self.scenario.before:
            asked = {"message": message, "conversation_id": conversation_id}
            conversation_id = environment.ask(self.client.request(asked)).answer.json["conversation_id"]
        self.conversation_id = None if self.scenario.aside else conversation_id
        self.effects_before = truth.effects(self.rows, self.client.id)

    @property
    def request(self) -> dict[str, Any]:
        """The request, the same each time."""
        return self.client.request(
            {"message": self.scenario.message, "conversation_id": self.conversation_id}, self.key
        )

    def attempt(self, trap: Trap) -> Outcome:
        """Send it to a cold environment that dies at the trap, or answers before."""
        with self.fleet.cold() as environment:
            return environment.ask(self.request, trap)

    def check_refused_while_leased(self, environment: Environment) -> None:
        """Whoever comes before the lease has run out is told to come back."""
        held = self._lease()
        if held is None:
            return
        response = environment.ask(self.request).answer
        if self._lease() != held:  # what the dead process had sent last was carried out only now
            return
        assert response.status == 409, response.body
        assert 1 <= int(response.headers["retry-after"]) <= LEASE_SECONDS
        self.refusals += 1

    def retry(self, trap: Trap | None = None) -> Outcome:
        """Send it again after its lease has run out, until what the dead process had sent last is carried out too."""
        for _ in processes.attempts(20):
            truth.let_leases_run_out(self.rows, self.client.id)
            with self.fleet.cold() as environment:
                outcome = environment.ask(self.request, trap)
            if outcome.response is None or outcome.response.status != 409:
                return outcome
        raise AssertionError("the conversation never became free")

    def check_done(self, environment: Environment) -> None:
        """Send it again, and once more: done once, told whole, and replayed by whoever is asked."""
        scenario, user_id = self.scenario, self.client.id
        response = self.retry().answer
        truth.check_turn(self.rows, user_id, scenario.message, response)
        assert [call["tool"] for call in response.json["tool_calls"]] == scenario.message.tools
        assert truth.effects(self.rows, user_id) == self.effects_before + scenario.message.effects
        assert example.rows_of(self.rows, user_id) == scenario.things
        again = environment.ask(self.request).answer
        assert again.headers["idempotent-replayed"] == "true"
        assert (again.status, again.body) == (200, response.body)
        assert truth.effects(self.rows, user_id) == self.effects_before + scenario.message.effects

    def _lease(self) -> dict[str, Any] | None:
        return self.rows.execute(
            "select id, lease_until, fence from conversation where user_id = %s and lease_until > clock_timestamp()",
            [self.client.id],
        ).fetchone()


@dataclass
class Exploration:
    """All runs of one scenario: each with a process killed at another point, until one comes through."""

    scenario: Scenario
    fleet: Fleet
    rows: Rows
    issuer: Issuer
    level: str = STATEMENT

    def __post_init__(self) -> None:
        self.runs, self.refusals, self.labels = 0, 0, dict[int, str]()
        self._numbers, self._through, self._lock = count(1), threading.Event(), threading.Lock()

    def explore(self) -> None:
        """Kill at every point."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for done in [pool.submit(self._work) for _ in range(AT_ONCE)]:
                done.result()
        with self.fleet.cold() as environment:
            for number in sorted(set(range(1, max(self.labels))) - set(self.labels)):
                self._run(number, environment)  # a run that came through before others were killed at later points
        assert set(self.labels) == set(range(1, len(self.labels) + 1)), "a point was left out"

    def _work(self) -> None:
        with self.fleet.cold() as environment:
            while not self._through.is_set():
                self._run(next(self._numbers), environment)

    def _run(self, number: int, environment: Environment) -> None:
        story = Story(self.scenario, self.fleet, self.rows, self.issuer)
        story.prepare(environment)
        first = story.attempt(Trap.kill(number, level=self.level))
        if first.response:
            self._through.set()
        try:
            if number % 3 == 0:
                story.check_refused_while_leased(environment)
            story.check_done(environment)
        except AssertionError as error:
            self._through.set()
            raise AssertionError(f"killed at point {number} ({first.trapped}): {error}") from error
        with self._lock:
            self.runs += 1
            self.refusals += story.refusals
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
IN_CI = [
    ("direct", "responses", STATEMENT, [SEVERAL, DELETE, FAILING]),
    ("pooled", "chat_completions", STATEMENT, [SEVERAL, LATER]),
    ("direct", "responses", SOCKET, [ONE]),
    ("pooled", "responses", SOCKET, [SEVERAL]),
]
EXPLORED = [
    pytest.param(*ways, scenario, id="-".join((*ways, scenario.message.replace(" ", "_"))))
    for *ways, scenarios in HERE + (IN_CI if "CI" in os.environ else [])
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
    """At each statement, commit and model call: sent again with its key, everything is there, once."""
    exploration = Exploration(scenario, fleet, rows, issuer, level)
    exploration.explore()
    report(f"{exploration} ({request.node.callspec.id.rsplit('-', 2)[0]})")


@pytest.mark.parametrize("database_url", ["pooled"], indirect=True)
@pytest.mark.parametrize("scenario", [SEVERAL, DELETE, LATER], ids=lambda scenario: scenario.message.replace(" ", "_"))
def test_killed_twice_a_turn_happens_once(
    scenario: Scenario, fleet: Fleet, rows: Rows, issuer: Issuer, report: Report
) -> None:
    """The attempt that goes on from the first one's records may be killed as well."""
    chance = random.Random(SEED)  # noqa: S311
    whole = Story(scenario, fleet, rows, issuer)
    with fleet.cold() as environment:
        whole.prepare(environment)
        points = len(environment.ask(whole.request).passed)
        killed_again = 0
        for _ in range(PAIRS):
            story = Story(scenario, fleet, rows, issuer)
            story.prepare(environment)
            first, second = chance.randint(1, points), chance.randint(1, points)
            dead = story.attempt(Trap.kill(first))
            again = story.retry(Trap.kill(second))
            killed_again += again.response is None
            try:
                story.check_done(environment)
            except AssertionError as error:
                where = f"killed at {first} ({dead.trapped}), then at {second} ({again.trapped})"
                raise AssertionError(f"{where}, seed {SEED}: {error}") from error
    report(f"{scenario.title}: {PAIRS} turns killed, {killed_again} of them once more (CRASH_SEED={SEED})")


@dataclass(frozen=True)
class Freeze:
    """Where a process is stopped in the middle of a turn with one tool call."""

    name: str
    trap: Trap

    def __str__(self) -> str:
        return self.name


FROZEN = [
    Freeze("while the model thinks", Trap.freeze(1, "model: sent")),
    Freeze("with the call in hand", Trap.freeze(1, "model: read")),
    Freeze("in the tool, before its statements", Trap.freeze(2, "before select set_config")),
    Freeze("after the tool, before the model is told", Trap.freeze(2, "after commit")),
    Freeze("while the model thinks again", Trap.freeze(2, "model: sent")),
    Freeze("before the reply is stored", Trap.freeze(3, "before select set_config")),
]


class TestAZombie:
    """A process that was stopped, and goes on after its lease and its turn are over."""

    @pytest.mark.parametrize("freeze", FROZEN, ids=str)
    def test_commits_nothing(self, freeze: Freeze, fleet: Fleet, rows: Rows, issuer: Issuer) -> None:
        """Its turn was finished by a retry, and another came after: it writes nothing, and says so or replays."""
        story = Story(ONE, fleet, rows, issuer)
        story.prepare(zombie := fleet.start())
        assert zombie.ask(story.request, freeze.trap).trapped
        finished = story.retry().answer
        story.conversation_id = finished.json["conversation_id"]
        later = self._take_another_turn(story, fleet)
        zombie.thaw()
        late = zombie.outcome().answer
        self._check_honest(late, finished)
        self._check_untouched(story, rows, finished, later)

    def test_that_slept_before_it_had_a_lease_replays(self, fleet: Fleet, rows: Rows, issuer: Issuer) -> None:
        """It had looked for its turn and found none; when it has the lease, it looks again."""
        story = Story(LATER, fleet, rows, issuer)
        story.prepare(zombie := fleet.start())
        assert zombie.ask(story.request, Trap.freeze(1, "before UPDATE conversation")).trapped
        finished = story.retry().answer
        zombie.thaw()
        late = zombie.outcome().answer
        assert (late.status, late.headers["idempotent-replayed"], late.body) == (200, "true", finished.body)
        story.check_done(zombie)

    @pytest.mark.parametrize("database_url", ["pooled"], indirect=True)
    @pytest.mark.parametrize("point", [f"before INSERT INTO {example.table}", "before commit"])
    def test_with_its_transaction_open_holds_nobody_up(
        self, point: str, fleet: Fleet, rows: Rows, issuer: Issuer
    ) -> None:
        """Stopped with its lease locked: others are told to come back, until the database ends the transaction."""
        story = Story(ONE, fleet, rows, issuer)
        story.prepare(zombie := fleet.start())
        trap = Trap.freeze(2 if point == "before commit" else 1, point)
        assert zombie.ask(story.request, trap).trapped
        with fleet.cold() as environment:
            refused = environment.ask(story.request).answer
        assert refused.status == 409
        assert int(refused.headers["retry-after"]) >= 1
        finished = story.retry().answer  # waits for the role's idle_in_transaction_session_timeout
        story.conversation_id = finished.json["conversation_id"]
        later = self._take_another_turn(story, fleet)
        zombie.thaw()
        late = zombie.outcome().answer
        assert late.status in (409, 503)
        self._check_untouched(story, rows, finished, later)

    def _take_another_turn(self, story: Story, fleet: Fleet) -> Response:
        with fleet.cold() as environment:
            asked = {"message": ADD_MUM, "conversation_id": story.conversation_id}
            return environment.ask(story.client.request(asked)).answer

    def _check_honest(self, late: Response, finished: Response) -> None:
        """It tells that the turn is not its own any more, or what the other one said."""
        if late.status == 200:
            assert (late.headers["idempotent-replayed"], late.body) == ("true", finished.body)
        else:
            assert late.status == 409
            assert int(late.headers["retry-after"]) >= 1

    def _check_untouched(self, story: Story, rows: Rows, finished: Response, later: Response) -> None:
        truth.check_turn(rows, story.client.id, ONE.message, finished)
        truth.check_turn(rows, story.client.id, ADD_MUM, later)
        assert truth.effects(rows, story.client.id) == ADD_MILK.effects + ADD_MUM.effects
