"""Anything may happen, in any order, and each turn still happens once.

Hypothesis drives messages, retries, duplicates at the same moment, kills, freezes, restarts of the pooler, terminated
backends and faults of the model, over several people and conversations, through PgBouncer. After every step it holds
Postgres and what the model was sent against a simple model of what must be true.

Promises: an accepted turn ran once, its effects exactly once and in order; a conversation is a sequence of one question
and at most one answer; 409 only while a turn holds the conversation; a finished key gives the same bytes for ever;
nobody's rows or words with another's; the model is never sent an orphan call, or a turn out of its place.
"""

import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ClassVar
from uuid import UUID, uuid4

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
from taskchat.conversations.turns import turn_id_for
from testing.callers import Caller
from testing.gateway import Response
from tests import db_assertions as truth
from tests.conftest import variables
from tests.crash_points import Trap
from tests.db_assertions import Rows
from tests.domain import example
from tests.environments import Environment, Fleet, ForkServer, Outcome
from tests.example_domain import Sentence

STEPS = 20
"""Steps of one sequence."""
WANTED = 2_000 if "THOROUGH" in os.environ else 200
"""Steps to be done in all, not counting those that found nothing to do."""
SETTINGS = settings(
    max_examples=WANTED // 4,  # more than it takes: they do nothing once there were enough steps
    stateful_step_count=STEPS,
    deadline=None,  # a step may take as long as the machine is busy
    database=None,  # the seed is what is kept
    phases=[Phase.generate],  # processes do not race twice alike: a smaller example would be another one
    suppress_health_check=[HealthCheck.too_slow],  # each step is requests to real processes
)
PEOPLE = 3
POOL = 3
"""Environments that are idle between two steps."""
MOST_FROZEN = 2
USUAL_POINTS = 60
SETTLED = 15
"""Seconds within which the database has done with a process that died."""
SHORT = 1.8
"""Seconds of a request whose model hangs: just over what the handler keeps back."""

Report = Callable[[str], None]


Kind = Callable[[str], Sentence]
"""A thing to ask for, in words that a mark makes a turn's own."""

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
    # The turn is done all the same: the model is told, or asked again.
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
    # The turn is left where it is, to be finished by a retry.
    ("rate_limit", {"retry_after_ms": 10, "times": 3}),
    ("quota", {}),
    ("wrong_schema", {}),
    ("length", {}),
    ("content_filter", {}),
    ("duplicate_call_ids", {}),
    ("hang", {"seconds": 40}),
]


@dataclass
class Asked:
    """A message with its key, and what is known of it."""

    client: Caller
    mark: str
    kind: Kind
    conversation_id: str | None
    key: str = field(default_factory=lambda: f"key-{uuid4()}")
    body: str | None = None
    """The answer, once somebody had it."""

    @property
    def message(self) -> Sentence:
        """What is said, and what must come of it."""
        return self.kind(self.mark)

    @property
    def turn_id(self) -> UUID:
        """Its turn's id."""
        return turn_id_for(self.client.id, self.key)

    def request(self, message: str | None = None) -> dict[str, Any]:
        """The request, the same each time; or another one with its key."""
        return self.client.request(
            {"message": message or self.message, "conversation_id": self.conversation_id}, self.key
        )


@dataclass
class World:
    """What outlives a sequence: the servers, the environments, the counts."""

    fleet: Fleet
    rows: Rows
    standin: StandIn
    pooler: PgBouncer
    issuer: Issuer
    idle: list[Environment] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    lengths: dict[Kind, int] = field(default_factory=dict)
    """How many points a turn of each kind had the last time."""
    failure: Exception | None = None
    """The first one."""

    def take(self) -> Environment:
        """An idle environment, or a cold one."""
        return self.idle.pop(0) if self.idle else self.fleet.start()

    def give(self, environment: Environment) -> None:
        """It is idle again."""
        self.idle.append(environment)

    def settle(self) -> None:
        """Wait until the database has done what was asked of it by processes that died."""
        for _ in processes.attempts(SETTLED):
            if not self._backends("state = 'active'"):
                return
        raise AssertionError("the database is still busy")

    def is_transaction_open(self) -> bool:
        """Whether a frozen process holds a transaction, and with it perhaps a lock."""
        return self._backends("state like 'idle in transaction%%'") > 0

    def end_open_transactions(self) -> None:
        """Sooner than the role's own idle_in_transaction_session_timeout, and to the same effect."""
        self.terminate("state like 'idle in transaction%%'")

    def terminate(self, which: str = "true") -> None:
        """End backends of the program's, and wait until they are gone."""
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


