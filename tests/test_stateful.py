"""Each turn happens once in any random sequence of requests and faults.

Hypothesis draws messages, retries, duplicates at the same moment, kills, freezes, restarts of the pooler, terminated
backends and faults of the model, over several users and conversations, through PgBouncer. Users also read, rename and
delete their conversations, export their data and have themselves erased. Each lease is renewed every 20 ms. After every
step, the test compares Postgres and the requests to the model with the expected state.

Promises: an accepted turn runs once, with its effects once and in order. A conversation is a sequence of user messages,
each with at most one reply. A request gets 409 only while a turn holds the conversation. A finished key always gives
the same bytes. No user gets another user's rows or text. The model never reads a call without its output, or a turn
out of order. A deleted conversation leaves the effects of its turns and their calls without any text, and a retry of
such a turn gets 404. An erased user has no row, and a turn of theirs that was under way writes none.
"""

import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from itertools import count
from typing import Any, ClassVar
from uuid import UUID, uuid4, uuid5

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from hypothesis.strategies import SearchStrategy

from dev import processes
from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from taskchat.conversations.deletion import DELETED
from taskchat.conversations.turns import turn_id_for
from testing.callers import Caller
from testing.gateway import Response
from tests import db_assertions, personal_data
from tests.conftest import variables
from tests.crash_points import Trap
from tests.db_assertions import Rows
from tests.domain import example
from tests.environments import Environment, Fleet, ForkServer, Outcome
from tests.example_domain import Sentence

STEPS = 20
"""Steps of one sequence."""
WANTED = 1_000 if "THOROUGH" in os.environ else 200
"""Steps in all sequences together, without those that had nothing to do."""
SETTINGS = settings(
    max_examples=WANTED // 4,  # more than needed: after enough steps they do nothing
    stateful_step_count=STEPS,
    deadline=None,  # a step may take as long as the machine is busy
    database=None,  # the seed repeats a sequence
    phases=[Phase.generate],  # processes do not race twice in the same way: a smaller example would be another one
    suppress_health_check=[HealthCheck.too_slow],  # each step is requests to real processes
)
PEOPLE = 3
POOL = 3
"""Environments that are idle between two steps."""
MOST_FROZEN = 2
USUAL_POINTS = 60
SETTLED = 15
"""Seconds within which Postgres has ended the statements of a dead process."""
SHORT = 1.8
"""Seconds of a request whose model hangs: just over the handler's reserve."""

Report = Callable[[str], None]


Kind = Callable[[str], Sentence]
"""Returns a message for a turn's mark. The mark is in every text of the turn."""

KINDS: list[Kind] = [
    lambda mark: example.add(f"{mark}a"),
    lambda mark: example.add(f"{mark}a", f"{mark}b"),
    lambda mark: example.add(f"{mark}a").then(example.change(f"{mark}a")),
    lambda mark: example.add(f"{mark}a").then(example.delete(f"{mark}a")),
    lambda mark: example.add(f"{mark}a").then(example.rename(f"{mark}a", f"{mark}b")),
    lambda mark: example.add(f"{mark}a").then(example.show()),
]
EFFECTS = {
    example.add_tool: "insert",
    example.change_tool: "update",
    example.rename_tool: "update",
    example.delete_tool: "delete",
}

MODEL_MISTAKES = [
    # The turn succeeds: the model reads its mistake, or is called again.
    ("rate_limit", {"retry_after_ms": 10}),
    ("server_error", {}),
    ("disconnect", {}),
    ("disconnect_midway", {}),
    ("malformed_body", {}),
    ("malformed_arguments", {}),
    ("wrong_arguments", {}),
    ("extra_arguments", {}),
    ("unknown_tool", {}),
    ("bad_text", {}),
]
MODEL_FAILURES = [
    # The turn is interrupted. A retry finishes it.
    ("rate_limit", {"retry_after_ms": 10, "times": 3}),
    ("quota", {}),
    ("wrong_schema", {}),
    ("length", {}),
    ("content_filter", {}),
    ("duplicate_call_ids", {}),
    ("hang", {"seconds": 40}),
]


@dataclass
class Message:
    """A message with its key, and its known answer."""

    client: Caller
    mark: str
    kind: Kind
    conversation_id: str | None
    key: str = field(default_factory=lambda: f"key-{uuid4()}")
    body: str | None = None
    """The answer, after the first response with it."""
    is_lost: bool = False
    """True if its conversation was deleted at any time."""

    @property
    def place(self) -> str:
        """Return the id of its conversation."""
        return self.conversation_id or str(uuid5(self.turn_id, "conversation"))

    @property
    def message(self) -> Sentence:
        """Return the message with its expected effects."""
        return self.kind(self.mark)

    @property
    def turn_id(self) -> UUID:
        """Return the id of its turn."""
        return turn_id_for(self.client.id, self.key)

    def request(self, message: str | None = None) -> dict[str, Any]:
        """Return the request, the same each time, or another message with the same key."""
        return self.client.request(
            {"message": message or self.message, "conversation_id": self.conversation_id}, self.key
        )


