"""A lease is short, and the turn runner renews it while the turn lives.

Promises: 15 seconds after its last renewal a conversation is open again, and not before. A turn of five minutes keeps
its lease. A turn that was frozen for longer has lost it, ends at once and writes nothing. A renewal whose commit has no
answer costs the turn nothing, whatever Postgres did. A turn of a few seconds renews nothing.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event
from sqlmodel import Session

from dev import processes
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from taskchat import deadline
from taskchat.conversations import renewal
from taskchat.conversations import turns as conversations
from taskchat.conversations.lease import LEASE_GRACE, LEASE_SECONDS, Lease, LeaseLost
from taskchat.conversations.renewal import RENEW_SECONDS, LeaseHolder, renew, renewing
from taskchat.conversations.turns import Begun, Request
from taskchat.database.transaction import Database
from taskchat.errors import TurnInProgress
from taskchat.personal_data.erasure import end_leases
from tests import clocks, db_assertions
from tests.clocks import DatabaseClock
from tests.conftest import Person, databases, run
from tests.db_assertions import Rows
from tests.domain import example
from tests.proxy import Proxy, ThroughAProxy

FIVE_MINUTES = 300
START = datetime(2026, 3, 1, 12, tzinfo=UTC)
ADD = example.add("buy milk")


@dataclass
class RunningTurn:
    """A turn without a model, which holds its lease."""

    database: Database
    request: Request
    begun: Begun
    lease: Lease

    @classmethod
    def begin(cls, database: Database, conversation_id: UUID | None = None) -> "RunningTurn":
        """Begin a turn of Alice."""
        request = Request("hello", conversation_id)
        with database.transaction("alice") as session:
            begun = conversations.begin(session, "alice", uuid4(), request, 1_000)
        assert isinstance(begun, Begun)
        return cls(database, request, begun, begun.lease)

    @property
    def id(self) -> UUID:
        """Return the conversation's id."""
        return self.lease.conversation_id

    def renew(self) -> bool:
        """Renew the lease."""
        return renew(self.database, self)

    def hold(self) -> None:
        """Hold the lease for a transaction, as a tool call does."""
        with self.database.transaction("alice") as session:
            self.lease.check(session)

    def finish(self) -> None:
        """Store a reply."""
        with self.database.transaction("alice") as session:
            conversations.finish(session, self.lease, self.begun.turn, "Hello.", {})

    def release(self) -> None:
        """End the turn without a reply."""
        with self.database.transaction("alice") as session:
            self.lease.release(session)

    def begin_again(self) -> None:
        """Begin the turn again, as after a commit of unknown outcome."""
        with self.database.transaction("alice") as session:
            conversations.begin(session, "alice", self.lease.turn_id, self.request, 1_000, own=[self.lease])


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Give a process's database."""
    with closing(Database(lambda: database_url)) as database:
        yield database


@pytest.fixture
def turn(database: Database) -> RunningTurn:
    """Begin a turn in a conversation of its own."""
    return RunningTurn.begin(database)


def until(rows: Rows, turn: RunningTurn) -> datetime | None:
    """Return the end of the lease that Postgres holds."""
    found = rows.execute("select lease_until from conversation where id = %s", [turn.id]).fetchone()
    return found and found["lease_until"]


def roles(rows: Rows, turn: RunningTurn) -> list[str]:
    """Return whose messages the conversation has."""
    query = "select role from message where conversation_id = %s order by position"
    return [row["role"] for row in rows.execute(query, [turn.id]).fetchall()]


class Times:
    """The clocks of the database and of the process. Both stand still until a test moves them."""

    def __init__(self, clock: DatabaseClock) -> None:
        self._clock, self.now, self.ahead = clock, START, timedelta()
        self.advance(0)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)
        self._clock.stop_at(self.now)

    def time(self) -> float:
        """Return the time of day that the process reads."""
        return (self.now + self.ahead).timestamp()


