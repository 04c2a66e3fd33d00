"""Each user has a rate limit and a daily quota of model tokens.

Promises: the limits are exact, however many requests come at once; one user's use does not touch another's; a refused
or replayed request costs nothing; and each answer of a model counts once.
"""

import http.client
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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

from chat.agent import Run
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
from tests import db_assertions, proxy
from tests.conftest import ROOT, Logs, Person, reset_processes, serving, variables
from tests.domain import example
from tests.environments import Environment, Fleet, ForkServer

Rows = psycopg.Connection[dict[str, Any]]

SLOW = 1
"""Requests in a minute: so few that no test lasts until the next one is free."""
DAY_SECONDS = 86_400
ADD_MILK, CALL_MUM = example.add("milk"), example.add("call mum")
LIMITS = (
    *("turn_burst", "turns_per_minute", "daily_model_tokens", "mcp_burst", "mcp_requests_per_minute"),
    *("data_burst", "data_requests_per_minute"),
)
STATELESS = "2026-07-28"
"""The protocol version whose clients need no handshake."""


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Give a database, as one execution environment has it."""
    database = Database(lambda: database_url)
    yield database
    database.close()


def allowance(rows: Rows, user_id: str, door: str = "chat") -> dict[str, Any] | None:
    """Return the stored use of a user at an entry point."""
    found = rows.execute("select * from allowance where user_id = %s and door = %s", [user_id, door])
    return found.fetchone()


def let_pass(rows: Rows, user_id: str, passed: timedelta) -> None:
    """Make the user's stored use older, as if the user had waited."""
    rows.execute("update allowance set full_at = full_at - %s where user_id = %s", [passed, user_id])


def yesterday(rows: Rows, user_id: str) -> None:
    """Move the user's stored use to the day before."""
    rows.execute("update allowance set day = day - 1 where user_id = %s", [user_id])


def spend(database: Database, limits: Limits, user_id: str) -> TooManyRequests | None:
    """Take one request in its own transaction. Return the refusal, if it was refused."""
    try:
        with database.transaction(user_id) as session:
            limits.spend(session, user_id)
    except TooManyRequests as refusal:
        return refusal
    return None


def spend_all(database: Database, limits: Limits, user_id: str, times: int) -> int:
    """Take requests in sequence and return how many were accepted."""
    return [spend(database, limits, user_id) for _ in range(times)].count(None)


def _await_lock(rows: Rows) -> None:
    """Return when a transaction waits for a row."""
    for _ in processes.attempts(20):
        if rows.execute("select from pg_locks where not granted").fetchall():
            return
    raise AssertionError("no transaction waits")


def at_once(url: str, workers: int, times: int, do: Callable[[Database], Any]) -> list[Any]:
    """Call a function in many environments that begin at the same moment, and return its results."""
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


class TestRateLimit:
    """A user has a burst of requests, which come back at a fixed rate."""

    @pytest.mark.parametrize("burst", [1, 10])
    def test_200_requests_at_once_get_the_burst(self, database_url: str, rows: Rows, burst: int) -> None:
        """Forty environments accept exactly the burst together."""
        user_id, limits = uuid4().hex, Limits("chat", burst, SLOW)
        refusals = at_once(database_url, 40, 200, lambda database: spend(database, limits, user_id))
        assert refusals.count(None) == burst
        kept = allowance(rows, user_id)
        assert kept
        assert kept["full_at"] - datetime.now(UTC) <= timedelta(minutes=burst)

    @pytest.mark.parametrize("burst", [1, 10])
    def test_200_requests_at_once_of_a_known_user_get_the_burst(
        self, database_url: str, rows: Rows, burst: int
    ) -> None:
        """The user's row is old, and the burst is full again."""
        user_id, limits = uuid4().hex, Limits("chat", burst, SLOW)
        database = Database(lambda: database_url)
        assert spend(database, limits, user_id) is None
        database.close()
        let_pass(rows, user_id, timedelta(days=9))
        refusals = at_once(database_url, 40, 200, lambda database: spend(database, limits, user_id))
        assert refusals.count(None) == burst

    def test_a_request_that_waited_for_the_row_counts_from_then(
        self, database: Database, rows: Rows, server: Postgres
    ) -> None:
        """One of two requests waits for the other's lock. Its time is the moment when it gets the lock."""
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
    def test_requests_come_back_at_the_rate(self, database: Database, rows: Rows, minutes: float, more: int) -> None:
        """After some minutes exactly as many more are accepted, and never more than the burst."""
        user_id, limits = uuid4().hex, Limits("chat", 10, SLOW)
        assert spend_all(database, limits, user_id, 12) == 10
        let_pass(rows, user_id, timedelta(minutes=minutes))
        assert spend_all(database, limits, user_id, 12) == more

    def test_an_hour_of_requests_gets_the_exact_number(self, database: Database, rows: Rows) -> None:
        """In steps of 7 seconds at 6 a minute, the burst and the requests that came back are accepted."""
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

    def test_retry_after_is_when_the_next_request_is_free(self, database: Database, rows: Rows) -> None:
        """After that time one request is accepted."""
        user_id, limits = uuid4().hex, Limits("chat", 3, SLOW)
        spend_all(database, limits, user_id, 3)
        refusal = spend(database, limits, user_id)
        assert refusal
        assert refusal.retry_after
        assert 1 <= refusal.retry_after <= 60
        let_pass(rows, user_id, timedelta(seconds=refusal.retry_after))
        assert spend_all(database, limits, user_id, 2) == 1

    def test_retry_after_is_at_least_one_second(self, database: Database) -> None:
        """At ten thousand requests a minute, the next is free in a few milliseconds."""
        user_id, limits = uuid4().hex, Limits("chat", 1, 10**4)
        for _ in range(1_000):
            if refusal := spend(database, limits, user_id):
                break
        assert refusal
        assert refusal.retry_after == 1

    def test_a_refused_request_costs_nothing(self, database: Database, rows: Rows) -> None:
        """A client that retries all the time does not wait longer."""
        user_id, limits = uuid4().hex, Limits("chat", 2, SLOW)
        spend_all(database, limits, user_id, 2)
        before = allowance(rows, user_id)
        assert spend_all(database, limits, user_id, 20) == 0
        assert allowance(rows, user_id) == before

    def test_a_failed_request_costs_nothing(self, database: Database, rows: Rows) -> None:
        """Its transaction is rolled back."""
        user_id, limits = uuid4().hex, Limits("chat", 1, SLOW)

        def fail(session: Session) -> None:
            limits.spend(session, user_id)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError), database.transaction(user_id) as session:
            fail(session)
        assert allowance(rows, user_id) is None
        assert spend(database, limits, user_id) is None

    def test_a_clock_that_is_set_back_delays_requests_by_as_much(self, database: Database, rows: Rows) -> None:
        """The stored time is in the future then. Requests come back at the rate, and no later."""
        user_id, limits = uuid4().hex, Limits("chat", 2, SLOW)
        spend(database, limits, user_id)
        let_pass(rows, user_id, timedelta(seconds=-30))
        assert spend_all(database, limits, user_id, 3) == 0
        let_pass(rows, user_id, timedelta(seconds=30))
        assert spend_all(database, limits, user_id, 3) == 1


