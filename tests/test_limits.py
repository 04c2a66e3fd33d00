"""What one person may use of the service: exact however many ask at once, and nobody's business but theirs."""

import http.client
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count
from threading import Barrier
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy
from mangum import Mangum
from sqlmodel import Session, SQLModel

from chat.usage import MAX_OUTPUT_TOKENS, Usage
from dev import processes
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from taskchat.conversations import turns as conversations
from taskchat.conversations.lease import LeaseLost
from taskchat.database.transaction import Database
from taskchat.errors import TooManyRequests
from taskchat.limits import STATEMENTS, DayLeft, Limits
from testing.callers import RESOURCE, Caller
from testing.gateway import Handler, Response, event, invoke
from tests import db_assertions as truth
from tests import proxy
from tests.conftest import ROOT, Logs, Person, reset_processes, serving, variables
from tests.domain import example
from tests.environments import Environment, Fleet, ForkServer

Rows = psycopg.Connection[dict[str, Any]]

SLOW = 1
"""Requests in a minute: so few that no test takes long enough for one to come back by itself."""
DAY_SECONDS = 86_400
ADD_MILK, CALL_MUM = example.add("milk"), example.add("call mum")
STATELESS = "2026-07-28"
"""The protocol version whose clients need no handshake: each request stands for itself."""


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database as one execution environment has it."""
    database = Database(lambda: database_url)
    yield database
    database.close()


def allowance(rows: Rows, user_id: str, door: str = "chat") -> dict[str, Any] | None:
    """What is kept of a person's use, as it lies in Postgres."""
    found = rows.execute("select * from allowance where user_id = %s and door = %s", [user_id, door])
    return found.fetchone()


def let_pass(rows: Rows, user_id: str, passed: timedelta) -> None:
    """As if the person had done nothing for so long: all that is kept of them is that much older."""
    rows.execute("update allowance set full_at = full_at - %s where user_id = %s", [passed, user_id])


def yesterday(rows: Rows, user_id: str) -> None:
    """As if what is kept of the person were of the day before."""
    rows.execute("update allowance set day = day - 1 where user_id = %s", [user_id])


def spend(database: Database, limits: Limits, user_id: str) -> TooManyRequests | None:
    """One request in a transaction of its own: what it was refused with, if it was."""
    try:
        with database.transaction(user_id) as session:
            limits.spend(session, user_id)
    except TooManyRequests as refusal:
        return refusal
    return None


def spend_all(database: Database, limits: Limits, user_id: str, times: int) -> int:
    """How many of so many requests, one after the other, are let through."""
    return [spend(database, limits, user_id) for _ in range(times)].count(None)


def _await_lock(rows: Rows) -> None:
    """Return once somebody waits for a row."""
    for _ in processes.attempts(20):
        if rows.execute("select from pg_locks where not granted").fetchall():
            return
    raise AssertionError("nobody waits")