class TestTime:
    """Time passes for Postgres and for the process."""

    @pytest.fixture(scope="class")
    @classmethod
    def clock(cls, rows: Rows) -> Iterator[DatabaseClock]:
        """Give Postgres a clock that the test sets."""
        with clocks.running(rows) as clock:
            yield clock

    @pytest.fixture
    def times(self, clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch) -> Times:
        """Stop both clocks."""
        times = Times(clock)
        monkeypatch.setattr("taskchat.conversations.lease.time", SimpleNamespace(time=times.time))
        return times

    @pytest.fixture
    def database_url(self, server: Postgres, times: Times) -> str:
        """Give the runtime role's URL, for sessions that read that clock."""
        return server.app_url

    @pytest.fixture
    def left(self, rows: Rows, times: Times, turn: RunningTurn) -> Callable[[], float]:
        """Give a function that returns the seconds left of the lease."""

        def seconds() -> float:
            end = until(rows, turn)
            assert end
            return pytest.approx((end - times.now).total_seconds(), abs=0.001)  # type: ignore[no-any-return]  # pytest has no type for it

        return seconds

    def test_a_turn_of_five_minutes_keeps_its_lease(
        self, turn: RunningTurn, times: Times, rows: Rows, left: Callable[[], float]
    ) -> None:
        """Each renewal gives it 15 seconds. No other turn gets the conversation, and the reply is stored."""
        for _ in range(int(FIVE_MINUTES / RENEW_SECONDS)):
            times.advance(RENEW_SECONDS)
            assert turn.renew()
            assert left() == LEASE_SECONDS
            with pytest.raises(TurnInProgress):
                RunningTurn.begin(turn.database, turn.id)
            turn.hold()
        turn.finish()
        assert roles(rows, turn) == ["user", "assistant"]
        assert until(rows, turn) is None

    @pytest.mark.parametrize("renewals", [0, 3])
    def test_a_crashed_turns_conversation_opens_after_15_seconds_and_not_before(
        self, turn: RunningTurn, times: Times, renewals: int
    ) -> None:
        """They count from the last renewal."""
        for _ in range(renewals):
            times.advance(RENEW_SECONDS)
            assert turn.renew()
        times.advance(LEASE_SECONDS - 0.01)
        with pytest.raises(TurnInProgress):
            RunningTurn.begin(turn.database, turn.id)
        times.advance(0.01)
        RunningTurn.begin(turn.database, turn.id).hold()

    @pytest.mark.parametrize("write", [RunningTurn.renew, RunningTurn.hold, RunningTurn.finish, RunningTurn.release])
    @pytest.mark.parametrize("is_taken", [False, True], ids=["free", "taken"])
    def test_a_turn_frozen_for_15_seconds_writes_nothing(
        self, turn: RunningTurn, times: Times, rows: Rows, write: Callable[[RunningTurn], None], *, is_taken: bool
    ) -> None:
        """No renewal revives a lease, even if no other turn has taken it."""
        times.advance(LEASE_SECONDS)
        other = RunningTurn.begin(turn.database, turn.id) if is_taken else turn
        before = until(rows, turn), roles(rows, turn)
        for attempt in (write, RunningTurn.renew, write):
            with pytest.raises(LeaseLost):
                attempt(turn)
        assert (until(rows, turn), roles(rows, turn)) == before
        if is_taken:
            other.hold()

    def test_a_turn_frozen_for_a_few_seconds_has_15_again(
        self, turn: RunningTurn, times: Times, left: Callable[[], float]
    ) -> None:
        """The process reads the time of day, which goes on meanwhile."""
        times.advance(LEASE_SECONDS - 1)
        assert turn.renew()
        assert left() == LEASE_SECONDS

    def test_it_outlives_its_deadline_by_5_seconds_at_most(self, database: Database, times: Times, rows: Rows) -> None:
        """A shorter deadline takes nothing from a lease, and a renewal near the deadline adds nothing."""
        with deadline.within(3):
            short = until(rows, RunningTurn.begin(database))
        assert short
        assert START < short <= START + timedelta(seconds=3 + LEASE_GRACE)
        turn = RunningTurn.begin(database)
        before = until(rows, turn)
        times.advance(RENEW_SECONDS)
        with deadline.within(3):
            assert turn.renew()
        assert until(rows, turn) == before

    @pytest.mark.parametrize(("hours", "expected"), [(1, 25), (-1, 10)])
    def test_a_wrong_clock_of_the_process_changes_little(
        self, turn: RunningTurn, times: Times, left: Callable[[], float], hours: int, expected: float
    ) -> None:
        """It is set during the turn. The lease gets longer or shorter by seconds, once."""
        times.ahead = timedelta(hours=hours)
        for _ in range(3):
            times.advance(RENEW_SECONDS)
            assert turn.renew()
            assert left() == expected

    @pytest.mark.parametrize("times_lost", [1, 2])
    def test_an_unknown_renewal_ends_by_the_clock_too(self, turn: RunningTurn, times: Times, times_lost: int) -> None:
        """Postgres did none of the lost renewals, so the lease has its first end."""
        for _ in range(times_lost):
            times.advance(RENEW_SECONDS)
            turn.lease = turn.lease.extended()
        assert len(turn.lease.ends) == times_lost + 1
        turn.hold()
        times.advance(LEASE_SECONDS - times_lost * RENEW_SECONDS)
        with pytest.raises(LeaseLost):
            turn.renew()