class TestDailyQuota:
    """A user has a number of model tokens for each day in UTC."""

    def test_a_used_up_quota_refuses_until_midnight(self, database: Database) -> None:
        """The token that reaches the quota is the last one."""
        user_id, limits = uuid4().hex, Limits("chat", 0, 0, daily_model_tokens=1_000)
        spend(database, limits, user_id)
        record(database, limits, user_id, 999)
        assert spend(database, limits, user_id) is None
        record(database, limits, user_id, 1)
        before = _until_midnight()
        refusal = spend(database, limits, user_id)
        assert refusal
        assert refusal.detail == "The day's model tokens are used up."
        assert refusal.retry_after
        assert _until_midnight() <= refusal.retry_after <= before

    def test_the_next_day_has_the_whole_quota(self, database: Database, rows: Rows) -> None:
        """Its tokens are counted from zero."""
        user_id, limits = uuid4().hex, Limits("chat", 0, 0, daily_model_tokens=1_000)
        spend(database, limits, user_id)
        record(database, limits, user_id, 5_000)
        yesterday(rows, user_id)
        assert spend(database, limits, user_id) is None
        record(database, limits, user_id, 70)
        assert tokens(rows, user_id) == 70

    def test_a_turn_counts_on_the_day_it_ends(self, database: Database, rows: Rows) -> None:
        """The tokens of the day before are gone."""
        user_id, limits = uuid4().hex, Limits("chat", 0, 0, daily_model_tokens=1_000)
        spend(database, limits, user_id)
        record(database, limits, user_id, 900)
        yesterday(rows, user_id)
        record(database, limits, user_id, 70)
        assert tokens(rows, user_id) == 70

    def test_a_turn_counts_in_no_row_of_a_user_who_was_erased(self, database: Database, rows: Rows) -> None:
        """Its row went while it ran."""
        user_id, limits = uuid4().hex, Limits("chat", 0, 0, daily_model_tokens=1_000)
        spend(database, limits, user_id)
        rows.execute("delete from allowance where user_id = %s", [user_id])
        record(database, limits, user_id, 70)
        assert allowance(rows, user_id) is None

    @pytest.mark.parametrize("days", [0, 2])
    def test_retry_after_is_the_later_of_two_times(self, database: Database, rows: Rows, days: int) -> None:
        """The rate limit and the quota are both used up."""
        user_id, limits = uuid4().hex, Limits("chat", 1, SLOW, daily_model_tokens=1_000)
        spend(database, limits, user_id)
        record(database, limits, user_id, 1_000)
        let_pass(rows, user_id, timedelta(days=-days))
        refusal = spend(database, limits, user_id)
        assert refusal
        assert refusal.retry_after
        assert refusal.retry_after >= max(_until_midnight(), days * DAY_SECONDS)

    def test_no_count_is_lost(self, database_url: str, database: Database, rows: Rows) -> None:
        """200 turns end at once, each with its tokens."""
        user_id, limits = uuid4().hex, Limits("chat", 0, 0, daily_model_tokens=10**9)
        spend(database, limits, user_id)
        at_once(database_url, 40, 200, lambda database: record(database, limits, user_id, 7))
        assert tokens(rows, user_id) == 1_400

    def test_turns_that_begin_lose_no_count_of_turns_that_end(self, database_url: str, rows: Rows) -> None:
        """Both write the same row at the same time."""
        user_id, limits = uuid4().hex, Limits("chat", 10, SLOW, daily_model_tokens=10**9)

        def begin_and_end(database: Database) -> bool:
            refused = spend(database, limits, user_id)
            record(database, limits, user_id, 7)
            return refused is None

        through = at_once(database_url, 20, 100, begin_and_end)
        assert (through.count(True), tokens(rows, user_id)) == (10, 700)