@dataclass
class Errand:
    """A request of a user about their own data."""

    client: Caller
    what: str
    conversation_id: str = ""
    title: str = ""

    def request(self) -> dict[str, Any]:
        """Return the request, the same each time."""
        here = f"/conversations/{self.conversation_id}"
        return {
            "list": lambda: self.client.own("GET", "/conversations", query={"limit": 100}),
            "read": lambda: self.client.own("GET", here, query={"limit": 100}),
            "export": lambda: self.client.own("GET", "/export"),
            "rename": lambda: self.client.own("PATCH", here, body={"title": self.title}),
            "delete": lambda: self.client.own("DELETE", here),
            "erase": lambda: self.client.own("DELETE", confirm="erase"),
        }[self.what]()


@dataclass
class Stopped:
    """A process that is frozen in the middle of a request."""

    environment: Environment
    asked: Message | Errand
    has_begun: bool
    """True if the request has committed. Before that, it has written nothing, and may begin when it continues."""


@dataclass
class World:
    """The servers, environments and counts that all sequences share."""

    fleet: Fleet
    rows: Rows
    standin: StandIn
    pooler: PgBouncer
    issuer: Issuer
    idle: list[Environment] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    lengths: dict[Kind | str, int] = field(default_factory=dict)
    """Number of points in the last turn of each kind, and in the last errand of each."""
    failure: Exception | None = None
    """The first one."""

    def take(self) -> Environment:
        """Return an idle environment, or a cold one."""
        return self.idle.pop(0) if self.idle else self.fleet.start()

    def give(self, environment: Environment) -> None:
        """Make an environment idle."""
        self.idle.append(environment)

    def settle(self) -> None:
        """Wait until Postgres has ended the statements of dead processes."""
        for _ in processes.attempts(SETTLED):
            if not self._backends("state = 'active'"):
                return
        raise AssertionError("Postgres is still busy")

    def is_transaction_open(self) -> bool:
        """Return True if a frozen process holds a transaction, which may hold a lock."""
        return self._backends("state like 'idle in transaction%%'") > 0

    def end_open_transactions(self) -> None:
        """End them as the role's idle_in_transaction_session_timeout does, but sooner."""
        self.terminate("state like 'idle in transaction%%'")

    def terminate(self, which: str = "true") -> None:
        """Terminate backends of the program, and wait until they have ended."""
        self.rows.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"  # noqa: S608
            f" where usename = 'taskchat_app' and {which}".replace("%%", "%")
        )

    def _backends(self, which: str) -> int:
        found = self.rows.execute(
            "select count(*) as n from pg_stat_activity"  # noqa: S608
            f" where usename = 'taskchat_app' and {which}".replace("%%", "%")
        ).fetchone()
        return found["n"] if found else 0


Do = Callable[..., None]


def keep_failure(do: Do) -> Do:
    """Keep the first failure with the steps before it. A second run would race in another way and hide it."""

    @wraps(do)
    def checked(self: "Turns", **values: Any) -> None:
        try:
            do(self, **values)
        except Exception as error:
            error.add_note("\n".join(["Steps:", *self.log]))
            self.world.failure = self.world.failure or error
            raise

    return checked


def step(**drawn: SearchStrategy[Any]) -> Callable[[Do], Any]:
    """Make a method a rule, which does nothing after enough steps."""
    made: Any = rule(**drawn)  # type: ignore[call-overload]  # it has parameters of its own, none of which is a draw

    def decorate(do: Do) -> Any:
        @wraps(do)
        def unless_over(self: "Turns", **values: Any) -> None:
            if self.world.failure is None and self.world.counts["steps"] < WANTED:
                keep_failure(do)(self, **values)

        return made(unless_over)

    return decorate


def _is_held_up(response: Response, before: dict[str, Any]) -> bool:
    """Return True for a 503 because a frozen process holds a lock."""
    return bool(before["open"] and response.status == 503 and int(response.headers["retry-after"]) >= 1)