class TestWithoutItsLease:
    """The lease is gone: a renewal finds no row, and writes nothing."""

    @pytest.mark.parametrize("loss", ["released", "finished", "erased", "deleted", "run out", "taken over"])
    def test_a_renewal_raises(self, turn: RunningTurn, rows: Rows, loss: str) -> None:
        """However it was lost."""
        self._lose(turn, rows, loss)
        before = until(rows, turn)
        with pytest.raises(LeaseLost):
            turn.renew()
        assert until(rows, turn) == before

    def _lose(self, turn: RunningTurn, rows: Rows, loss: str) -> None:
        if loss == "released":
            turn.release()
        elif loss == "finished":
            turn.finish()
        elif loss == "erased":
            with turn.database.transaction("alice") as session:
                end_leases(session, "alice")
        elif loss == "deleted":
            rows.execute("delete from conversation where id = %s", [turn.id])
        elif loss == "taken over":
            turn.begin_again()
        else:
            db_assertions.let_leases_run_out(rows, "alice")

    def test_a_conversation_begun_anew_is_not_renewed(self, turn: RunningTurn, rows: Rows) -> None:
        """It has the same id, turn and fencing token, and another end."""
        rows.execute("delete from conversation where id = %s", [turn.id])
        rows.execute(
            "insert into conversation (user_id, id, title, turn_id, fence, lease_until)"
            " values ('alice', %s, 'anew', %s, %s, clock_timestamp() + interval '9 seconds')",
            [turn.id, turn.lease.turn_id, turn.lease.fence],
        )
        before = until(rows, turn)
        with pytest.raises(LeaseLost):
            turn.renew()
        assert until(rows, turn) == before


class TestRaces:
    """A renewal is still committing on an earlier connection when the next transaction comes."""

    @pytest.fixture
    def earlier(self, database_url: str) -> Iterator[Database]:
        """Give the database through another connection."""
        with closing(Database(lambda: database_url)) as database:
            yield database

    def wait_and_do(
        self, earlier: Database, first: Callable[[Session], object], then: Callable[[], Any], rows: Rows
    ) -> Any:
        """Run `first` in a transaction that commits once `then` waits for it. Return the result of `then`."""
        with ThreadPoolExecutor(1) as pool:
            with earlier.transaction("alice") as session:
                first(session)
                session.flush()
                session.connection().exec_driver_sql("select 1").all()  # the statements above have been executed
                result = pool.submit(then)
                _await_a_lock(rows)
            return result.result()

    @pytest.mark.parametrize("then", [RunningTurn.renew, RunningTurn.hold, RunningTurn.finish, RunningTurn.release])
    def test_the_turn_goes_on(
        self, turn: RunningTurn, earlier: Database, rows: Rows, then: Callable[[RunningTurn], None]
    ) -> None:
        """Postgres makes it wait, and either end of the lease holds it."""
        turn.lease = turn.lease.extended()
        self.wait_and_do(earlier, turn.lease.renew, partial(then, turn), rows)
        assert roles(rows, turn) == ["user", *["assistant"] * (then is RunningTurn.finish)]

    def test_a_renewal_after_the_release_changes_nothing(
        self, turn: RunningTurn, earlier: Database, rows: Rows
    ) -> None:
        """The turn ended while it was under way."""
        with pytest.raises(LeaseLost):
            self.wait_and_do(earlier, turn.lease.release, turn.renew, rows)
        assert until(rows, turn) is None

    def test_an_erasure_ends_the_lease_that_is_renewed(self, turn: RunningTurn, earlier: Database, rows: Rows) -> None:
        """The renewal comes second, and finds no lease."""
        with pytest.raises(LeaseLost):
            self.wait_and_do(earlier, lambda session: end_leases(session, "alice"), turn.renew, rows)
        assert until(rows, turn) is None


def _await_a_lock(rows: Rows) -> None:
    """Return when a backend waits for another one's transaction."""
    for _ in processes.attempts(5):
        if rows.execute("select from pg_stat_activity where wait_event_type = 'Lock'").fetchall():
            return
    raise AssertionError("no backend waits")


