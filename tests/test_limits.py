"""What one person may use of the service: exact however many ask at once, and nobody's business but theirs."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlmodel import Session

from dev import processes
from dev.postgres import Postgres
from taskchat.db import Database
from taskchat.errors import TooManyRequests
from taskchat.limits import Limits

Rows = psycopg.Connection[dict[str, Any]]

SLOW = 1
"""Requests in a minute: so few that no test takes long enough for one to come back by itself."""
DAY_SECONDS = 86_400


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database as one execution environment has it."""
    database = Database(database_url)
    yield database
    database.close()


def allowance(rows: Rows, user_id: str, door: str = "chat") -> dict[str, Any] | None:
    """What is kept of a person's use, as it lies in Postgres."""
    found = rows.execute("select * from allowance where user_id = %s and door = %s", [user_id, door])
    return found.fetchone()


def let_pass(rows: Rows, user_id: str, time: timedelta) -> None:
    """As if the person had done nothing for so long: all that is kept of them is that much older."""
    rows.execute("update allowance set full_at = full_at - %s where user_id = %s", [time, user_id])


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

    databases = [Database(url) for _ in range(workers)]
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
        database = Database(database_url)
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