def record(database: Database, limits: Limits, user_id: str, model_tokens: int) -> None:
    """Count the tokens of a turn in its own transaction."""
    with database.transaction(user_id) as session:
        limits.record(session, user_id, model_tokens)


def tokens(rows: Rows, user_id: str) -> int | None:
    """Return the user's stored model tokens of the day."""
    kept = allowance(rows, user_id)
    return kept and kept["model_tokens"]


def _until_midnight() -> int:
    now = datetime.now(UTC)
    return DAY_SECONDS - (now.hour * 3600 + now.minute * 60 + now.second)


class TestTwoUsers:
    """Each user has their own limits."""

    def test_one_user_s_flood_does_not_limit_another(self, database: Database, rows: Rows) -> None:
        """Bob has his whole burst and quota."""
        alice, bob, limits = uuid4().hex, uuid4().hex, Limits("chat", 2, SLOW, daily_model_tokens=10)
        assert spend_all(database, limits, alice, 5) == 2
        record(database, limits, alice, 99)
        assert spend_all(database, limits, bob, 5) == 2
        assert tokens(rows, bob) == 0

    def test_a_transaction_writes_no_use_of_another_user(self, database: Database, rows: Rows) -> None:
        """Postgres refuses a row of another user than the transaction's."""
        alice, limits = uuid4().hex, Limits("chat", 2, SLOW)
        with pytest.raises(Exception, match="row-level security"), database.transaction("bob") as session:
            limits.spend(session, alice)
        assert allowance(rows, alice) is None

    def test_each_entry_point_has_its_own_limit(self, database: Database) -> None:
        """An MCP client that calls in bursts does not stop its user's chat."""
        user_id = uuid4().hex
        assert spend_all(database, Limits("mcp", 2, SLOW), user_id, 5) == 2
        assert spend_all(database, Limits("chat", 3, SLOW), user_id, 5) == 3


class TestNoLimit:
    """0 turns a limit off, whatever the stored row says."""

    @pytest.mark.parametrize(("burst", "per_minute"), [(0, 0), (0, SLOW), (1, 0)])
    def test_a_rate_limit_can_be_turned_off(self, database: Database, rows: Rows, burst: int, per_minute: int) -> None:
        """That holds for a user who had no request left for the next hour."""
        user_id = uuid4().hex
        assert spend_all(database, Limits("chat", 60, SLOW, 10), user_id, 61) == 60
        limits = Limits("chat", burst, per_minute, 10)
        assert spend_all(database, limits, user_id, 30) == 30
        record(database, limits, user_id, 10)
        assert spend(database, limits, user_id)

    def test_a_quota_can_be_turned_off(self, database: Database, rows: Rows) -> None:
        """The rate limit stays. Tokens are not counted."""
        user_id, limits = uuid4().hex, Limits("chat", 2, SLOW)
        record(database, limits, user_id, 10**9)
        assert spend_all(database, limits, user_id, 3) == 2
        assert tokens(rows, user_id) == 0

    def test_without_limits_no_row_is_stored(self, database: Database, rows: Rows) -> None:
        """Requests and tokens leave no row."""
        user_id, limits = uuid4().hex, Limits("chat", 0, 0)
        assert spend_all(database, limits, user_id, 30) == 30
        record(database, limits, user_id, 10**9)
        assert allowance(rows, user_id) is None


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch, environment: None) -> Callable[..., None]:
    """Give a function that sets limits by the names of their settings and restarts the processes. Others are off."""

    def limit(**limits: int) -> None:
        for name in LIMITS:
            monkeypatch.setenv(name.upper(), str(limits.get(name, 0)))
        reset_processes()

    return limit


def snapshot(rows: Rows) -> dict[str, list[Any]]:
    """Return all rows of all tables."""
    tables = SQLModel.metadata.tables
    return {table: rows.execute(f"table {table} order by 1, 2, 3".encode()).fetchall() for table in tables}


def check_refused(answer: Response, most: int) -> None:
    """Check for a problem of the contract, with Retry-After in whole seconds."""
    assert (answer.status, answer.headers["content-type"]) == (429, "application/problem+json")
    assert answer.json["type"] == "urn:taskchat:problem:too-many-requests"
    assert 1 <= int(answer.headers["retry-after"]) <= most