@dataclass
class Thinking:
    """Let the model think until the turn has renewed its lease some times."""

    standin: StandIn
    monkeypatch: pytest.MonkeyPatch
    renewals: list[bool] = field(default_factory=list)
    """The results of the renewals so far."""
    until: list[bool] = field(default_factory=list)
    """The results after which the model answers."""
    before_first: Callable[[], object] = lambda: None
    at_end: Callable[[], object] | None = None
    """A function to call, after those results, in place of the model's answer."""

    def __post_init__(self) -> None:
        """Let the model hang, and renew without a pause."""
        self.standin.fault("hang", match=ADD)
        self.monkeypatch.setattr(renewal, "RENEW_SECONDS", 0.0)
        self.monkeypatch.setattr(renewal, "renew", self._renew)

    def retry_after(self, seconds: float) -> None:
        """Let a renewal that failed be tried again after these seconds."""
        self.monkeypatch.setattr(renewal, "RETRY_SECONDS", seconds)

    def _renew(self, database: Database, holder: LeaseHolder) -> bool:
        if not self.standin.waiting():
            return True
        if not self.renewals:
            self.before_first()
        if self.at_end and self.renewals == self.until:
            self.at_end()
        self.renewals.append(renew(database, holder))
        if not self.at_end and self.renewals == self.until:
            self.standin.release()
        return self.renewals[-1]