class Turns(RuleBasedStateMachine):
    """One sequence. No rule has a precondition, so the draws depend on the seed alone."""

    world: ClassVar[World]

    people = st.integers(0, PEOPLE - 1)
    places = st.integers(0, 3)
    """0 begins a conversation. Other numbers continue one."""
    kinds = st.sampled_from(KINDS)
    which = st.integers(0, 1000)
    points = st.integers(0, 99)
    """Hundredths of the way through a request."""
    whats = st.sampled_from(["list", "read", "export", "rename"])
    fates = st.sampled_from(["ends"] * 3 + ["is killed"] * 2 + ["is frozen"])
    troubles = st.sampled_from(["nothing"] * 3 + ["leases run out"] * 3 + ["pooler restarts", "backends end"])

    @initialize()
    def begin(self) -> None:
        """Begin with new users."""
        self.clients = [Caller.new(self.world.issuer) for _ in range(PEOPLE)]
        self.conversations: dict[str, list[str]] = {client.id: [] for client in self.clients}
        self.asked: list[Message] = []
        self.numbers = count()
        self.frozen: list[Stopped] = []
        self.erased: list[Caller] = []
        self.titles: dict[str, set[str]] = defaultdict(set)
        """The titles that each conversation was given."""
        self.doomed: set[str] = set()
        """The conversations that a user wanted to delete."""
        self.present: dict[str, str] = {}
        """The conversations at the last step, each with its user."""
        self.log: list[str] = []
        self.world.standin.reset()

    # Steps

    @step(person=people, place=places, kind=kinds, trouble=troubles, fate=fates, point=points)
    def say(self, person: int, place: int, kind: Kind, trouble: str, fate: str, point: int) -> None:
        """A user sends a message, after a fault or some time. The process may be killed or frozen."""
        self._send(self._new(person, place, kind), trouble, fate, point)

    @step(which=which, trouble=troubles, fate=fates, point=points)
    def retry(self, which: int, trouble: str, fate: str, point: int) -> None:
        """A user sends a message again."""
        if asked := self._known(which):
            self._send(asked, trouble, fate, point)

    @step(which=which, kind=kinds)
    def reuse_a_key(self, which: int, kind: Kind) -> None:
        """A user sends another message with a used key, which is refused."""
        asked = self._known(which)
        if asked and db_assertions.messages(self.world.rows, asked.client.id, str(asked.turn_id)):
            self._step("reuse the key of", asked)
            before, environment = self._before(asked), self.world.take()
            response = environment.ask(asked.request(f"{asked.message} indeed")).answer
            if not _is_held_up(response, before):
                assert (response.status, response.json["type"].rpartition(":")[2]) == (422, "idempotency-key-reused")
            self.world.give(environment)
            self._check()

    @step(person=people, place=places, kind=kinds, copies=st.integers(2, POOL), fate=fates, point=points)
    def send_copies_at_once(self, person: int, place: int, kind: Kind, copies: int, fate: str, point: int) -> None:
        """A message is sent several times at once. One of the processes may be killed."""
        self._step(f"{copies} copies of", asked := self._new(person, place, kind))
        self._together([asked] * copies, self._trap("is killed" if fate == "is killed" else "ends", asked.kind, point))

    @step(person=people, place=places, kinds=st.lists(kinds, min_size=2, max_size=POOL))
    def say_several_things_at_once(self, person: int, place: int, kinds: list[Kind]) -> None:
        """A user sends different messages for one conversation at once."""
        rivals = [self._new(person, place, kind) for kind in kinds]
        self._step("at once", *rivals)
        self._together(rivals)

    @step(crowd=st.lists(st.tuples(people, places, kinds), min_size=2, max_size=POOL))
    def speak_all_at_once(self, crowd: list[tuple[int, int, Kind]]) -> None:
        """Different users send messages at once."""
        turns = [self._new(*each) for each in crowd]
        self._step("crowd", *turns)
        self._together(turns)

    @step(which=which, trouble=troubles)
    def thaw(self, which: int, trouble: str) -> None:
        """A stopped process continues."""
        if self.frozen:
            self._thaw(which % len(self.frozen), trouble)

    @step(person=people, place=places, kind=kinds, mistake=st.sampled_from(MODEL_MISTAKES), calls=st.integers(0, 2))
    def have_the_model_err(
        self, person: int, place: int, kind: Kind, mistake: tuple[str, dict[str, Any]], calls: int
    ) -> None:
        """The model makes a mistake in the turn, which still succeeds."""
        self._step(f"{mistake[0]} after {calls} calls", asked := self._new(person, place, kind))
        self.world.standin.fault(mistake[0], match=asked.mark, after_calls=calls, **mistake[1])
        self._one(asked)

    @step(person=people, place=places, kind=kinds, failure=st.sampled_from(MODEL_FAILURES), calls=st.integers(0, 2))
    def have_the_model_fail(
        self, person: int, place: int, kind: Kind, failure: tuple[str, dict[str, Any]], calls: int
    ) -> None:
        """The model fails in the turn, which a retry can resume."""
        self._step(f"{failure[0]} after {calls} calls", asked := self._new(person, place, kind))
        self.world.standin.fault(failure[0], match=asked.mark, after_calls=calls, **failure[1])
        seconds = SHORT if failure[0] == "hang" else 30
        self._one(asked, seconds=seconds, statuses={200, 409, 502, 504})

    @step(person=people, errands=st.lists(st.tuples(whats, which, fates, points), min_size=2, max_size=5))
    def manage(self, person: int, errands: list[tuple[str, int, str, int]]) -> None:
        """A user reads their data and renames conversations. Each process may be killed or frozen."""
        client = self.clients[person]
        there = self.conversations[client.id]
        self._step(f"{len(errands)} errands of {client.id[:10]}")
        for what, which, fate, point in errands:
            if there or what in ("list", "export"):
                conversation_id = there[which % len(there)] if there else ""
                self._run(Errand(client, what, conversation_id, f"{_mark(client)}t{len(self.log)}"), fate, point)

    @step(person=people, which=which, trouble=troubles, fate=fates, point=points)
    def delete_a_conversation(self, person: int, which: int, trouble: str, fate: str, point: int) -> None:
        """A user deletes a conversation, in which a turn may be running or frozen."""
        client = self.clients[person]
        if there := self.conversations[client.id]:
            self._step(f"{trouble}, then a deletion")
            self._have(trouble, client)
            self._run(Errand(client, "delete", there[which % len(there)]), fate, point)

    @step(person=people, fate=fates, point=points)
    def erase(self, person: int, fate: str, point: int) -> None:
        """A user is erased. After a kill or a freeze, the same request goes on. A new user comes in their place."""
        client = self.clients[person]
        self._step("an erasure")
        self._run(Errand(client, "erase"), fate, point, check=False)
        self.clients[person] = Caller.new(self.world.issuer)
        self.conversations[self.clients[person].id] = []
        self.asked = [asked for asked in self.asked if asked.client is not client]
        self.present = {place: owner for place, owner in self.present.items() if owner != client.id}
        self.erased.append(client)
        self._finish_erasure(client)
        self._check()

    @step(crowd=st.lists(st.tuples(people, places, kinds), min_size=1, max_size=POOL - 1))
    def read_while_turns_run(self, crowd: list[tuple[int, int, Kind]]) -> None:
        """A user reads their data while turns run, among them their own."""
        turns = [self._new(*each) for each in crowd]
        client = turns[0].client
        self._step("read during", *turns)
        reader, busy = self.world.take(), [self.world.take() for _ in turns]
        befores = [self._before(asked) for asked in turns]
        self.world.end_open_transactions()
        for environment, asked in zip(busy, turns, strict=True):
            environment.send(asked.request())
        for what in ("list", "export", *["read"] * bool(self.conversations[client.id])):
            place = next(iter(self.conversations[client.id]), "")
            response = reader.ask(Errand(client, what, place).request()).answer
            assert response.status == 200, response.body
            self._check_discreet(client, response)
        for environment, asked, before in zip(busy, turns, befores, strict=True):
            self._end(environment, asked, environment.outcome(), before | {"alone": False}, {200, 409})
        self.world.give(reader)
        self._check()

    # Requests

    def _run(self, errand: Errand, fate: str, point: int, *, check: bool = True) -> None:
        """Send an errand, and check its outcome."""
        if fate == "is frozen" and len(self.frozen) == MOST_FROZEN:
            self._thaw(0, "nothing")
        self.log.append(f"{errand.what} {errand.conversation_id} of {errand.client.id[:10]}, {fate} at {point}")
        self.world.settle()
        self.world.end_open_transactions()  # of another errand, which would keep this one waiting for seconds
        expected = self._expect(errand)
        trap = self._trap(fate, errand.what, point)
        environment = self.world.take()
        outcome = environment.ask(errand.request(), trap)
        if outcome.response:
            self.world.give(environment)
            self.world.lengths[errand.what] = len(outcome.passed)
            assert outcome.response.status == expected, f"{errand}: {outcome.response}, not {expected}"
            self._take_in_errand(errand, outcome.response)
        else:
            self._note_trapped(environment, errand, outcome)
        if check:
            self._check()

    def _expect(self, errand: Errand) -> int:
        """Return the status that the errand gets, and note its effect, which it may have even without an answer."""
        there = self.world.rows.execute(
            "select coalesce(lease_until > clock_timestamp(), false) as held from conversation"
            " where user_id = %s and id::text = %s",
            [errand.client.id, errand.conversation_id],
        ).fetchone()
        if errand.what == "rename":
            self.titles[errand.conversation_id].add(errand.title)
        if errand.what == "delete":
            self.doomed.add(errand.conversation_id)
        if errand.conversation_id and errand.what in ("read", "rename", "delete") and there is None:
            return 404
        if errand.what == "delete":
            return 409 if there and there["held"] else 204
        return 204 if errand.what == "erase" else 200

    def _take_in_errand(self, errand: Errand, response: Response) -> None:
        """Check the content of an answer."""
        self.world.counts[f"{errand.what} {response.status}"] += 1
        self._check_discreet(errand.client, response)
        stored = self._messages(errand.client)
        if response.status != 200:
            return
        if errand.what == "list":
            found = {one["id"] for one in response.json["conversations"]}
            assert found == self._conversations(errand.client)
        elif errand.what == "read":
            here = [row for row in stored if str(row["conversation_id"]) == errand.conversation_id]
            said = [row["content"] for row in here if row["role"] == "user"]
            replies = {row["turn_id"]: row["content"] for row in here if row["role"] == "assistant"}
            shown = response.json["turns"][::-1]
            assert [turn["message"] for turn in shown] == said
            assert [turn["response"] for turn in shown] == [replies.get(UUID(turn["turn_id"])) for turn in shown]
        elif errand.what == "export":
            texts = Counter(row["content"] for row in response.json["tables"]["message"])
            assert texts == Counter(row["content"] for row in stored)
        elif errand.what == "rename":
            assert response.json["title"] == errand.title

    def _finish_erasure(self, client: Caller) -> None:
        """Have the erasure of a user go on until it is done. Forget the effects until then."""
        for _ in range(3):
            self.world.settle()
            self.world.end_open_transactions()
            environment = self.world.take()
            response = environment.ask(Errand(client, "erase").request()).answer
            self.world.give(environment)
            if response.status == 204:
                break
        assert response.status == 204, response.body
        self.world.settle()
        self.world.rows.execute("delete from watch.effect where user_id = %s", [client.id])

    def _check_discreet(self, client: Caller, response: Response) -> None:
        others = [
            other for other in self.clients + self.erased if other is not client and _mark(other) in response.body
        ]
        assert not others, f"another user's text: {response.body}"

    def _note_trapped(self, environment: Environment, asked: Message | Errand, outcome: Outcome) -> None:
        if self._is_frozen(environment):
            self.world.counts["frozen"] += 1
            self.frozen.append(Stopped(environment, asked, outcome.commits > 0))
        else:
            self.world.counts["killed"] += 1

    def _step(self, what: str, *asked: Message) -> None:
        self.world.counts["steps"] += 1
        self.log.append(" ".join([what, *(f"{each.message!r} in {each.conversation_id}" for each in asked)]))

    def _new(self, person: int, place: int, kind: Kind) -> Message:
        client = self.clients[person]
        there = self.conversations[client.id]
        conversation_id = there[(place - 1) % len(there)] if place and there else None
        asked = Message(client, f"{_mark(client)}n{next(self.numbers)}", kind, conversation_id)
        self.asked.append(asked)
        return asked

    def _known(self, which: int) -> Message | None:
        """Return an earlier message, mostly one that no frozen process works on."""
        busy = [stopped.asked for stopped in self.frozen]
        free = [asked for asked in self.asked if asked not in busy or which % 3]
        return free[which % len(free)] if free else None

    def _thaw(self, number: int, trouble: str) -> None:
        stopped = self.frozen.pop(number)
        environment, asked = stopped.environment, stopped.asked
        self._step(f"{trouble}, then thaw {asked}")
        self._have(trouble, asked.client)
        self.world.settle()
        if asked.client in self.erased:
            self._thaw_of_erased(stopped)
        elif isinstance(asked, Errand):
            environment.thaw()
            response = environment.outcome().answer
            assert response.status in (200, 204, 404, 409, 503), f"{asked}: {response}"
            self._check_discreet(asked.client, response)
        else:
            before = self._before(asked)
            environment.thaw()
            self._take_in(asked, environment.outcome().answer, before | {"alone": False}, {200, 409, 503, 504})
        self.world.give(environment)
        self._check()

    def _thaw_of_erased(self, stopped: Stopped) -> None:
        """Let a request of an erased user continue. One that had not begun is a new request: erase the user again."""
        stopped.environment.thaw()
        response = stopped.environment.outcome().answer
        self.world.counts[f"of an erased user {response.status}"] += 1
        self.world.settle()
        if not stopped.has_begun:
            self._finish_erasure(stopped.asked.client)

    def _send(self, asked: Message, trouble: str, fate: str, point: int) -> None:
        if fate == "is frozen" and len(self.frozen) == MOST_FROZEN:
            self._thaw(0, "nothing")
        self._step(f"{trouble}, {fate} at {point}:", asked)
        self._have(trouble, asked.client)
        trap = self._trap(fate, asked.kind, point)
        is_absent = self._one(asked, trap)
        assert asked.body or trap or is_absent or trouble != "leases run out", (
            "no other turn was in its way, and it was not done"
        )

    def _trap(self, fate: str, what: Kind | str, part: int) -> Trap | None:
        usual = 10 if isinstance(what, str) else USUAL_POINTS
        point = 1 + part * self.world.lengths.get(what, usual) // 100
        return {"is killed": Trap.kill(point), "is frozen": Trap.freeze(point)}.get(fate)

    def _have(self, trouble: str, client: Caller) -> None:
        """Cause a fault."""
        if trouble != "nothing":
            self.world.counts[trouble] += 1
        if trouble == "leases run out":
            self._let_leases_run_out(client)
        elif trouble == "pooler restarts":
            self.world.pooler.restart()
        elif trouble == "backends end":
            self.world.terminate()

    def _let_leases_run_out(self, client: Caller) -> None:
        self.world.settle()
        self.world.end_open_transactions()
        db_assertions.let_leases_run_out(self.world.rows, client.id)

    def _one(
        self,
        asked: Message,
        trap: Trap | None = None,
        *,
        seconds: float = 30,
        statuses: frozenset[int] | set[int] = frozenset({200, 409}),
    ) -> bool:
        """Send one request and check its outcome. Return True if its conversation or its turn was deleted before."""
        before = self._before(asked)
        environment = self.world.take()
        self._end(environment, asked, environment.ask(asked.request(), trap, seconds), before, statuses)
        self._check()
        return bool(before["absent"])

    def _together(self, turns: list[Message], trap: Trap | None = None) -> None:
        """Send all at once, the first one into a trap."""
        befores = [self._before(asked) for asked in turns]
        busy = [self.world.take() for _ in turns]
        for number, (environment, asked) in enumerate(zip(busy, turns, strict=True)):
            environment.send(asked.request(), trap if number == 0 else None)
        outcomes = [environment.outcome() for environment in busy]
        for environment, asked, outcome, before in zip(busy, turns, outcomes, befores, strict=True):
            self._end(environment, asked, outcome, before | {"alone": False}, {200, 409})
        if not any(before["held"] or before["open"] for before in befores) and trap is None:
            assert any(outcome.answer.status == 200 for outcome in outcomes), "all were refused, and none ran"
        ran = [o for o in outcomes if o.response and o.response.status == 200 and not _is_replay(o.response)]
        if all(asked is turns[0] for asked in turns):
            assert len(ran) <= 1, "copies ran more than once"
        self._check()

    def _before(self, asked: Message) -> dict[str, Any]:
        """Return the state before a request: is its conversation held, is it done or deleted, is a transaction open."""
        self.world.settle()
        rows, client = self.world.rows, asked.client
        held = rows.execute(
            "select 1 from conversation where user_id = %s and (id = %s or turn_id = %s)"
            " and lease_until > clock_timestamp()",
            [client.id, asked.conversation_id, asked.turn_id],
        ).fetchone()
        stored = db_assertions.messages(rows, client.id, str(asked.turn_id))
        called = db_assertions.calls(rows, client.id, str(asked.turn_id))
        gone = asked.conversation_id and asked.conversation_id not in self._conversations(client)
        return {
            "held": bool(held),
            "done": len(stored) == 2,
            "absent": not stored and bool(called or gone),
            "open": self.world.is_transaction_open(),
            "alone": True,
        }

    def _end(
        self,
        environment: Environment,
        asked: Message,
        outcome: Outcome,
        before: dict[str, Any],
        statuses: set[int] | frozenset[int],
    ) -> None:
        if outcome.response:
            self.world.give(environment)
            self._take_in(asked, outcome.response, before, statuses)
            if outcome.response.status == 200 and not _is_replay(outcome.response):
                self.world.lengths[asked.kind] = len(outcome.passed)
        else:
            self._note_trapped(environment, asked, outcome)

    def _is_frozen(self, environment: Environment) -> bool:
        return not environment.is_answered()  # the socket of a dead one is at its end

    def _take_in(
        self, asked: Message, response: Response, before: dict[str, Any], statuses: set[int] | frozenset[int]
    ) -> None:
        """Check one answer against the state before it."""
        self.world.counts[f"{response.status}{' replayed' if _is_replay(response) else ''}"] += 1
        summary = f"{asked.message!r}: {response.status} {response.body}"
        if _is_held_up(response, before):
            return
        if before["absent"]:
            statuses = {404, 409} if before["alone"] else {*statuses, 404}
        assert response.status in statuses, summary
        if response.status == 200 and not (asked.is_lost and not before["alone"]):  # else perhaps an answer from before
            self._take_in_answer(asked, response)
            if before["alone"]:
                assert before["done"] or not before["held"], f"ran in a conversation that another held: {summary}"
                assert _is_replay(response) == before["done"], summary
        if response.status == 409:
            assert int(response.headers["retry-after"]) >= 1
            if before["alone"]:
                assert before["held"], f"refused, and no turn held the conversation: {summary}"
        if response.status in (502, 504) and "turn_id" in response.json:
            recorded = db_assertions.calls(self.world.rows, asked.client.id, response.json["turn_id"])
            assert response.json["tool_calls"] == recorded, summary

    def _take_in_answer(self, asked: Message, response: Response) -> None:
        assert response.status == 200, f"{asked.message!r}: {response.status} {response.body}"
        assert asked.body in (None, response.body), f"{asked.message!r}: another answer than before"
        if asked.body is None:
            asked.body = response.body
            answer = response.json
            there = self.conversations[asked.client.id]
            assert asked.conversation_id in (None, answer["conversation_id"])
            if answer["conversation_id"] not in there:
                there.append(answer["conversation_id"])

    # Checks

    def _check(self) -> None:
        self.world.settle()
        self._notice_deletions()
        for client in self.clients:
            self._check_person(client)
        for client in self.erased:
            assert personal_data.count(self.world.rows, client.id) == {}, "rows of an erased user"
            assert db_assertions.effects(self.world.rows, client.id) == [], "effects for an erased user"
        self._check_model_requests()

    def _conversations(self, client: Caller) -> set[str]:
        found = self.world.rows.execute("select id::text from conversation where user_id = %s", [client.id])
        return {row["id"] for row in found}

    def _notice_deletions(self) -> None:
        """Forget the answers of turns whose conversation is gone. Somebody must have wanted to delete it."""
        present = {place: client.id for client in self.clients for place in self._conversations(client)}
        for place in self.present.keys() - present.keys():
            assert place in self.doomed, "a conversation is gone, and its user did not delete it"
            self.world.counts["deleted"] += 1
            self.conversations[self.present[place]] = [c for c in self.conversations[self.present[place]] if c != place]
            for asked in self.asked:
                if asked.place == place:
                    asked.body, asked.is_lost = None, True
        self.present = present

    def _check_person(self, client: Caller) -> None:
        """Check all rows of one user against the messages and the answers."""
        stored, calls = self._messages(client), self._calls(client)
        self._check_sequences(stored)
        self._check_titles(client)
        replies = {row["turn_id"]: row["content"] for row in stored if row["role"] == "assistant"}
        mine = {asked.turn_id: asked for asked in self.asked if asked.client is client}
        for row in stored:
            if row["role"] == "user":
                assert row["content"] == mine[row["turn_id"]].message
        effects: dict[str, list[str]] = defaultdict(list)
        for effect in db_assertions.effects(self.world.rows, client.id):
            effects[effect.split()[1][:-1]].append(effect)
        said = {row["turn_id"] for row in stored}
        for turn_id, asked in mine.items():
            if turn_id not in said:
                self._check_redacted(calls.get(turn_id, []))
            self._check_turn(asked, calls.pop(turn_id, []), effects.pop(asked.mark, []), replies.get(turn_id))
        assert (calls, effects) == ({}, {}), "calls or effects that belong to no turn"

    def _check_titles(self, client: Caller) -> None:
        """Check that each conversation has a title that it was given, or the beginning of its first message."""
        begun = {asked.place: asked.message[:80] for asked in self.asked if asked.conversation_id is None}
        for row in self.world.rows.execute("select id::text, title from conversation where user_id = %s", [client.id]):
            assert row["title"] in self.titles[row["id"]] | {begun[row["id"]]}

    def _check_redacted(self, calls: list[dict[str, Any]]) -> None:
        """Check that the calls of a turn without its message hold no text."""
        for call in calls:
            assert (call["arguments"], call["result"]) == ({}, DELETED), "text of a deleted conversation"

    def _messages(self, client: Caller) -> list[dict[str, Any]]:
        return self.world.rows.execute(
            "select conversation_id, position, turn_id, role, content from message where user_id = %s"
            " order by conversation_id, position",
            [client.id],
        ).fetchall()

    def _calls(self, client: Caller) -> dict[UUID, list[dict[str, Any]]]:
        found: dict[UUID, list[dict[str, Any]]] = defaultdict(list)
        for row in self.world.rows.execute(
            "select turn_id, call_id, tool, arguments, outcome, result, duration_ms, position from tool_call"
            " where user_id = %s order by turn_id, position",
            [client.id],
        ):
            found[row["turn_id"]].append(row)
        return found

    def _check_sequences(self, stored: list[dict[str, Any]]) -> None:
        """Check that each conversation has user messages in sequence, each with at most one reply behind it."""
        for conversation_id in {row["conversation_id"] for row in stored}:
            there = [row for row in stored if row["conversation_id"] == conversation_id]
            asked = [row for row in there if row["role"] == "user"]
            assert [row["position"] for row in asked] == list(range(0, 2 * len(asked), 2))
            behind = {row["position"] + 1: row["turn_id"] for row in asked}
            for row in there:
                if row["role"] == "assistant":
                    assert behind.pop(row["position"]) == row["turn_id"]

    def _check_turn(self, asked: Message, recorded: list[dict[str, Any]], done: list[str], reply: str | None) -> None:
        """Check that each effect has its record, that none is there twice, and that a finished turn has all."""
        assert [call["position"] for call in recorded] == list(range(len(recorded)))
        noted = [EFFECTS[call["tool"]] for call in recorded if call["outcome"] == "ok" and call["tool"] in EFFECTS]
        assert [effect.split()[0] for effect in done] == noted, f"{asked.message!r}: {done} against {recorded}"
        assert done == asked.message.effects[: len(done)], f"{asked.message!r}: {done}"
        if reply is not None:
            assert done == asked.message.effects, f"{asked.message!r}: {done}"
        if asked.body is not None:
            answer = json.loads(asked.body)
            assert answer["response"] == reply
            kept = [{name: call[name] for name in answer["tool_calls"][0]} for call in recorded]
            assert answer["tool_calls"] == kept

    def _check_model_requests(self) -> None:
        """Check each request to the model since the last step."""
        for request in self.world.standin.requests():
            if request["body"] is not None:  # its sender died while it was sending
                assert request["status"] != 400, request
                self._check_input(request["body"])
                self.world.counts["model requests"] += 1
        self.world.standin.reset()

    def _check_input(self, body: dict[str, Any]) -> None:
        """Check that the input has one user's turns in order, each as it is stored."""
        turns = _turns(body["input"])
        everybody = self.clients + self.erased
        (client,) = [client for client in everybody if _mark(client) in turns[-1]["message"]]
        shown = json.dumps(body)
        assert [other for other in everybody if _mark(other) in shown] == [client], "another user's text"
        if client in self.erased or any(turns[-1]["message"] == a.message for a in self.asked if a.is_lost):
            return  # perhaps a request from before: its rows are gone
        stored, calls = self._messages(client), self._calls(client)
        asked = {row["content"]: row for row in stored if row["role"] == "user"}
        replies = {row["turn_id"]: row["content"] for row in stored if row["role"] == "assistant"}
        rows = [asked[turn["message"]] for turn in turns]
        assert len({row["conversation_id"] for row in rows}) == 1, "turns of several conversations"
        assert [row["position"] for row in rows] == sorted({row["position"] for row in rows}), "turns out of order"
        recorded = [[call["call_id"] for call in calls[row["turn_id"]]] for row in rows]
        for turn, row, kept in zip(turns[:-1], rows, recorded, strict=False):
            assert (turn["calls"], turn["reply"]) == (kept, replies.get(row["turn_id"]))
        assert (turns[-1]["calls"], turns[-1]["reply"]) == (recorded[-1][: len(turns[-1]["calls"])], None)

    @keep_failure
    def teardown(self) -> None:
        """Kill the frozen processes, and send every message without an answer again: each happens once."""
        for stopped in self.frozen:
            stopped.environment.kill()
        if self.world.failure:
            return
        for client in self.clients:
            self._let_leases_run_out(client)
        self._notice_deletions()
        self.world.standin.reset()
        for asked in self.asked:
            if asked.body is None:
                self._finish_in_the_end(asked)

    def _finish_in_the_end(self, asked: Message) -> None:
        """Send a message again, when nothing is in its way."""
        self.world.counts["finished in the end"] += 1
        is_absent = self._before(asked)["absent"]
        environment = self.world.take()
        response = environment.ask(asked.request()).answer
        self.world.give(environment)
        if is_absent:
            assert response.status == 404, response.body
        else:
            self._take_in_answer(asked, response)
        self._check_person(asked.client)
        self._check_model_requests()