class TestChatLimits:
    """A turn that runs counts against its user's limits, and no other request does."""

    def test_a_turn_beyond_the_burst_is_refused(
        self, limited: Callable[..., None], alice: Person, bob: Person, rows: Rows, logs: Logs
    ) -> None:
        """The answer is 429, no row changes, one line is logged, and other users are not affected."""
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

    def test_a_refused_turn_leaves_its_conversation_free(
        self, limited: Callable[..., None], alice: Person, rows: Rows
    ) -> None:
        """It leaves no lease, so the next turn runs at once."""
        limited(turn_burst=1, turns_per_minute=SLOW)
        conversation_id = alice.say(ADD_MILK).json["conversation_id"]
        check_refused(alice.say(CALL_MUM, conversation_id), most=60)
        assert db_assertions.lease(rows, alice.id, conversation_id) is None
        let_pass(rows, alice.id, timedelta(minutes=1))
        assert alice.say(CALL_MUM, conversation_id).status == 200

    def test_a_replay_is_free(self, limited: Callable[..., None], alice: Person, rows: Rows) -> None:
        """A user without requests and tokens still gets the answer of a finished turn."""
        limited(turn_burst=1, turns_per_minute=SLOW, daily_model_tokens=1)
        first = alice.say("hello", key="k")
        before = allowance(rows, alice.id)
        again = [alice.say("hello", key="k") for _ in range(3)]
        assert {(answer.status, answer.body) for answer in again} == {(200, first.body)}
        assert allowance(rows, alice.id) == before

    def test_a_request_without_a_turn_is_free(self, limited: Callable[..., None], alice: Person, rows: Rows) -> None:
        """The conversation is busy or unknown, the key was used, or the message is empty."""
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

    def test_a_resumed_turn_is_not_free(
        self, limited: Callable[..., None], alice: Person, rows: Rows, standin: StandIn
    ) -> None:
        """It calls the model again. A refused one stays as it was and can be resumed later."""
        limited(turn_burst=1, turns_per_minute=SLOW)
        standin.fault("server_error", match=ADD_MILK, times=None, after_calls=1)
        assert alice.say(ADD_MILK, key="k").status == 502
        standin.reset()
        before = snapshot(rows)
        check_refused(alice.say(ADD_MILK, key="k"), most=60)
        assert snapshot(rows) == before
        let_pass(rows, alice.id, timedelta(minutes=1))
        answer = alice.say(ADD_MILK, key="k")
        db_assertions.check_turn(rows, alice.id, ADD_MILK, answer)
        assert [call["tool"] for call in answer.json["tool_calls"]] == ADD_MILK.tools

    def test_a_used_up_quota_refuses_the_next_turn(
        self, limited: Callable[..., None], alice: Person, rows: Rows
    ) -> None:
        """The turn whose last answer reaches the quota is done. After midnight the next one is done too."""
        limited(daily_model_tokens=1)
        assert alice.say("hello").status == 200
        refusal = alice.say(CALL_MUM)
        check_refused(refusal, most=DAY_SECONDS)
        assert refusal.json["detail"] == "The day's model tokens are used up."
        yesterday(rows, alice.id)
        assert alice.say("hello").status == 200

    def test_a_turn_that_uses_the_quota_up_is_stopped(
        self, limited: Callable[..., None], alice: Person, rows: Rows, standin: StandIn
    ) -> None:
        """The answer is 429 with the calls that were made. After midnight the turn continues from there."""
        limited(daily_model_tokens=1)
        answer = alice.say(ADD_MILK, key="k")
        check_refused(answer, most=DAY_SECONDS)
        (made,) = answer.json["tool_calls"]
        assert (made["tool"], made["outcome"]) == (example.add_tool, "ok")
        assert len(standin.requests()) == 1
        assert tokens(rows, alice.id) == reported(standin)
        yesterday(rows, alice.id)
        limited(daily_model_tokens=10**6)
        again = alice.say(ADD_MILK, key="k").json
        assert (again["turn_id"], again["tool_calls"]) == (answer.json["turn_id"], [made])
        assert example.rows_of(rows, alice.id) == [example.row("milk")]

    def test_no_turn_exceeds_the_quota_by_more_than_a_model_call(
        self, limited: Callable[..., None], alice: Person, rows: Rows, standin: StandIn
    ) -> None:
        """The model reads a long list as often as it may."""
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

    def test_a_turn_has_its_own_bound(
        self, limited: Callable[..., None], alice: Person, standin: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It holds without a quota too. The answer is 502 with the calls that were made."""
        monkeypatch.setattr("chat.agent.MAX_TURN_TOKENS", 2_500)
        limited()
        standin.fault("endless_tool_calls", match="hello")
        answer = alice.say("hello")
        assert (answer.status, answer.json["detail"]) == (502, "The model did not come to an end.")
        costs = [request["tokens"] for request in standin.requests()]
        assert 1 < len(costs) == len(answer.json["tool_calls"]) < 12
        assert sum(costs[:-1]) < 2_500 <= sum(costs)

    def test_a_turn_over_midnight_has_the_new_day_s_quota(self) -> None:
        """After midnight the old day's quota no longer stops it."""
        now = time.monotonic()
        DayLeft(10, ends_at=now - 1).check(10)
        DayLeft(10, ends_at=now + 90).check(9)
        with pytest.raises(TooManyRequests) as refusal:
            DayLeft(10, ends_at=now + 90).check(10)
        assert refusal.value.retry_after == 90

    def test_without_limits_no_turn_is_refused(self, limited: Callable[..., None], alice: Person, rows: Rows) -> None:
        """No row is stored."""
        limited()
        assert {alice.say("hello").status for _ in range(5)} == {200}
        assert allowance(rows, alice.id) is None

    def test_200_turns_at_once_in_eight_processes_get_the_burst(
        self, warm_fork_server: ForkServer, database_url: str, standin: StandIn, issuer: Issuer, rows: Rows
    ) -> None:
        """Exactly ten turns of one user are done, each whole. All others get 429, and no lock fails a request."""
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
                db_assertions.check_turn(rows, client.id, ADD_MILK, answer)
            else:
                check_refused(answer, most=60)
        assert example.rows_of(rows, client.id) == [example.row("milk")] * 10
        assert tokens(rows, client.id) == sum(request["tokens"] for request in standin.requests())


def reported(standin: StandIn) -> int:
    """Return the tokens that the model reported in all its answers."""
    return sum(request["tokens"] or 0 for request in standin.requests())


def usage_of(rows: Rows, person: Person) -> dict[str, Any]:
    """Return the usage stored with the user's only reply."""
    (row,) = rows.execute("select usage from message where user_id = %s and role = 'assistant'", [person.id]).fetchall()
    usage: dict[str, Any] = row["usage"]
    return usage


def accounts(logs: Logs, person: Person) -> list[tuple[str, int]]:
    """Return how each attempt at a turn ended, and its tokens, from the log."""
    lines = [line for line in logs() if line.get("schema") == "taskchat.usage/1" and line["actor"] == person.id]
    return [(line["message"], line["input_tokens"] + line["output_tokens"]) for line in lines]


@pytest.mark.parametrize("database_url", ["pooled"], indirect=True)
@pytest.mark.parametrize("model_api", ["responses", "chat_completions"], indirect=True)
class TestCostOfATurn:
    """Each answer of a model counts once in the quota and once in the log."""

    def test_a_turn_is_counted(self, alice: Person, rows: Rows, standin: StandIn, logs: Logs) -> None:
        """The reply, the log and the quota have the tokens that the model reported."""
        alice.say(example.add("milk", "call mum").then(example.change("milk")))
        usage = usage_of(rows, alice)
        assert reported(standin) > 0
        assert tokens(rows, alice.id) == usage["input_tokens"] + usage["output_tokens"] == reported(standin)
        assert (usage["model"], usage["requests"]) == ("stand-in", len(standin.requests()))
        assert usage["cached_tokens"] < usage["input_tokens"]
        assert accounts(logs, alice) == [("turn finished", reported(standin))]

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
    def test_a_failed_turn_is_counted(
        self, alice: Person, rows: Rows, standin: StandIn, logs: Logs, fault: str
    ) -> None:
        """Every answer of the model counts, useful or not, because it has its price."""
        standin.fault(fault, match=ADD_MILK, times=None, after_calls=1)
        alice.say(ADD_MILK)
        assert reported(standin) > 0
        assert tokens(rows, alice.id) == reported(standin)
        assert [tokens for _, tokens in accounts(logs, alice)] == [reported(standin)]

    @pytest.mark.parametrize(
        ("fault", "tries"),
        [("hang", 1), ("disconnect", 3), ("disconnect_midway", 3), ("malformed_body", 3), ("wrong_schema", 1)],
    )
    def test_a_model_call_without_an_answer_is_estimated(
        self, alice: Person, rows: Rows, standin: StandIn, logs: Logs, fault: str, tries: int
    ) -> None:
        """Each try that timed out, was lost or is unreadable counts about as many tokens as its request."""
        standin.fault(fault, match=ADD_MILK, times=None, after_calls=1)
        assert alice.say(ADD_MILK, seconds=3 if fault == "hang" else 20).status in (502, 504)
        (read, *given_up) = standin.requests()
        assert len(given_up) == tries
        (line,) = [line for line in logs() if line["message"] == "turn interrupted"]
        assert line["input_tokens"] + line["output_tokens"] == read["tokens"]
        assert tries * read["tokens"] < line["estimated_tokens"] < 2 * tries * read["tokens"]
        assert tokens(rows, alice.id) == read["tokens"] + line["estimated_tokens"]

    def test_a_model_call_that_was_not_sent_is_free(
        self, alice: Person, rows: Rows, standin: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No server listens at the address."""
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
        reset_processes()
        assert alice.say(ADD_MILK).status == 502
        assert tokens(rows, alice.id) == 0

    def test_a_turn_that_fails_in_a_tool_is_counted(self, alice: Person, rows: Rows, standin: StandIn) -> None:
        """The model had answered with the call before that."""
        rows.execute(
            "create or replace function refuse() returns trigger language plpgsql as $$"
            " begin raise exception using errcode = '57014'; end $$"
        )
        rows.execute(f"create trigger refuse before insert on {example.table} for each row execute function refuse()")
        try:
            assert alice.say(ADD_MILK).status == 503
        finally:
            rows.execute("drop function refuse cascade")
        assert reported(standin) > 0
        assert tokens(rows, alice.id) == reported(standin)

    def test_both_attempts_at_a_turn_are_counted(self, alice: Person, rows: Rows, standin: StandIn, logs: Logs) -> None:
        """The quota has both, the reply has its own attempt's tokens, and each attempt has a log line."""
        standin.fault("server_error", match=ADD_MILK, times=None, after_calls=1)
        assert alice.say(ADD_MILK, key="k").status == 502
        first = reported(standin)
        standin.reset()
        assert alice.say(ADD_MILK, key="k").status == 200
        second, usage = reported(standin), usage_of(rows, alice)
        assert usage["input_tokens"] + usage["output_tokens"] == second
        assert tokens(rows, alice.id) == first + second
        assert accounts(logs, alice) == [("turn interrupted", first), ("turn finished", second)]

    def test_usage_names_the_model_that_answered(
        self, alice: Person, bob: Person, rows: Rows, standin: StandIn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It may be the fallback."""
        monkeypatch.setenv("MODEL_FALLBACK", "second-choice")
        reset_processes()
        standin.fault("server_error", match="hello", times=3)
        assert alice.say("hello").status == 200
        assert usage_of(rows, alice)["model"] == "second-choice"
        assert bob.say("hello").status == 200
        assert usage_of(rows, bob)["model"] == "stand-in"

    def test_a_commit_whose_answer_is_lost_counts_once(
        self, alice: Person, rows: Rows, standin: StandIn, server: Postgres, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The turn is done and counted. The process looks it up and does not count it again."""
        with losing_the_answer_to_the_second_commit(server, monkeypatch) as between:
            assert alice.say("hello").status == 200
        assert (between.lost, usage_of(rows, alice)["requests"]) == (1, 1)
        assert tokens(rows, alice.id) == reported(standin)


@contextmanager
def losing_the_answer_to_the_second_commit(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[proxy.Proxy]:
    """Start new processes that do not get the answer to their second commit."""
    commits = count(1)
    with proxy.running(server.app_url) as between:
        monkeypatch.setenv("DATABASE_URL", between.url(server.app_url))
        reset_processes()

        def lose_the_second(_connection: Any) -> None:
            if next(commits) == 2:
                between.lose_answer_to = b"commit"

        from chat.app import process

        sqlalchemy.event.listen(process.database.engine, "commit", lose_the_second)
        yield between
        reset_processes()


def end_turn(database: Database, person: str, limits: Limits, end: Callable[[Session], None]) -> None:
    """Count 70 tokens and end a turn, in one transaction."""
    with database.transaction(person) as session:
        limits.record(session, person, 70)
        end(session)


class TestLostLease:
    """A turn that has lost its lease stores no reply. The tokens that it used count once."""

    @pytest.mark.parametrize("is_known", [False, True], ids=["new statements", "known statements"])
    def test_it_stores_nothing_and_its_tokens_count_once(
        self, database: Database, rows: Rows, *, is_known: bool
    ) -> None:
        """Its reply and the commit are sent together. Then the turn runner tries to release the lease."""
        limits, person = Limits("chat", 0, 0, 10_000), uuid4().hex
        if is_known:
            database.prepare_statements([*STATEMENTS, *conversations.STATEMENTS])
        with database.transaction(person) as session:
            limits.spend(session, person)
            begun = conversations.begin(session, person, uuid4(), conversations.Request("hello"), 1000)
        assert isinstance(begun, conversations.Begun)
        taken = "update conversation set fence = fence + 1 where user_id = %s returning *"
        other = rows.execute(taken, [person]).fetchone()
        lease, turn = begun.lease, begun.turn
        for end in (lambda session: conversations.finish(session, lease, turn, "Late.", {}), lease.release):
            with pytest.raises(LeaseLost):
                end_turn(database, person, limits, end)
        assert rows.execute("select * from conversation where user_id = %s", [person]).fetchall() == [other]
        stored = rows.execute("select role from message where user_id = %s", [person]).fetchall()
        assert stored == [{"role": "user"}]
        assert (allowance(rows, person) or {})["model_tokens"] == 70

    @pytest.mark.parametrize(
        ("lost_before", "fails", "status", "calls"),
        [(1, False, 409, 0), (2, True, 502, 1), (2, False, 409, 1)],
        ids=["at a tool call", "when the model fails", "at the reply"],
    )
    def test_its_tokens_count_once_wherever_it_ends(
        self,
        taken_over: Callable[[int], None],
        alice: Person,
        rows: Rows,
        standin: StandIn,
        *,
        lost_before: int,
        fails: bool,
        status: int,
        calls: int,
    ) -> None:
        """The turn stores only the calls that it made with the lease."""
        taken_over(lost_before)
        if fails:
            standin.fault("server_error", match=ADD_MILK, times=None, after_calls=1)
        answer = alice.say(ADD_MILK)
        assert (answer.status, len(answer.json["tool_calls"])) == (status, calls)
        assert tokens(rows, alice.id) == reported(standin) > 0
        stored = rows.execute("select role from message where user_id = %s", [alice.id]).fetchall()
        assert stored == [{"role": "user"}]
        assert len(rows.execute("select from tool_call where user_id = %s", [alice.id]).fetchall()) == calls

    def test_its_tokens_count_once_if_that_commit_is_not_answered(
        self,
        taken_over: Callable[[int], None],
        alice: Person,
        rows: Rows,
        standin: StandIn,
        server: Postgres,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """No lease shows later if Postgres has counted them, so the turn runner does not count them again."""
        taken_over(1)
        with losing_the_answer_to_the_second_commit(server, monkeypatch) as between:
            assert alice.say(ADD_MILK).status == 409
        assert between.lost == 1
        assert tokens(rows, alice.id) == reported(standin) > 0

    @pytest.fixture
    def taken_over(
        self, limited: Callable[..., None], rows: Rows, alice: Person, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[int], None]:
        """Give a function that lets another turn take the lease before a model call, given by its number."""
        limited(daily_model_tokens=10**6)

        def take_before(number: int) -> None:
            numbers, check = count(1), Run.check

            def take_and_check(run: Run) -> None:
                if next(numbers) == number:
                    rows.execute("update conversation set fence = fence + 1 where user_id = %s", [alice.id])
                check(run)

            monkeypatch.setattr(Run, "check", take_and_check)

        return take_before


class TestProvidersUsage:
    """A provider may report any usage, and each implausible number is estimated."""

    @pytest.mark.parametrize("usage", [None, {}, [], {"input_tokens": "7", "output_tokens": -1}])
    def test_without_usage_tokens_are_estimated(self, usage: Any) -> None:
        """A request counts by its length."""
        counted = Usage()
        counted.add({"model": "m", "input": "x" * 4_000}, usage)
        assert (counted.model, counted.requests, counted.tokens) == ("m", 1, counted.estimated_tokens)
        assert 1_000 <= counted.tokens <= 1_010

    def test_an_impossible_number_does_not_count(self) -> None:
        """It would lock its user out for the day."""
        usage = Usage()
        usage.add({"model": "m"}, {"input_tokens": 10**30, "output_tokens": 7})
        assert usage.tokens < 20

    @pytest.mark.parametrize("number", [None, True, -1, 0, 1.5, "7", [7], {"n": 7}, 2**31 - 1, 10**30])
    def test_an_implausible_number_is_estimated(self, number: Any) -> None:
        """The length of the request gives the input, and the length of the answer the output."""
        usage = Usage()
        reported = {"input_tokens": number, "output_tokens": number, "input_tokens_details": {"cached_tokens": 5}}
        usage.add(
            {"model": "m", "input": "x" * 4_000}, reported, [{"type": "message", "content": [{"text": "y" * 400}]}]
        )
        assert (usage.input_tokens, usage.output_tokens, usage.cached_tokens) == (0, 0, 0)
        assert 1_100 <= usage.estimated_tokens <= 1_110

    def test_an_estimate_has_the_bound_of_the_request(self) -> None:
        """No answer counts more than the longest that the request allows."""
        usage = Usage()
        usage.add({"model": "m"}, None, [{"text": "y" * 900_000}])
        assert MAX_OUTPUT_TOKENS <= usage.tokens <= MAX_OUTPUT_TOKENS + 10

    @pytest.mark.parametrize("letter", ["x", "漢", "🥛", "ก"])
    def test_a_token_for_each_byte_is_plausible(self, letter: str) -> None:
        """No tokenizer makes more tokens of a text in any script."""
        usage, text = Usage(), letter * 5_000
        usage.add({"model": "m", "input": text}, {"prompt_tokens": len(text.encode()), "completion_tokens": 8_000})
        assert (usage.input_tokens, usage.output_tokens) == (len(text.encode()), 8_000)
        assert usage.estimated_tokens == 0

    @pytest.mark.parametrize(("cached", "counted"), [(0, 0), (900, 900), (901, 0), (-1, 0), ("9", 0), (True, 0)])
    def test_cached_tokens_are_at_most_the_input(self, cached: Any, counted: int) -> None:
        """Both APIs have their own names for them."""
        for names in (("input_tokens", "input_tokens_details"), ("prompt_tokens", "prompt_tokens_details")):
            usage = Usage()
            usage.add({"model": "m"}, dict(zip(names, (900, {"cached_tokens": cached}), strict=True)))
            assert (usage.input_tokens, usage.cached_tokens) == (900, counted)


@pytest.fixture
def start_mcp(limited: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Handler]:
    """Give a function that starts the MCP entry point with these limits."""

    def start(**limits: int) -> Handler:
        from mcp_tools.app import process

        limited(**limits)
        handler: Handler = Mangum(process.app, lifespan="auto")
        return handler

    return start


def tool_call(token: str) -> tuple[dict[str, str], bytes]:
    """Return headers and body of a client's tool call."""
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
    """Call a tool as an MCP client of the user."""
    headers, body = tool_call(token or person.mcp_token)
    return invoke(handler, event(method, "/mcp", headers=headers, body=body))


def _post(url: str, person: Person) -> int:
    """Call a tool over real HTTP and return the status."""
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
class TestMcpLimits:
    """Each request of a user's MCP clients counts, before anything is done for it."""

    def test_a_call_beyond_the_burst_is_refused(
        self, start_mcp: Callable[..., Handler], alice: Person, bob: Person, rows: Rows
    ) -> None:
        """The answer is 429, no call is made, other users are not affected, and requests come back."""
        handler = start_mcp(mcp_burst=3, mcp_requests_per_minute=SLOW)
        assert [call_tool(alice, handler).status for _ in range(3)] == [200] * 3
        before = snapshot(rows)
        check_refused(call_tool(alice, handler), most=60)
        assert snapshot(rows) == before
        assert call_tool(bob, handler).status == 200
        let_pass(rows, alice.id, timedelta(minutes=1))
        assert [call_tool(alice, handler).status for _ in range(2)] == [200, 429]
        assert example.rows_of(rows, alice.id) == [example.row("milk")] * 4
        assert allowance(rows, alice.id, "chat") is None

    def test_40_calls_at_once_over_http_get_the_burst(
        self, start_mcp: Callable[..., Handler], alice: Person, rows: Rows
    ) -> None:
        """Exactly the burst is accepted, and each of these calls is done."""
        from mcp_tools.app import process

        start_mcp(mcp_burst=7, mcp_requests_per_minute=SLOW)
        with serving(process.app) as url, ThreadPoolExecutor(20) as pool:
            statuses = Counter(pool.map(lambda _: _post(url, alice), range(40)))
        assert statuses == {200: 7, 429: 33}
        assert example.rows_of(rows, alice.id) == [example.row("milk")] * 7

    def test_a_request_without_a_valid_token_is_free(
        self, start_mcp: Callable[..., Handler], alice: Person, rows: Rows
    ) -> None:
        """So is one that asks for no tool, such as one for the metadata."""
        handler = start_mcp(mcp_burst=1, mcp_requests_per_minute=SLOW)
        assert call_tool(alice, handler, token=alice.token).status == 401
        assert call_tool(alice, handler, "GET").status == 405
        metadata = event("GET", "/.well-known/oauth-protected-resource")
        assert invoke(handler, metadata).status == 200
        assert allowance(rows, alice.id, "mcp") is None
        assert [call_tool(alice, handler).status for _ in range(2)] == [200, 429]

    def test_without_the_database_no_call_is_made(
        self, start_mcp: Callable[..., Handler], alice: Person, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The answer is 503 with Retry-After, because the request cannot be counted."""
        monkeypatch.setenv("DATABASE_URL", "postgresql://u:p@127.0.0.1:1/d?sslmode=disable")
        answer = call_tool(alice, start_mcp(mcp_burst=1, mcp_requests_per_minute=SLOW))
        assert (answer.status, answer.headers["content-type"]) == (503, "application/problem+json")
        assert answer.json["type"] == "urn:taskchat:problem:database-unavailable"
        assert int(answer.headers["retry-after"]) >= 1

    def test_without_limits_no_call_is_refused(
        self, start_mcp: Callable[..., Handler], alice: Person, rows: Rows
    ) -> None:
        """No row is stored."""
        handler = start_mcp(turn_burst=1, turns_per_minute=SLOW)
        assert {call_tool(alice, handler).status for _ in range(5)} == {200}
        assert allowance(rows, alice.id, "mcp") is None


DATA_ROUTES = {
    "list": ("GET", "", b"", 200),
    "read": ("GET", "/{}", b"", 200),
    "rename": ("PATCH", "/{}", {"title": "Groceries"}, 200),
    "delete": ("DELETE", "/{}", b"", 204),
}


class TestDataLimits:
    """Each request for a person's own data counts, in a bucket of its own."""

    def ask(self, person: Person, name: str, conversation_id: str) -> Response:
        """Send one of the requests."""
        method, path, body, _ = DATA_ROUTES[name]
        return person.call(method, f"/conversations{path.format(conversation_id)}", body)

    @pytest.mark.parametrize("name", DATA_ROUTES)
    def test_a_request_beyond_the_burst_is_refused(
        self, limited: Callable[..., None], alice: Person, bob: Person, rows: Rows, logs: Logs, name: str
    ) -> None:
        """The answer is 429, no row changes, other users are not affected, and requests come back."""
        conversation_id = alice.say(ADD_MILK).json["conversation_id"]
        limited(data_burst=2, data_requests_per_minute=SLOW)
        assert [alice.get("/conversations").status for _ in range(2)] == [200, 200]
        before = snapshot(rows)
        check_refused(self.ask(alice, name, conversation_id), most=60)
        assert snapshot(rows) == before
        refused = [(line["actor"], line["door"]) for line in logs() if line["message"] == "limit reached"]
        assert refused == [(alice.id, "data")]
        assert bob.get("/conversations").status == 200
        let_pass(rows, alice.id, timedelta(minutes=1))
        assert self.ask(alice, name, conversation_id).status == DATA_ROUTES[name][3]

    def test_the_three_buckets_are_apart(self, start_mcp: Callable[..., Handler], alice: Person, rows: Rows) -> None:
        """A person who has used up one of them still has the others, whole."""
        limits = {"turn_burst": 1, "turns_per_minute": SLOW, "mcp_burst": 1, "mcp_requests_per_minute": SLOW}
        handler = start_mcp(**limits, data_burst=1, data_requests_per_minute=SLOW)
        for request in (
            lambda: alice.get("/conversations"),
            lambda: alice.say("hello"),
            lambda: call_tool(alice, handler),
        ):
            assert [request().status for _ in range(2)] == [200, 429]
        assert all(allowance(rows, alice.id, door) for door in ("chat", "mcp", "data"))

    def test_without_limits_no_request_is_refused(
        self, limited: Callable[..., None], alice: Person, rows: Rows
    ) -> None:
        """0 stands for no limit, and no row is stored."""
        limited(turn_burst=1, turns_per_minute=SLOW)
        assert {alice.get("/conversations").status for _ in range(5)} == {200}
        assert allowance(rows, alice.id, "data") is None

    def test_a_refused_request_is_free(self, limited: Callable[..., None], alice: Person, rows: Rows) -> None:
        """It has a bad query, a bad body, or no conversation."""
        limited(data_burst=1, data_requests_per_minute=SLOW)
        unknown = f"/conversations/{uuid4()}"
        answers = [
            alice.get("/conversations", limit=0),
            alice.get("/conversations", cursor="x"),
            alice.call("PATCH", unknown, {}),
            *(alice.call(method, unknown, {"title": "a"}) for method in ("GET", "PATCH", "DELETE")),
        ]
        assert [answer.status for answer in answers] == [422, 422, 422, 404, 404, 404]
        assert allowance(rows, alice.id, "data") is None


@pytest.mark.parametrize("role", ["owner", "console"])
def test_a_user_s_quota_can_be_reset(database: Database, server: Postgres, console_url: str, role: str) -> None:
    """Run the statements of docs/limits.md, as a role that the policies bind and as one that they do not.

    The named user has a quota again, and no other row changes.
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
    """Return a user without tokens left for the day."""
    user_id, limits = uuid4().hex, Limits("chat", 1, SLOW, daily_model_tokens=10)
    assert spend(database, limits, user_id) is None
    record(database, limits, user_id, 10)
    assert spend(database, limits, user_id)
    return user_id