def at_once(url: str, workers: int, times: int, do: Callable[[Database], Any]) -> list[Any]:
    """What comes of doing something so many times, by so many environments that begin at the same moment."""
    begin = Barrier(workers)

    def work(database: Database) -> list[Any]:
        with database.transaction(""):  # connected
            pass
        begin.wait()
        return [do(database) for _ in range(times // workers)]

    databases = [Database(lambda: url) for _ in range(workers)]
    try:
        with ThreadPoolExecutor(workers) as pool:
            return [outcome for outcomes in pool.map(work, databases) for outcome in outcomes]
    finally:
        for database in databases:
            database.close()


class TestTheBucket:
    """So many at once, then as they come back."""

    @pytest.mark.parametrize("burst", [1, 10])
    def test_200_at_once(self, database_url: str, rows: Rows, burst: int) -> None:
        """Exactly as many as the bucket holds come through, from forty environments."""
        user_id, limits = uuid4().hex, Limits("chat", burst, SLOW)
        refusals = at_once(database_url, 40, 200, lambda database: spend(database, limits, user_id))
        assert refusals.count(None) == burst
        kept = allowance(rows, user_id)
        assert kept
        assert kept["full_at"] - datetime.now(UTC) <= timedelta(minutes=burst)

    @pytest.mark.parametrize("burst", [1, 10])
    def test_200_at_once_of_somebody_known(self, database_url: str, rows: Rows, burst: int) -> None:
        """The same with a row that was there before, full again since long ago."""
        user_id, limits = uuid4().hex, Limits("chat", burst, SLOW)
        database = Database(lambda: database_url)
        assert spend(database, limits, user_id) is None
        database.close()
        let_pass(rows, user_id, timedelta(days=9))
        refusals = at_once(database_url, 40, 200, lambda database: spend(database, limits, user_id))
        assert refusals.count(None) == burst

    def test_who_had_to_wait_is_not_taken_to_be_early(self, database: Database, rows: Rows, server: Postgres) -> None:
        """One of two at the same moment waits for the other's row: its time is that at which it gets it."""
        user_id, limits = uuid4().hex, Limits("chat", 2, SLOW)
        spend(database, limits, user_id)
        with psycopg.connect(server.superuser_url) as other, ThreadPoolExecutor(1) as pool:
            other.execute("select from allowance where user_id = %s for update", [user_id])
            waiting = pool.submit(spend, database, limits, user_id)
            _await_lock(rows)
            first = "update allowance set full_at = clock_timestamp() + interval '1 minute' where user_id = %s"
            other.execute(first, [user_id])
            other.commit()
            assert waiting.result() is None

    @pytest.mark.parametrize(("minutes", "more"), [(0, 0), (0.5, 0), (1, 1), (4.5, 4), (7, 7), (10, 10), (99, 10)])
    def test_it_fills_at_its_rate(self, database: Database, rows: Rows, minutes: float, more: int) -> None:
        """After so many minutes exactly so many more come through, and never more than it holds."""
        user_id, limits = uuid4().hex, Limits("chat", 10, SLOW)
        assert spend_all(database, limits, user_id, 12) == 10
        let_pass(rows, user_id, timedelta(minutes=minutes))
        assert spend_all(database, limits, user_id, 12) == more

    def test_nothing_is_lost_or_won_on_the_way(self, database: Database, rows: Rows) -> None:
        """An hour in steps of 7 seconds at 6 a minute: what came through is what the bucket held and what came back."""
        user_id, limits = uuid4().hex, Limits("chat", 5, 6)
        through, steps, step = 0, 60, timedelta(seconds=7)
        began = datetime.now(UTC)
        for _ in range(steps):
            through += spend_all(database, limits, user_id, 2)
            let_pass(rows, user_id, step)
        through += spend_all(database, limits, user_id, 6)
        real = datetime.now(UTC) - began
        least = 5 + int(steps * step / timedelta(seconds=10))
        assert least <= through <= least + int(real / timedelta(seconds=10)) + 1

    def test_the_time_to_come_back_at(self, database: Database, rows: Rows) -> None:
        """A moment before it one is refused, and after it one is let through."""
        user_id, limits = uuid4().hex, Limits("chat", 3, SLOW)
        spend_all(database, limits, user_id, 3)
        refusal = spend(database, limits, user_id)
        assert refusal
        assert refusal.retry_after
        assert 1 <= refusal.retry_after <= 60
        let_pass(rows, user_id, timedelta(seconds=refusal.retry_after))
        assert spend_all(database, limits, user_id, 2) == 1

    def test_it_is_whole_seconds_and_never_none(self, database: Database) -> None:
        """At ten thousand a minute the next is due in a few milliseconds."""
        user_id, limits = uuid4().hex, Limits("chat", 1, 10**4)
        for _ in range(1_000):
            if refusal := spend(database, limits, user_id):
                break
        assert refusal
        assert refusal.retry_after == 1

    def test_a_refusal_takes_nothing(self, database: Database, rows: Rows) -> None:
        """Who knocks all the time is let in as soon as who waits."""
        user_id, limits = uuid4().hex, Limits("chat", 2, SLOW)
        spend_all(database, limits, user_id, 2)
        before = allowance(rows, user_id)
        assert spend_all(database, limits, user_id, 20) == 0
        assert allowance(rows, user_id) == before

    def test_a_request_that_fails_takes_nothing(self, database: Database, rows: Rows) -> None:
        """What is rolled back was never taken."""
        user_id, limits = uuid4().hex, Limits("chat", 1, SLOW)

        def fail(session: Session) -> None:
            limits.spend(session, user_id)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError), database.transaction(user_id) as session:
            fail(session)
        assert allowance(rows, user_id) is None
        assert spend(database, limits, user_id) is None

    def test_a_clock_that_is_set_back(self, database: Database, rows: Rows) -> None:
        """A bucket from the future is as full as it says, and not a whole day's debt: it fills at its rate."""
        user_id, limits = uuid4().hex, Limits("chat", 2, SLOW)
        spend(database, limits, user_id)
        let_pass(rows, user_id, timedelta(seconds=-30))
        assert spend_all(database, limits, user_id, 3) == 0
        let_pass(rows, user_id, timedelta(seconds=30))
        assert spend_all(database, limits, user_id, 3) == 1


class TestTheDay:
    """So many model tokens, then none until midnight by UTC."""

    def test_a_day_that_is_used_up(self, database: Database) -> None:
        """Refused from the token that reaches it, until midnight."""
        user_id, limits = uuid4().hex, Limits("chat", 0, 0, daily_model_tokens=1_000)
        record(database, limits, user_id, 999)
        assert spend(database, limits, user_id) is None
        record(database, limits, user_id, 1)
        before = _until_midnight()
        refusal = spend(database, limits, user_id)
        assert refusal
        assert refusal.detail == "The day's model tokens are used up."
        assert refusal.retry_after
        assert _until_midnight() <= refusal.retry_after <= before

    def test_the_next_day(self, database: Database, rows: Rows) -> None:
        """Everything is there again, and what is used then is counted from nothing."""
        user_id, limits = uuid4().hex, Limits("chat", 0, 0, daily_model_tokens=1_000)
        record(database, limits, user_id, 5_000)
        yesterday(rows, user_id)
        assert spend(database, limits, user_id) is None
        record(database, limits, user_id, 70)
        assert tokens(rows, user_id) == 70

    def test_a_turn_that_ends_after_midnight(self, database: Database, rows: Rows) -> None:
        """What it used is of the day it ended on."""
        user_id, limits = uuid4().hex, Limits("chat", 0, 0, daily_model_tokens=1_000)
        record(database, limits, user_id, 900)
        yesterday(rows, user_id)
        record(database, limits, user_id, 70)
        assert tokens(rows, user_id) == 70

    @pytest.mark.parametrize("days", [0, 2])
    def test_the_later_of_two_times(self, database: Database, rows: Rows, days: int) -> None:
        """Out of both: nobody is asked back before there is something to be had."""
        user_id, limits = uuid4().hex, Limits("chat", 1, SLOW, daily_model_tokens=1_000)
        spend(database, limits, user_id)
        record(database, limits, user_id, 1_000)
        let_pass(rows, user_id, timedelta(days=-days))
        refusal = spend(database, limits, user_id)
        assert refusal
        assert refusal.retry_after
        assert refusal.retry_after >= max(_until_midnight(), days * DAY_SECONDS)

    def test_no_count_is_lost(self, database_url: str, rows: Rows) -> None:
        """200 turns that end at once, each with its tokens."""
        user_id, limits = uuid4().hex, Limits("chat", 0, 0, daily_model_tokens=10**9)
        at_once(database_url, 40, 200, lambda database: record(database, limits, user_id, 7))
        assert tokens(rows, user_id) == 1_400

    def test_beginning_does_not_undo_ending(self, database_url: str, rows: Rows) -> None:
        """Turns that begin while others end: no token of either kind is lost."""
        user_id, limits = uuid4().hex, Limits("chat", 10, SLOW, daily_model_tokens=10**9)

        def begin_and_end(database: Database) -> bool:
            refused = spend(database, limits, user_id)
            record(database, limits, user_id, 7)
            return refused is None

        through = at_once(database_url, 20, 100, begin_and_end)
        assert (through.count(True), tokens(rows, user_id)) == (10, 700)


def record(database: Database, limits: Limits, user_id: str, model_tokens: int) -> None:
    """A turn that ends, in a transaction of its own."""
    with database.transaction(user_id) as session:
        limits.record(session, user_id, model_tokens)


def tokens(rows: Rows, user_id: str) -> int | None:
    """The model tokens that are kept as used today."""
    kept = allowance(rows, user_id)
    return kept and kept["model_tokens"]


def _until_midnight() -> int:
    now = datetime.now(UTC)
    return DAY_SECONDS - (now.hour * 3600 + now.minute * 60 + now.second)


class TestTwoPeople:
    """One's limits are not another's."""

    def test_a_flood_of_one_leaves_the_other_alone(self, database: Database, rows: Rows) -> None:
        """Neither bucket nor day."""
        alice, bob, limits = uuid4().hex, uuid4().hex, Limits("chat", 2, SLOW, daily_model_tokens=10)
        assert spend_all(database, limits, alice, 5) == 2
        record(database, limits, alice, 99)
        assert spend_all(database, limits, bob, 5) == 2
        assert tokens(rows, bob) == 0

    def test_nobody_takes_from_another_s(self, database: Database, rows: Rows) -> None:
        """The database itself refuses a row that is not the transaction's person's."""
        alice, limits = uuid4().hex, Limits("chat", 2, SLOW)
        with pytest.raises(Exception, match="row-level security"), database.transaction("bob") as session:
            limits.spend(session, alice)
        assert allowance(rows, alice) is None

    def test_doors_have_buckets_of_their_own(self, database: Database) -> None:
        """A client that calls in bursts does not keep its person from talking."""
        user_id = uuid4().hex
        assert spend_all(database, Limits("mcp", 2, SLOW), user_id, 5) == 2
        assert spend_all(database, Limits("chat", 3, SLOW), user_id, 5) == 3


class TestSwitchedOff:
    """0 is no limit, and what an earlier one left behind is forgotten."""

    @pytest.mark.parametrize(("burst", "per_minute"), [(0, 0), (0, SLOW), (1, 0)])
    def test_no_bucket(self, database: Database, rows: Rows, burst: int, per_minute: int) -> None:
        """Also for a person whose bucket was empty for the next hour when it was switched off."""
        user_id = uuid4().hex
        assert spend_all(database, Limits("chat", 60, SLOW, 10), user_id, 61) == 60
        limits = Limits("chat", burst, per_minute, 10)
        assert spend_all(database, limits, user_id, 30) == 30
        record(database, limits, user_id, 10)
        assert spend(database, limits, user_id)

    def test_no_quota(self, database: Database, rows: Rows) -> None:
        """The bucket stays; tokens are not counted."""
        user_id, limits = uuid4().hex, Limits("chat", 2, SLOW)
        record(database, limits, user_id, 10**9)
        assert spend_all(database, limits, user_id, 3) == 2
        assert tokens(rows, user_id) == 0

    def test_nothing(self, database: Database, rows: Rows) -> None:
        """Not a row."""
        user_id, limits = uuid4().hex, Limits("chat", 0, 0)
        assert spend_all(database, limits, user_id, 30) == 30
        record(database, limits, user_id, 10**9)
        assert allowance(rows, user_id) is None


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch, environment: None) -> Callable[..., None]:
    """Set limits by the names of their settings, in an environment that begins anew; all others are off."""

    def limit(**limits: int) -> None:
        for name in ("turn_burst", "turns_per_minute", "daily_model_tokens", "mcp_burst", "mcp_requests_per_minute"):
            monkeypatch.setenv(name.upper(), str(limits.get(name, 0)))
        reset_processes()

    return limit