def telling(do: Do) -> Do:
    """Keep the first failure, with all that was done before it: a second try would race otherwise, and hide it."""

    @wraps(do)
    def told(self: "Turns", **values: Any) -> None:
        try:
            do(self, **values)
        except Exception as error:
            error.add_note("\n".join(["What was done:", *self.log]))
            self.world.failure = self.world.failure or error
            raise

    return told


def step(**drawn: SearchStrategy[Any]) -> Callable[[Do], Any]:
    """A rule, until there were enough steps."""
    made: Any = rule(**drawn)  # type: ignore[call-overload]  # it has parameters of its own, none of which is a draw

    def decorate(do: Do) -> Any:
        @wraps(do)
        def unless_over(self: "Turns", **values: Any) -> None:
            if self.world.failure is None and self.world.counts["steps"] < WANTED:
                telling(do)(self, **values)

        return made(unless_over)

    return decorate


def _is_held_up(response: Response, before: dict[str, Any]) -> bool:
    """Whether a frozen process holds a lock, and that is said so."""
    return bool(before["open"] and response.status == 503 and int(response.headers["retry-after"]) >= 1)


class Turns(RuleBasedStateMachine):
    """One sequence. No rule has a precondition: what is drawn depends on nothing that happens, so a seed repeats it."""

    world: ClassVar[World]

    people = st.integers(0, PEOPLE - 1)
    places = st.integers(0, 3)
    """0 begins a conversation; others go on with one."""
    kinds = st.sampled_from(KINDS)
    which = st.integers(0, 1000)
    points = st.integers(0, 99)
    """Hundredths of the way through a turn."""
    fates = st.sampled_from(["ends"] * 3 + ["is killed"] * 2 + ["is frozen"])
    troubles = st.sampled_from(["nothing"] * 3 + ["leases run out"] * 3 + ["pooler restarts", "backends end"])

    @initialize()
    def begin(self) -> None:
        """New people, nothing said."""
        self.clients = [Caller.new(self.world.issuer) for _ in range(PEOPLE)]
        self.conversations: dict[str, list[str]] = {client.id: [] for client in self.clients}
        self.asked: list[Asked] = []
        self.frozen: list[tuple[Environment, Asked]] = []
        self.log: list[str] = []
        self.world.standin.reset()

    # What may happen

    @step(person=people, place=places, kind=kinds, trouble=troubles, fate=fates, point=points)
    def say(self, person: int, place: int, kind: Kind, trouble: str, fate: str, point: int) -> None:
        """Somebody says something, after something has gone wrong or some time has passed; a process may die of it."""
        self._send(self._new(person, place, kind), trouble, fate, point)

    @step(which=which, trouble=troubles, fate=fates, point=points)
    def retry(self, which: int, trouble: str, fate: str, point: int) -> None:
        """Somebody sends the same again."""
        if asked := self._known(which):
            self._send(asked, trouble, fate, point)

    @step(which=which, kind=kinds)
    def reuse_a_key(self, which: int, kind: Kind) -> None:
        """Somebody sends something else with a key that was used: refused, whatever became of the first."""
        asked = self._known(which)
        if asked and truth.messages(self.world.rows, asked.client.id, str(asked.turn_id)):
            self._step("reuse the key of", asked)
            before, environment = self._before(asked), self.world.take()
            response = environment.ask(asked.request(f"{asked.message} indeed")).answer
            if not _is_held_up(response, before):
                assert (response.status, response.json["type"].rpartition(":")[2]) == (422, "idempotency-key-reused")
            self.world.give(environment)
            self._check()

    @step(person=people, place=places, kind=kinds, copies=st.integers(2, POOL), fate=fates, point=points)
    def send_copies_at_once(self, person: int, place: int, kind: Kind, copies: int, fate: str, point: int) -> None:
        """A thumb, a phone and a gateway send the same at the same moment; one of the processes may die of it."""
        self._step(f"{copies} copies of", asked := self._new(person, place, kind))
        self._together([asked] * copies, self._trap("is killed" if fate == "is killed" else "ends", asked, point))

    @step(person=people, place=places, kinds=st.lists(kinds, min_size=2, max_size=POOL))
    def say_several_things_at_once(self, person: int, place: int, kinds: list[Kind]) -> None:
        """Different messages for one conversation, at the same moment."""
        rivals = [self._new(person, place, kind) for kind in kinds]
        self._step("at once", *rivals)
        self._together(rivals)

    @step(crowd=st.lists(st.tuples(people, places, kinds), min_size=2, max_size=POOL))
    def speak_all_at_once(self, crowd: list[tuple[int, int, Kind]]) -> None:
        """Different people, at the same moment."""
        turns = [self._new(*each) for each in crowd]
        self._step("crowd", *turns)
        self._together(turns)

    @step(which=which, trouble=troubles)
    def thaw(self, which: int, trouble: str) -> None:
        """A stopped process goes on, whatever has happened since."""
        if self.frozen:
            self._thaw(which % len(self.frozen), trouble)

    @step(person=people, place=places, kind=kinds, mistake=st.sampled_from(MODEL_MISTAKES), calls=st.integers(0, 2))
    def have_the_model_err(
        self, person: int, place: int, kind: Kind, mistake: tuple[str, dict[str, Any]], calls: int
    ) -> None:
        """The model stumbles in the turn, and all is done nevertheless."""
        self._step(f"{mistake[0]} after {calls} calls", asked := self._new(person, place, kind))
        self.world.standin.fault(mistake[0], match=asked.mark, after_calls=calls, **mistake[1])
        self._one(asked)

    @step(person=people, place=places, kind=kinds, failure=st.sampled_from(MODEL_FAILURES), calls=st.integers(0, 2))
    def have_the_model_fail(
        self, person: int, place: int, kind: Kind, failure: tuple[str, dict[str, Any]], calls: int
    ) -> None:
        """The model fails in the turn: said so, and to be taken up again."""
        self._step(f"{failure[0]} after {calls} calls", asked := self._new(person, place, kind))
        self.world.standin.fault(failure[0], match=asked.mark, after_calls=calls, **failure[1])
        seconds = SHORT if failure[0] == "hang" else 30
        self._one(asked, seconds=seconds, statuses={200, 409, 502, 504})

    # How it is done

    def _step(self, what: str, *asked: Asked) -> None:
        self.world.counts["steps"] += 1
        self.log.append(" ".join([what, *(f"{each.message!r} in {each.conversation_id}" for each in asked)]))

    def _new(self, person: int, place: int, kind: Kind) -> Asked:
        client = self.clients[person]
        there = self.conversations[client.id]
        conversation_id = there[(place - 1) % len(there)] if place and there else None
        asked = Asked(client, f"{_mark(client)}n{len(self.asked)}", kind, conversation_id)
        self.asked.append(asked)
        return asked

    def _known(self, which: int) -> Asked | None:
        """One that nobody is working on."""
        busy = [asked for _, asked in self.frozen]
        free = [asked for asked in self.asked if asked not in busy or which % 3]
        return free[which % len(free)] if free else None

    def _thaw(self, number: int, trouble: str) -> None:
        environment, asked = self.frozen.pop(number)
        self._step(f"{trouble}, then thaw", asked)
        self._have(trouble, asked)
        before = self._before(asked)
        environment.thaw()
        self._take_in(asked, environment.outcome().answer, before | {"alone": False}, {200, 409, 503, 504})
        self.world.give(environment)
        self._check()

    def _send(self, asked: Asked, trouble: str, fate: str, point: int) -> None:
        if fate == "is frozen" and len(self.frozen) == MOST_FROZEN:
            self._thaw(0, "nothing")
        self._step(f"{trouble}, {fate} at {point}:", asked)
        self._have(trouble, asked)
        trap = self._trap(fate, asked, point)
        self._one(asked, trap)
        assert asked.body or trap or trouble != "leases run out", "nobody was in its way, and it was not done"

    def _trap(self, fate: str, asked: Asked, part: int) -> Trap | None:
        point = 1 + part * self.world.lengths.get(asked.kind, USUAL_POINTS) // 100
        return {"is killed": Trap.kill(point), "is frozen": Trap.freeze(point)}.get(fate)

    def _have(self, trouble: str, asked: Asked) -> None:
        """Have something go wrong."""
        if trouble != "nothing":
            self.world.counts[trouble] += 1
        if trouble == "leases run out":
            self._let_leases_run_out(asked.client)
        elif trouble == "pooler restarts":
            self.world.pooler.restart()
        elif trouble == "backends end":
            self.world.terminate()

    def _let_leases_run_out(self, client: Caller) -> None:
        self.world.settle()
        self.world.end_open_transactions()
        truth.let_leases_run_out(self.world.rows, client.id)

    def _one(
        self,
        asked: Asked,
        trap: Trap | None = None,
        *,
        seconds: float = 30,
        statuses: frozenset[int] | set[int] = frozenset({200, 409}),
    ) -> None:
        """Send one request, and see that what comes of it may come of it."""
        before = self._before(asked)
        environment = self.world.take()
        self._end(environment, asked, environment.ask(asked.request(), trap, seconds), before, statuses)
        self._check()

    def _together(self, turns: list[Asked], trap: Trap | None = None) -> None:
        """Send all at the same moment, the first one into a trap."""
        befores = [self._before(asked) for asked in turns]
        busy = [self.world.take() for _ in turns]
        for number, (environment, asked) in enumerate(zip(busy, turns, strict=True)):
            environment.send(asked.request(), trap if number == 0 else None)
        outcomes = [environment.outcome() for environment in busy]
        for environment, asked, outcome, before in zip(busy, turns, outcomes, befores, strict=True):
            self._end(environment, asked, outcome, before | {"alone": False}, {200, 409})
        if not any(before["held"] or before["open"] for before in befores) and trap is None:
            assert any(outcome.answer.status == 200 for outcome in outcomes), "all were refused, and nobody ran"
        ran = [o for o in outcomes if o.response and o.response.status == 200 and not _is_replay(o.response)]
        if all(asked is turns[0] for asked in turns):
            assert len(ran) <= 1, "copies ran more than once"
        self._check()

    def _before(self, asked: Asked) -> dict[str, Any]:
        """What the database says before a request: who holds its conversation, whether it is done."""
        self.world.settle()
        rows, client = self.world.rows, asked.client
        held = rows.execute(
            "select 1 from conversation where user_id = %s and (id = %s or turn_id = %s)"
            " and lease_until > clock_timestamp()",
            [client.id, asked.conversation_id, asked.turn_id],
        ).fetchone()
        done = len(truth.messages(rows, client.id, str(asked.turn_id))) == 2
        return {"held": bool(held), "done": done, "open": self.world.is_transaction_open(), "alone": True}

    def _end(
        self,
        environment: Environment,
        asked: Asked,
        outcome: Outcome,
        before: dict[str, Any],
        statuses: set[int] | frozenset[int],
    ) -> None:
        if outcome.response:
            self.world.give(environment)
            self._take_in(asked, outcome.response, before, statuses)
            if outcome.response.status == 200 and not _is_replay(outcome.response):
                self.world.lengths[asked.kind] = len(outcome.passed)
        elif self._is_frozen(environment):
            self.world.counts["frozen"] += 1
            self.frozen.append((environment, asked))
        else:
            self.world.counts["killed"] += 1

    def _is_frozen(self, environment: Environment) -> bool:
        return not environment.is_answered()  # the socket of a dead one is at its end

    def _take_in(
        self, asked: Asked, response: Response, before: dict[str, Any], statuses: set[int] | frozenset[int]
    ) -> None:
        """One answer, against what may be answered."""
        self.world.counts[f"{response.status}{' replayed' if _is_replay(response) else ''}"] += 1
        said = f"{asked.message!r}: {response.status} {response.body}"
        if _is_held_up(response, before):
            return
        assert response.status in statuses, said
        if response.status == 200:
            self._take_in_answer(asked, response)
            if before["alone"]:
                assert before["done"] or not before["held"], f"ran in a conversation that another held: {said}"
                assert _is_replay(response) == before["done"], said
        if response.status == 409:
            assert int(response.headers["retry-after"]) >= 1
            if before["alone"]:
                assert before["held"], f"refused, and nobody held the conversation: {said}"
        if response.status in (502, 504) and "turn_id" in response.json:
            recorded = truth.calls(self.world.rows, asked.client.id, response.json["turn_id"])
            assert response.json["tool_calls"] == recorded, said

    def _take_in_answer(self, asked: Asked, response: Response) -> None:
        assert response.status == 200, f"{asked.message!r}: {response.status} {response.body}"
        assert asked.body in (None, response.body), f"{asked.message!r}: another answer than before"
        if asked.body is None:
            asked.body = response.body
            answer = response.json
            there = self.conversations[asked.client.id]
            assert asked.conversation_id in (None, answer["conversation_id"])
            if answer["conversation_id"] not in there:
                there.append(answer["conversation_id"])

    # What must be true

    def _check(self) -> None:
        self.world.settle()
        for client in self.clients:
            self._check_person(client)
        self._check_what_the_model_was_sent()

    def _check_person(self, client: Caller) -> None:
        """Everything stored of one person against what was asked and answered."""
        said, calls = self._said(client), self._calls(client)
        self._check_sequences(said)
        replies = {row["turn_id"]: row["content"] for row in said if row["role"] == "assistant"}
        mine = {asked.turn_id: asked for asked in self.asked if asked.client is client}
        for row in said:
            if row["role"] == "user":
                assert row["content"] == mine[row["turn_id"]].message
        effects: dict[str, list[str]] = defaultdict(list)
        for effect in truth.effects(self.world.rows, client.id):
            effects[effect.split()[1][:-1]].append(effect)
        for turn_id, asked in mine.items():
            self._check_turn(asked, calls.pop(turn_id, []), effects.pop(asked.mark, []), replies.get(turn_id))
        assert (calls, effects) == ({}, {}), "calls or effects that belong to no turn"

    def _said(self, client: Caller) -> list[dict[str, Any]]:
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

    def _check_sequences(self, said: list[dict[str, Any]]) -> None:
        """In each conversation: question after question, each with at most one answer right behind it."""
        for conversation_id in {row["conversation_id"] for row in said}:
            there = [row for row in said if row["conversation_id"] == conversation_id]
            questions = [row for row in there if row["role"] == "user"]
            assert [row["position"] for row in questions] == list(range(0, 2 * len(questions), 2))
            behind = {row["position"] + 1: row["turn_id"] for row in questions}
            for row in there:
                if row["role"] == "assistant":
                    assert behind.pop(row["position"]) == row["turn_id"]

    def _check_turn(self, asked: Asked, recorded: list[dict[str, Any]], done: list[str], reply: str | None) -> None:
        """Each effect has its record, none is there twice, and a turn that is over has all of them."""
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

    def _check_what_the_model_was_sent(self) -> None:
        """Each request since the last step."""
        for request in self.world.standin.requests():
            if request["body"] is not None:  # else its sender died while it spoke
                assert request["status"] != 400, request
                self._check_input(request["body"])
                self.world.counts["model requests"] += 1
        self.world.standin.reset()

    def _check_input(self, body: dict[str, Any]) -> None:
        """It holds one person's turns, in order, each as it is stored."""
        turns = _turns(body["input"])
        (client,) = [client for client in self.clients if _mark(client) in turns[-1]["said"]]
        shown = json.dumps(body)
        assert [other for other in self.clients if _mark(other) in shown] == [client], "another's words"
        said, calls = self._said(client), self._calls(client)
        asked = {row["content"]: row for row in said if row["role"] == "user"}
        replies = {row["turn_id"]: row["content"] for row in said if row["role"] == "assistant"}
        rows = [asked[turn["said"]] for turn in turns]
        assert len({row["conversation_id"] for row in rows}) == 1, "turns of several conversations"
        assert [row["position"] for row in rows] == sorted({row["position"] for row in rows}), "turns out of order"
        recorded = [[call["call_id"] for call in calls[row["turn_id"]]] for row in rows]
        for turn, row, kept in zip(turns[:-1], rows, recorded, strict=False):
            assert (turn["calls"], turn["reply"]) == (kept, replies.get(row["turn_id"]))
        assert (turns[-1]["calls"], turns[-1]["reply"]) == (recorded[-1][: len(turns[-1]["calls"])], None)

    @telling
    def teardown(self) -> None:
        """End whoever sleeps, and send again all that has no answer: none is lost, and each happens once."""
        for environment, _ in self.frozen:
            environment.kill()
        if self.world.failure:
            return
        for client in self.clients:
            self._let_leases_run_out(client)
        self.world.standin.reset()
        for asked in self.asked:
            if asked.body is None:
                self.world.counts["finished in the end"] += 1
                environment = self.world.take()
                self._take_in_answer(asked, environment.ask(asked.request()).answer)
                self.world.give(environment)
                self._check_person(asked.client)
                self._check_what_the_model_was_sent()


def _mark(client: Caller) -> str:
    """What every word of a person's begins with, and nobody else's contains."""
    return f"x{client.id[:10]}x"


def _is_replay(response: Response) -> bool:
    return response.headers.get("idempotent-replayed") == "true"


def _turns(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The model's input as turns: what was said, the calls, each with its output, and the reply."""
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
            turns.append({"said": item["content"].partition("\n")[2], "calls": [], "reply": None})
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
    """Servers and environments for all sequences."""
    fleet = Fleet(warm_fork_server, variables(pooler.url(server.app_url), standin, issuer))
    with truth.watched(rows):
        yield World(fleet, rows, standin, pooler, issuer)
        fleet.stop()


def test_whatever_happens_each_turn_happens_once(world: World, report: Report, pytestconfig: pytest.Config) -> None:
    """Random sequences without a violation, until there were enough steps."""
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