@pytest.fixture
def thinking(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> Thinking:
    """Let the model think."""
    return Thinking(standin, monkeypatch)


class TestLostAnswers(ThroughAProxy):
    """The commit of a renewal has no answer."""

    @pytest.mark.parametrize("is_done", [False, True], ids=["not done", "done"])
    @pytest.mark.parametrize(
        "then", [RunningTurn.renew, RunningTurn.hold, RunningTurn.finish, RunningTurn.release, RunningTurn.begin_again]
    )
    def test_the_turn_goes_on(
        self, turn: RunningTurn, proxy: Proxy, rows: Rows, then: Callable[[RunningTurn], None], *, is_done: bool
    ) -> None:
        """Either end holds the lease. The next renewal leaves one."""
        first = until(rows, turn)
        self._lose_the_next_commit(turn.database, proxy, is_done=is_done)
        assert not turn.renew()
        assert proxy.lost == 1
        assert turn.lease.ends[0] == first
        assert until(rows, turn) == turn.lease.ends[is_done]
        then(turn)
        if then is RunningTurn.renew:
            assert (until(rows, turn),) == turn.lease.ends

    def _lose_the_next_commit(self, database: Database, proxy: Proxy, *, is_done: bool) -> None:
        def lose(_connection: Any) -> None:
            if is_done:
                proxy.lose_answer_to = b"commit"
            else:
                proxy.cut_sent = proxy.sent + 3

        event.listen(database.engine, "commit", lose, once=True)

    def test_one_that_was_not_sent_changes_nothing(self, turn: RunningTurn, proxy: Proxy, rows: Rows) -> None:
        """The database cannot be reached. The turn tries again."""
        before = turn.lease
        turn.database.close()
        proxy.refuse_for = 60
        proxy._lose()
        assert not turn.renew()
        assert turn.lease == before
        proxy.accept_again()
        assert turn.renew()
        assert (until(rows, turn),) == turn.lease.ends

    @pytest.mark.parametrize("retry", [0.0, 60.0], ids=["settled", "unsettled"])
    @pytest.mark.parametrize("is_done", [False, True], ids=["not done", "done"])
    def test_a_whole_turn_goes_on(
        self, thinking: Thinking, alice: Person, proxy: Proxy, rows: Rows, retry: float, *, is_done: bool
    ) -> None:
        """The answer is lost while the model thinks. A tool call and the reply follow, with or without a renewal."""
        thinking.retry_after(retry)
        thinking.before_first = lambda: self._lose_the_next_commit(databases()[0], proxy, is_done=is_done)
        thinking.until = [False] if retry else [False, True]
        answer = alice.say(ADD, key="k")
        assert (proxy.lost, thinking.renewals) == (1, thinking.until)
        db_assertions.check_turn(rows, alice.id, ADD, answer)
        assert example.rows_of(rows, alice.id) == [example.row("buy milk")]
        assert alice.say(ADD, key="k").body == answer.body


class TestRunningTurns:
    """The turn runner renews the lease while the model thinks."""

    def test_a_long_turn_is_renewed_again_and_again(self, thinking: Thinking, alice: Person, rows: Rows) -> None:
        """Then its call and its reply are stored, and the lease is released."""
        thinking.until = [True] * 5
        answer = alice.say(ADD)
        assert thinking.renewals == thinking.until
        db_assertions.check_turn(rows, alice.id, ADD, answer)
        assert db_assertions.lease(rows, alice.id, answer.json["conversation_id"]) is None

    def test_a_short_turn_renews_nothing(self, alice: Person, monkeypatch: pytest.MonkeyPatch) -> None:
        """It costs as many statements as without renewals."""
        monkeypatch.setattr(renewal, "renew", lambda *_: pytest.fail("a renewal"))
        assert alice.say(ADD).status == 200

    @pytest.mark.parametrize("renewals", [0, 2])
    def test_a_turn_that_lost_its_lease_ends_while_the_model_thinks(
        self, thinking: Thinking, alice: Person, rows: Rows, standin: StandIn, renewals: int
    ) -> None:
        """It does not wait for an answer that it could not store: 409. Its key does the turn."""
        thinking.until = [True] * renewals
        thinking.at_end = lambda: db_assertions.let_leases_run_out(rows, alice.id)
        late = alice.say(ADD, key="k")
        assert (late.status, late.headers["retry-after"], late.json["tool_calls"]) == (409, "1", [])
        assert example.rows_of(rows, alice.id) == []
        standin.reset()
        db_assertions.check_turn(rows, alice.id, ADD, alice.say(ADD, key="k"))


class TestTheBlock:
    """`renewing` ends with its block, and its block ends with the lease."""

    @pytest.fixture(autouse=True)
    def at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Renew without a pause."""
        self.renewed = asyncio.Event()

        def renew_and_report(database: Database, holder: LeaseHolder) -> bool:
            is_done = renew(database, holder)
            self.renewed.set()
            return is_done

        monkeypatch.setattr(renewal, "renew", renew_and_report)
        monkeypatch.setattr(renewal, "RENEW_SECONDS", 0.0)

    async def _work(self, turn: RunningTurn, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Return the result of the work, which a lease is renewed for. Check that no task is left."""
        others = asyncio.all_tasks()
        try:
            async with asyncio.timeout(20), renewing(turn.database, turn):
                return await work()
        finally:
            assert asyncio.all_tasks() == others

    async def _await_renewal(self) -> None:
        self.renewed.clear()
        await self.renewed.wait()

    def test_it_renews_until_the_work_is_done(self, turn: RunningTurn, rows: Rows) -> None:
        """The work's result is the block's."""

        async def work() -> str:
            for _ in range(3):
                await self._await_renewal()
            return "done"

        assert run(self._work(turn, work)) == "done"
        assert (until(rows, turn),) == turn.lease.ends

    def test_it_cancels_the_work_when_the_lease_is_lost(self, turn: RunningTurn, rows: Rows) -> None:
        """The caller gets LeaseLost, and is not cancelled itself."""
        rows.execute("delete from conversation where id = %s", [turn.id])
        cancelled = []

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        async def caller() -> int:
            with pytest.raises(LeaseLost):
                await self._work(turn, work)
            task = asyncio.current_task()
            assert task
            return task.cancelling()

        assert (run(caller()), cancelled) == (0, [True])

    def test_a_fault_of_the_renewal_ends_the_work(self, turn: RunningTurn, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without renewals the turn would lose its lease unnoticed."""
        monkeypatch.setattr(renewal, "renew", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(self._work(turn, asyncio.Event().wait))

    @pytest.mark.parametrize("error", [LookupError(), TimeoutError(), asyncio.CancelledError()], ids=repr)
    def test_an_error_of_the_work_passes(self, turn: RunningTurn, error: BaseException) -> None:
        """It is the same object."""

        async def work() -> None:
            await self._await_renewal()
            raise error

        with pytest.raises(type(error)) as raised:
            run(self._work(turn, work))
        assert raised.value is error

    def test_a_cancellation_from_outside_passes(self, turn: RunningTurn) -> None:
        """The server stops, for example."""

        async def caller() -> None:
            task = asyncio.ensure_future(self._work(turn, asyncio.Event().wait))
            await self._await_renewal()
            task.cancel()
            await task

        with pytest.raises(asyncio.CancelledError):
            run(caller())

    def test_at_the_deadline_it_renews_nothing(self, turn: RunningTurn, monkeypatch: pytest.MonkeyPatch) -> None:
        """The lease lasts longer already."""
        monkeypatch.setattr(renewal, "renew", lambda *_: pytest.fail("a renewal"))

        async def work() -> None:
            for _ in range(3):
                await asyncio.sleep(0)

        with deadline.within(0):
            run(self._work(turn, work))