def snapshot(rows: Rows) -> dict[str, list[Any]]:
    """All that the tables hold."""
    tables = SQLModel.metadata.tables
    return {table: rows.execute(f"table {table} order by 1, 2, 3".encode()).fetchall() for table in tables}


def check_refused(answer: Response, most: int) -> None:
    """A problem in the contract's words, with a time to come back in whole seconds."""
    assert (answer.status, answer.headers["content-type"]) == (429, "application/problem+json")
    assert answer.json["type"] == "urn:taskchat:problem:too-many-requests"
    assert 1 <= int(answer.headers["retry-after"]) <= most


class TestTheChat:
    """A turn that is going to run is taken from what its person has left; nothing else is."""

    def test_more_than_the_bucket_holds(
        self, limited: Callable[..., None], alice: Person, bob: Person, rows: Rows, logs: Logs
    ) -> None:
        """429 with a time, not a row of anything, a line for the operator, and nothing to anybody else."""
        limited(turn_burst=2, turns_per_minute=SLOW, daily_model_tokens=10**9)
        assert [alice.say(ADD_MILK).status for _ in range(2)] == [200, 200]
        before = snapshot(rows)
        check_refused(alice.say(CALL_MUM, key="k"), most=60)
        assert snapshot(rows) == before
        assert [(line["actor"], line["door"]) for line in logs() if line["message"] == "limit reached"] == [
            (alice.id, "chat")
        ]
        assert bob.say(ADD_MILK).status == 200
        let_pass(rows, alice.id, timedelta(minutes=1))
        again = alice.say(CALL_MUM, key="k")
        assert (again.status, again.headers.get("idempotent-replayed")) == (200, None)

    def test_a_refusal_holds_no_conversation(self, limited: Callable[..., None], alice: Person, rows: Rows) -> None:
        """The lease of the conversation that was refused is nobody's: the next is taken at once."""
        limited(turn_burst=1, turns_per_minute=SLOW)
        conversation_id = alice.say(ADD_MILK).json["conversation_id"]
        check_refused(alice.say(CALL_MUM, conversation_id), most=60)
        assert truth.lease(rows, alice.id, conversation_id) is None
        let_pass(rows, alice.id, timedelta(minutes=1))
        assert alice.say(CALL_MUM, conversation_id).status == 200

    def test_what_is_replayed_is_free(self, limited: Callable[..., None], alice: Person, rows: Rows) -> None:
        """With an empty bucket and a day that is used up, a finished turn is answered all the same."""
        limited(turn_burst=1, turns_per_minute=SLOW, daily_model_tokens=1)
        first = alice.say("hello", key="k")
        before = allowance(rows, alice.id)
        again = [alice.say("hello", key="k") for _ in range(3)]
        assert {(answer.status, answer.body) for answer in again} == {(200, first.body)}
        assert allowance(rows, alice.id) == before

    def test_what_does_not_run_is_free(self, limited: Callable[..., None], alice: Person, rows: Rows) -> None:
        """A conversation that is busy or not there, a key that was used, a message that is none."""
        limited(turn_burst=2, turns_per_minute=SLOW, daily_model_tokens=10**9)
        conversation_id = alice.say(ADD_MILK, key="k").json["conversation_id"]
        before = allowance(rows, alice.id)
        hold = "update conversation set lease_until = clock_timestamp() + %s where user_id = %s"
        rows.execute(hold, [timedelta(minutes=1), alice.id])
        statuses = [
            alice.say(CALL_MUM, conversation_id).status,
            alice.say(CALL_MUM, str(uuid4())).status,
            alice.say(CALL_MUM, key="k").status,
            alice.say("").status,
        ]
        assert statuses == [409, 404, 422, 422]
        assert allowance(rows, alice.id) == before

    def test_a_turn_that_is_taken_up_again_is_not_free(
        self, limited: Callable[..., None], alice: Person, rows: Rows, standin: StandIn
    ) -> None:
        """It asks the model again. Refused, it stays as it was, and can be taken up later."""
        limited(turn_burst=1, turns_per_minute=SLOW)
        standin.fault("server_error", match=ADD_MILK, times=None, after_calls=1)
        assert alice.say(ADD_MILK, key="k").status == 502
        standin.reset()
        before = snapshot(rows)
        check_refused(alice.say(ADD_MILK, key="k"), most=60)
        assert snapshot(rows) == before
        let_pass(rows, alice.id, timedelta(minutes=1))
        answer = alice.say(ADD_MILK, key="k")
        truth.check_turn(rows, alice.id, ADD_MILK, answer)
        assert [call["tool"] for call in answer.json["tool_calls"]] == ADD_MILK.tools

    def test_a_day_that_is_used_up(self, limited: Callable[..., None], alice: Person, rows: Rows) -> None:
        """The turn whose last answer reaches the quota is done; the next waits for midnight, and then is done too."""
        limited(daily_model_tokens=1)
        assert alice.say("hello").status == 200
        refusal = alice.say(CALL_MUM)
        check_refused(refusal, most=DAY_SECONDS)
        assert refusal.json["detail"] == "The day's model tokens are used up."
        yesterday(rows, alice.id)
        assert alice.say("hello").status == 200

    def test_a_turn_that_uses_the_day_up(
        self, limited: Callable[..., None], alice: Person, rows: Rows, standin: StandIn
    ) -> None:
        """The model is asked no more: 429 with what was done, and after midnight the turn goes on from there."""
        limited(daily_model_tokens=1)
        answer = alice.say(ADD_MILK, key="k")
        check_refused(answer, most=DAY_SECONDS)
        (made,) = answer.json["tool_calls"]
        assert (made["tool"], made["outcome"]) == (example.add_tool, "ok")
        assert len(standin.requests()) == 1
        assert tokens(rows, alice.id) == told(standin)
        yesterday(rows, alice.id)
        limited(daily_model_tokens=10**6)
        again = alice.say(ADD_MILK, key="k").json
        assert (again["turn_id"], again["tool_calls"]) == (answer.json["turn_id"], [made])
        assert example.rows_of(rows, alice.id) == [example.row("milk")]

    def test_no_turn_outruns_the_day_by_more_than_a_call(
        self, limited: Callable[..., None], alice: Person, rows: Rows, standin: StandIn
    ) -> None:
        """A model that reads the list as often as it may, with little left."""
        example.put(rows, alice.id, *["x" * 300] * 50)
        quota = 60_000
        limited(daily_model_tokens=quota)
        for made in range(12):
            calls = [example.call_list()] * 4
            standin.fault("call", calls=calls, match="hello", after_calls=4 * made)
        check_refused(alice.say("hello"), most=DAY_SECONDS)
        costs = [request["tokens"] for request in standin.requests()]
        assert sum(costs[:-1]) < quota <= sum(costs)
        assert tokens(rows, alice.id) == sum(costs)

    def test_no_turn_costs_more_than_any_needs(
        self, limited: Callable[..., None], alice: Person, standin: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever is left of the day, and also without a quota: 502 with what was done."""
        monkeypatch.setattr("chat.agent.MAX_TURN_TOKENS", 2_500)
        limited()
        standin.fault("endless_tool_calls", match="hello")
        answer = alice.say("hello")
        assert (answer.status, answer.json["detail"]) == (502, "The model did not come to an end.")
        costs = [request["tokens"] for request in standin.requests()]
        assert 1 < len(costs) == len(answer.json["tool_calls"]) < 12
        assert sum(costs[:-1]) < 2_500 <= sum(costs)

    def test_a_turn_that_lasts_over_midnight(self) -> None:
        """What it uses from then on is of a new day, of which all is left."""
        now = time.monotonic()
        DayLeft(10, ends_at=now - 1).check(10)
        DayLeft(10, ends_at=now + 90).check(9)
        with pytest.raises(TooManyRequests) as refusal:
            DayLeft(10, ends_at=now + 90).check(10)
        assert refusal.value.retry_after == 90

    def test_switched_off(self, limited: Callable[..., None], alice: Person, rows: Rows) -> None:
        """Nobody is refused, and nothing is kept of it."""
        limited()
        assert {alice.say("hello").status for _ in range(5)} == {200}
        assert allowance(rows, alice.id) is None

    def test_200_at_once_through_eight_processes(
        self, warm_fork_server: ForkServer, database_url: str, standin: StandIn, issuer: Issuer, rows: Rows
    ) -> None:
        """Exactly ten turns of one person are done, each whole; all others are refused, and nothing dies of a lock."""
        limits = {"TURN_BURST": "10", "TURNS_PER_MINUTE": str(SLOW), "DAILY_MODEL_TOKENS": str(10**9)}
        fleet = Fleet(warm_fork_server, variables(database_url, standin, issuer) | limits)
        client, environments = Caller.new(issuer), [fleet.start() for _ in range(8)]

        def ask(environment: Environment) -> list[Response]:
            return [environment.ask(client.request({"message": ADD_MILK})).answer for _ in range(25)]

        with ThreadPoolExecutor(8) as pool:
            answers = [answer for answers in pool.map(ask, environments) for answer in answers]
        fleet.stop()
        assert Counter(answer.status for answer in answers) == {200: 10, 429: 190}
        for answer in answers:
            if answer.status == 200:
                truth.check_turn(rows, client.id, ADD_MILK, answer)
            else:
                check_refused(answer, most=60)
        assert example.rows_of(rows, client.id) == [example.row("milk")] * 10
        assert tokens(rows, client.id) == sum(request["tokens"] for request in standin.requests())


def told(standin: StandIn) -> int:
    """The tokens that the model has told of, in all its answers."""
    return sum(request["tokens"] or 0 for request in standin.requests())


def usage_of(rows: Rows, person: Person) -> dict[str, Any]:
    """What is stored with the person's only reply."""
    (row,) = rows.execute("select usage from message where user_id = %s and role = 'assistant'", [person.id]).fetchall()
    usage: dict[str, Any] = row["usage"]
    return usage


def accounts(logs: Logs, person: Person) -> list[tuple[str, int]]:
    """The lines that tell what attempts at turns cost: how each ended, and its tokens."""
    lines = [line for line in logs() if line.get("schema") == "taskchat.usage/1" and line["actor"] == person.id]
    return [(line["message"], line["input_tokens"] + line["output_tokens"]) for line in lines]


@pytest.mark.parametrize("database_url", ["pooled"], indirect=True)
@pytest.mark.parametrize("model_api", ["responses", "chat_completions"], indirect=True)
class TestWhatATurnCosts:
    """Each answer of a model is counted once: in the day, and in a line for the operator."""

    def test_a_turn(self, alice: Person, rows: Rows, standin: StandIn, logs: Logs) -> None:
        """Stored with its reply, logged, and counted: as many tokens as the model told of."""
        alice.say(example.add("milk", "call mum").then(example.change("milk")))
        usage = usage_of(rows, alice)
        assert told(standin) > 0
        assert tokens(rows, alice.id) == usage["input_tokens"] + usage["output_tokens"] == told(standin)
        assert (usage["model"], usage["requests"]) == ("stand-in", len(standin.requests()))
        assert usage["cached_tokens"] < usage["input_tokens"]
        assert accounts(logs, alice) == [("turn finished", told(standin))]

    @pytest.mark.parametrize(
        "fault",
        [
            "server_error",
            "quota",
            "length",
            "content_filter",
            "empty_text",
            "refusal",
            "endless_tool_calls",
        ],
    )
    def test_a_turn_that_goes_wrong(self, alice: Person, rows: Rows, standin: StandIn, logs: Logs, fault: str) -> None:
        """What was answered before is counted, and so is an answer that is of no use: it was paid for."""
        standin.fault(fault, match=ADD_MILK, times=None, after_calls=1)
        alice.say(ADD_MILK)
        assert told(standin) > 0
        assert tokens(rows, alice.id) == told(standin)
        assert [tokens for _, tokens in accounts(logs, alice)] == [told(standin)]

    @pytest.mark.parametrize(
        ("fault", "tries"),
        [("hang", 1), ("disconnect", 3), ("disconnect_midway", 3), ("malformed_body", 3), ("wrong_schema", 1)],
    )
    def test_a_call_that_nobody_told_the_price_of(
        self, alice: Person, rows: Rows, standin: StandIn, logs: Logs, fault: str, tries: int
    ) -> None:
        """Given up, lost, or not to be read: each try is taken to cost what the model had to read for it, or about."""
        standin.fault(fault, match=ADD_MILK, times=None, after_calls=1)
        assert alice.say(ADD_MILK, seconds=3).status in (502, 504)
        (read, *given_up) = standin.requests()
        assert len(given_up) == tries
        (line,) = [line for line in logs() if line["message"] == "turn interrupted"]
        assert line["input_tokens"] + line["output_tokens"] == read["tokens"]
        assert tries * read["tokens"] < line["estimated_tokens"] < 2 * tries * read["tokens"]
        assert tokens(rows, alice.id) == read["tokens"] + line["estimated_tokens"]

    def test_a_call_that_was_not_sent(
        self, alice: Person, rows: Rows, standin: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody listens: it costs nothing."""
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
        reset_processes()
        assert alice.say(ADD_MILK).status == 502
        assert tokens(rows, alice.id) == 0

    def test_a_database_that_fails_in_a_tool(self, alice: Person, rows: Rows, standin: StandIn) -> None:
        """The model had called the tool by then."""
        rows.execute(
            "create or replace function refuse() returns trigger language plpgsql as $$"
            " begin raise exception using errcode = '57014'; end $$"
        )
        rows.execute(f"create trigger refuse before insert on {example.table} for each row execute function refuse()")
        try:
            assert alice.say(ADD_MILK).status == 503
        finally:
            rows.execute("drop function refuse cascade")
        assert told(standin) > 0
        assert tokens(rows, alice.id) == told(standin)

    def test_a_turn_in_two_attempts(self, alice: Person, rows: Rows, standin: StandIn, logs: Logs) -> None:
        """The day has both; the reply has what the attempt that gave it cost, and each attempt its own line."""
        standin.fault("server_error", match=ADD_MILK, times=None, after_calls=1)
        assert alice.say(ADD_MILK, key="k").status == 502
        first = told(standin)
        standin.reset()
        assert alice.say(ADD_MILK, key="k").status == 200
        second, usage = told(standin), usage_of(rows, alice)
        assert usage["input_tokens"] + usage["output_tokens"] == second
        assert tokens(rows, alice.id) == first + second
        assert accounts(logs, alice) == [("turn interrupted", first), ("turn finished", second)]

    def test_the_fallback_is_named(
        self, alice: Person, bob: Person, rows: Rows, standin: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The model that answered, which is the one to be paid."""
        monkeypatch.setenv("MODEL_FALLBACK", "second-choice")
        reset_processes()
        standin.fault("server_error", match="hello", times=3)
        assert alice.say("hello").status == 200
        assert usage_of(rows, alice)["model"] == "second-choice"
        assert bob.say("hello").status == 200
        assert usage_of(rows, bob)["model"] == "stand-in"

    def test_a_commit_whose_answer_is_lost(
        self, alice: Person, rows: Rows, standin: StandIn, server: Postgres, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The turn is done and counted. It is looked up, and not counted again."""
        commits = count(1)
        with proxy.running(server.app_url) as wire:
            monkeypatch.setenv("DATABASE_URL", wire.url(server.app_url))
            reset_processes()

            def lose_the_second(_connection: Any) -> None:
                if next(commits) == 2:
                    wire.lose_answer_to = b"commit"

            from chat.app import process

            sqlalchemy.event.listen(process.database.engine, "commit", lose_the_second)
            assert alice.say("hello").status == 200
            reset_processes()
        assert (wire.lost, usage_of(rows, alice)["requests"]) == (1, 1)
        assert tokens(rows, alice.id) == told(standin)


def end_turn(database: Database, person: str, limits: Limits, end: Callable[[Session], None]) -> None:
    """Count 70 tokens and end a turn, in one transaction."""
    with database.transaction(person) as session:
        limits.record(session, person, 70)
        end(session)


class TestALostLease:
    """A turn that has lost its lease stores no reply. The tokens that it used count once."""

    @pytest.mark.parametrize("is_known", [False, True], ids=["new statements", "known statements"])
    def test_it_stores_nothing_and_its_tokens_count_once(
        self, database: Database, rows: Rows, *, is_known: bool
    ) -> None:
        """Its reply and the commit go out together; then the turn runner tries to give the lease back."""
        limits, person = Limits("chat", 0, 0, 10_000), uuid4().hex
        if is_known:
            database.get_ready([*STATEMENTS, *conversations.STATEMENTS])
        with database.transaction(person) as session:
            begun = conversations.begin(session, person, uuid4(), conversations.Request("Add milk"), 1000)
        assert isinstance(begun, conversations.Begun)
        taken = "update conversation set fence = fence + 1 where user_id = %s returning *"
        theirs = rows.execute(taken, [person]).fetchone()
        for end in (lambda session: conversations.finish(session, begun, "Late.", {}), begun.lease.release):
            with pytest.raises(LeaseLost):
                end_turn(database, person, limits, end)
        assert rows.execute("select * from conversation where user_id = %s", [person]).fetchall() == [theirs]
        stored = rows.execute("select role from message where user_id = %s", [person]).fetchall()
        assert stored == [{"role": "user"}]
        assert (allowance(rows, person) or {})["model_tokens"] == 70


class TestAProvider:
    """What it tells of an answer is taken as it comes, and nobody has checked it."""

    @pytest.mark.parametrize("told", [None, {}, [], {"input_tokens": "7", "output_tokens": -1}])
    def test_that_tells_nothing(self, told: Any) -> None:
        """One request, which is taken to cost as much as it is long."""
        usage = Usage()
        usage.add({"model": "m", "input": "x" * 4_000}, told)
        assert (usage.model, usage.requests, usage.tokens) == ("m", 1, usage.estimated_tokens)
        assert 1_000 <= usage.tokens <= 1_010

    def test_that_tells_nonsense(self) -> None:
        """A number that no answer costs would shut its person out for ever."""
        usage = Usage()
        usage.add({"model": "m"}, {"input_tokens": 10**30, "output_tokens": 7})
        assert usage.tokens < 20

    @pytest.mark.parametrize("number", [None, True, -1, 0, 1.5, "7", [7], {"n": 7}, 2**31 - 1, 10**30])
    def test_a_number_that_makes_no_sense_is_estimated(self, number: Any) -> None:
        """Input by the length of the request, output by what the model wrote."""
        usage = Usage()
        told = {"input_tokens": number, "output_tokens": number, "input_tokens_details": {"cached_tokens": 5}}
        usage.add({"model": "m", "input": "x" * 4_000}, told, [{"type": "message", "content": [{"text": "y" * 400}]}])
        assert (usage.input_tokens, usage.output_tokens, usage.cached_tokens) == (0, 0, 0)
        assert 1_100 <= usage.estimated_tokens <= 1_110

    def test_an_estimate_of_an_answer_has_the_bound_that_was_asked_for(self) -> None:
        """No length makes an answer dearer than the longest that a model may give."""
        usage = Usage()
        usage.add({"model": "m"}, None, [{"text": "y" * 900_000}])
        assert MAX_OUTPUT_TOKENS <= usage.tokens <= MAX_OUTPUT_TOKENS + 10

    @pytest.mark.parametrize("letter", ["x", "漢", "🥛", "ก"])
    def test_a_token_for_each_byte_makes_sense(self, letter: str) -> None:
        """No tokenizer makes more of a text, in whichever script it is."""
        usage, text = Usage(), letter * 5_000
        usage.add({"model": "m", "input": text}, {"prompt_tokens": len(text.encode()), "completion_tokens": 8_000})
        assert (usage.input_tokens, usage.output_tokens) == (len(text.encode()), 8_000)
        assert usage.estimated_tokens == 0

    @pytest.mark.parametrize(("cached", "counted"), [(0, 0), (900, 900), (901, 0), (-1, 0), ("9", 0), (True, 0)])
    def test_no_more_is_cached_than_was_read(self, cached: Any, counted: int) -> None:
        """By either API's names."""
        for names in (("input_tokens", "input_tokens_details"), ("prompt_tokens", "prompt_tokens_details")):
            usage = Usage()
            usage.add({"model": "m"}, dict(zip(names, (900, {"cached_tokens": cached}), strict=True)))
            assert (usage.input_tokens, usage.cached_tokens) == (900, counted)


@pytest.fixture
def door(limited: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Handler]:
    """The MCP door as it starts with given limits."""

    def start(**limits: int) -> Handler:
        from mcp_tools.app import process

        limited(**limits)
        handler: Handler = Mangum(process.app, lifespan="auto")
        return handler

    return start


def tool_call(token: str) -> tuple[dict[str, str], bytes]:
    """Headers and body with which a client calls a tool."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": STATELESS,
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = example.call_add("milk") | {"_meta": meta}
    headers = {
        "accept": "application/json, text/event-stream",
        "authorization": f"Bearer {token}",
        "content-type": "application/json",
        "mcp-protocol-version": STATELESS,
        "mcp-method": "tools/call",
        "mcp-name": example.add_tool,
    }
    return headers, json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()


def call_tool(person: Person, handler: Handler, method: str = "POST", token: str | None = None) -> Response:
    """Call a tool as a client of the person."""
    headers, body = tool_call(token or person.mcp_token)
    return invoke(handler, event(method, "/mcp", headers=headers, body=body))


def _post(url: str, person: Person) -> int:
    """The same over real HTTP: the status."""
    headers, body = tool_call(person.mcp_token)
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    try:
        connection.request("POST", "/mcp", body, headers | {"host": urlsplit(RESOURCE).netloc})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


@pytest.mark.parametrize("database_url", ["pooled"], indirect=True)
class TestTheMcpDoor:
    """Each request of a person's clients, before anything is done for it."""

    def test_more_than_the_bucket_holds(
        self, door: Callable[..., Handler], alice: Person, bob: Person, rows: Rows
    ) -> None:
        """429 with a time, no call is made, nothing to anybody else, and it fills again."""
        handler = door(mcp_burst=3, mcp_requests_per_minute=SLOW)
        assert [call_tool(alice, handler).status for _ in range(3)] == [200] * 3
        before = snapshot(rows)
        check_refused(call_tool(alice, handler), most=60)
        assert snapshot(rows) == before
        assert call_tool(bob, handler).status == 200
        let_pass(rows, alice.id, timedelta(minutes=1))
        assert [call_tool(alice, handler).status for _ in range(2)] == [200, 429]
        assert example.rows_of(rows, alice.id) == [example.row("milk")] * 4
        assert allowance(rows, alice.id, "chat") is None

    def test_40_at_once_over_http(self, door: Callable[..., Handler], alice: Person, rows: Rows) -> None:
        """Exactly as many as the bucket holds come through, and each of them was done."""
        from mcp_tools.app import process

        door(mcp_burst=7, mcp_requests_per_minute=SLOW)
        with serving(process.app) as url, ThreadPoolExecutor(20) as pool:
            statuses = Counter(pool.map(lambda _: _post(url, alice), range(40)))
        assert statuses == {200: 7, 429: 33}
        assert example.rows_of(rows, alice.id) == [example.row("milk")] * 7

    def test_only_who_is_known_is_charged(self, door: Callable[..., Handler], alice: Person, rows: Rows) -> None:
        """Not a request without a token that holds, nor one that asks for nothing."""
        handler = door(mcp_burst=1, mcp_requests_per_minute=SLOW)
        assert call_tool(alice, handler, token=alice.token).status == 401
        assert call_tool(alice, handler, "GET").status == 405
        metadata = event("GET", "/.well-known/oauth-protected-resource")
        assert invoke(handler, metadata).status == 200
        assert allowance(rows, alice.id, "mcp") is None
        assert [call_tool(alice, handler).status for _ in range(2)] == [200, 429]

    def test_no_database(self, door: Callable[..., Handler], alice: Person, monkeypatch: pytest.MonkeyPatch) -> None:
        """503 with a time to come back: who cannot be counted is not served."""
        monkeypatch.setenv("DATABASE_URL", "postgresql://u:p@127.0.0.1:1/d?sslmode=disable")
        answer = call_tool(alice, door(mcp_burst=1, mcp_requests_per_minute=SLOW))
        assert (answer.status, answer.headers["content-type"]) == (503, "application/problem+json")
        assert answer.json["type"] == "urn:taskchat:problem:database-unavailable"
        assert int(answer.headers["retry-after"]) >= 1

    def test_switched_off(self, door: Callable[..., Handler], alice: Person, rows: Rows) -> None:
        """Nobody is refused, and nothing is kept of it."""
        handler = door(turn_burst=1, turns_per_minute=SLOW)
        assert {call_tool(alice, handler).status for _ in range(5)} == {200}
        assert allowance(rows, alice.id, "mcp") is None


@pytest.mark.parametrize("role", ["owner", "console"])
def test_a_person_s_day_can_be_given_back(database: Database, server: Postgres, console_url: str, role: str) -> None:
    """The statements of docs/limits.md, as a role that the policies bind and as one that they do not.

    The person who is named goes on, and nobody else's row is another than it was.
    """
    (statements,) = re.findall(r"```sql\n(.*?)```", (ROOT / "docs/limits.md").read_text(), re.DOTALL)
    named, other = (_used_up(database) for _ in range(2))
    url = server.owner_url if role == "owner" else console_url
    with psycopg.connect(url, autocommit=True) as operator:
        operator.execute(statements.replace("a user''s id", named).encode())
    limits = Limits("chat", 1, SLOW, daily_model_tokens=10)
    assert spend(database, limits, named) is None
    assert spend(database, limits, other)


def _used_up(database: Database) -> str:
    """A person who has nothing left of the day."""
    user_id, limits = uuid4().hex, Limits("chat", 1, SLOW, daily_model_tokens=10)
    assert spend(database, limits, user_id) is None
    record(database, limits, user_id, 10)
    assert spend(database, limits, user_id)
    return user_id