def _mark(client: Caller) -> str:
    """Return the beginning of every text of a user, which is in no other user's text."""
    return f"x{client.id[:10]}x"


def _is_replay(response: Response) -> bool:
    return response.headers.get("idempotent-replayed") == "true"


def _turns(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the model's input as turns: the message, the calls, each with its output, and the reply."""
    turns: list[dict[str, Any]] = []
    waiting: list[str] = []
    for item in items:
        kind = item.get("type", "message")
        if kind == "function_call":
            turns[-1]["calls"].append(item["call_id"])
            waiting.append(item["call_id"])
        elif kind == "function_call_output":
            waiting.remove(item["call_id"])
        elif item["role"] == "user":
            assert not waiting, "a call without its output"
            turns.append({"message": item["content"].partition("\n")[2], "calls": [], "reply": None})
        else:
            assert not waiting, "a call without its output"
            assert turns[-1]["reply"] is None, "two replies"
            turns[-1]["reply"] = item["content"]
    assert not waiting, "a call without its output"
    return turns


@pytest.fixture
def world(
    warm_fork_server: ForkServer, server: Postgres, pooler: PgBouncer, standin: StandIn, issuer: Issuer, rows: Rows
) -> Iterator[World]:
    """Give the servers and environments for all sequences."""
    fleet = Fleet(warm_fork_server, variables(pooler.url(server.app_url), standin, issuer)).renewing_every(0.02)
    with db_assertions.watched(rows):
        yield World(fleet, rows, standin, pooler, issuer)
        fleet.stop()


def test_in_any_sequence_each_turn_happens_once(world: World, report: Report, pytestconfig: pytest.Config) -> None:
    """Run random sequences until there are enough steps."""
    Turns.world = world
    chosen = int(pytestconfig.getoption("--hypothesis-seed") or random.SystemRandom().randrange(10**9))
    try:
        run_state_machine_as_test(seed(chosen)(Turns), settings=SETTINGS)
    except Exception as error:
        raise (world.failure or error) from None
    finally:
        counts = ", ".join(f"{number} {what}" for what, number in sorted(world.counts.items()))
        report(f"Random steps: {counts} (--hypothesis-seed={chosen})")
    assert world.counts["steps"] >= WANTED
