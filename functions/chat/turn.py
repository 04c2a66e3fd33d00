"""Run one turn: read the history and store the message, build the input, run the agent, store the reply.

A turn is a list of events (chat.stream). The JSON answer is what its last event says.

One transaction reads the history and stores the message, another one stores the reply. The model is called between
the two: while it works, no connection and no lock is held.
After a commit without an answer, the turn looks up what the database holds, and goes on from there.
"""

import asyncio
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Final
from uuid import UUID

from aws_lambda_powertools import Logger
from sqlmodel import Session

from chat.agent import ChatAgent, Run
from chat.model_input import build_input
from chat.schemas import ChatResponse, view_calls
from chat.stream import events
from chat.stream.feed import Feed, problem_of
from chat.stream.live import LiveTurns
from chat.stream.report import TurnReport
from chat.usage import counting
from taskchat import deadline
from taskchat.conversations.history import Turn
from taskchat.conversations.lease import Lease, LeaseLost
from taskchat.conversations.running import running_turn, stored_turn
from taskchat.conversations.turns import Begun, Finished, Request, begin, finish, recorded_calls
from taskchat.database.transaction import Database, before_commit, retry_while_unavailable
from taskchat.errors import CommitOutcomeUnknown, OutOfTime, TaskchatError, TurnInProgress, Unavailable
from taskchat.limits import DayLeft, Limits
from taskchat.toolcalls.models import ToolCall

RELEASE_SECONDS: Final = 1.0
"""Seconds in which an interrupted turn may still release its lease. Less than gateway.MARGIN, which also holds the
answer."""

LOOK_SECONDS: Final = 1.0
"""Seconds between two looks at a turn that another process runs."""

INTERRUPTED: Final = "The turn was interrupted. The same request goes on from there."

SCHEMA: Final = "taskchat.usage/1"
"""Version of the log line that ends each attempt at a turn. A version may get new fields; none changes or goes."""

logger = Logger()


@dataclass(frozen=True)
class TurnResult:
    """The response of a turn. `replayed` is true if an earlier request did the turn."""

    response: ChatResponse
    replayed: bool


@dataclass(frozen=True)
class TurnRunner:
    """Runs turns. It holds what all turns share, and the events of those that run."""

    database: Database
    agent: ChatAgent
    history_tokens: int
    deletions_per_turn: int
    limits: Limits
    live: LiveTurns = field(default_factory=LiveTurns)

    async def run(self, user_id: str, turn_id: UUID, request: Request) -> TurnResult:
        """Run the turn once, before the deadline, however often it is requested.

        Raises any TaskchatError. Once the message is known to be stored, the error names conversation, turn and calls.
        """
        feed = await self._start(user_id, turn_id, request, is_streamed=False)
        last = await feed.last()
        if isinstance(last, events.Failed):
            raise last.problem
        return TurnResult(last.response, feed.accepted.replayed)

    async def stream(self, user_id: str, turn_id: UUID, request: Request) -> Feed:
        """Begin the turn, or find it where it runs or is stored, and return its events. Raises all that refuses it.

        While another process runs it, they go on when that process has ended it.
        """
        if live := self.live.find(user_id, turn_id, request):
            return live
        try:
            return await self._start(user_id, turn_id, request, is_streamed=True)
        except TurnInProgress:
            conversation_id = request.conversation_of(turn_id)
            if self.running_turn(user_id, conversation_id) != turn_id:
                raise
            feed = Feed(events.Accepted(conversation_id, turn_id, replayed=False))
            self.live.run(user_id, turn_id, request, feed, partial(self._pick_up, user_id, turn_id, request))
            return feed

    def follow(self, user_id: str, conversation_id: UUID) -> Feed | None:
        """Return the events of the turn that runs in the conversation, here or in another process. It is only read."""
        if live := self.live.find_in(user_id, conversation_id):
            return live
        turn_id = self.running_turn(user_id, conversation_id)
        if turn_id is None:
            return None
        feed = Feed(events.Accepted(conversation_id, turn_id, replayed=False))
        feed.run(partial(self._read, user_id, turn_id))
        return feed

    def running_turn(self, user_id: str, conversation_id: UUID) -> UUID | None:
        """Return the id of the turn that runs in the conversation."""
        with self.database.transaction(user_id) as session:
            return running_turn(session, user_id, conversation_id)

    async def _start(self, user_id: str, turn_id: UUID, request: Request, *, is_streamed: bool) -> Feed:
        if deadline.remaining() <= 0:
            raise OutOfTime
        begun, left = await self._begin(user_id, turn_id, request)
        if isinstance(begun, Finished):
            feed = Feed(events.Accepted(begun.conversation_id, turn_id, replayed=True))
            _report_stored(feed, begun)
            return feed
        # The commit has persisted the message. From here on only a tool call and the reply hold a connection.
        feed = Feed(events.Accepted(begun.lease.conversation_id, turn_id, replayed=False))
        work = partial(self._work, begun, left, request, is_streamed=is_streamed)
        self.live.run(user_id, turn_id, request, feed, work)
        return feed

    async def _work(self, begun: Begun, left: DayLeft, request: Request, feed: Feed, *, is_streamed: bool) -> None:
        """Run a turn that has begun."""
        run = Run(
            tools=self.agent.tools,
            turn=begun.turn,
            lease=begun.lease,
            calls=list(begun.turn.calls),
            deletions_per_turn=self.deletions_per_turn,
            left=left,
            report=TurnReport(feed),
            is_streamed=is_streamed,
            resumed=len(begun.turn.calls),
        )
        run.report.add_calls(run.calls)
        response = await self._finish(begun, run, request)
        feed.add(events.Finished(response))

    async def _pick_up(self, user_id: str, turn_id: UUID, request: Request, feed: Feed) -> None:
        """Wait while another process runs the turn, and report what it did. If it was interrupted, go on with it."""
        await self._wait_for_end(user_id, turn_id, feed)
        begun, left = await self._begin(user_id, turn_id, request)
        if isinstance(begun, Finished):
            return _report_stored(feed, begun)
        await self._work(begun, left, request, feed, is_streamed=True)

    async def _read(self, user_id: str, turn_id: UUID, feed: Feed) -> None:
        """Wait while another process runs the turn, and report what it did."""
        await self._wait_for_end(user_id, turn_id, feed)
        with self.database.transaction(user_id) as session:
            done = stored_turn(session, user_id, turn_id)
        if done is None:
            raise Unavailable(INTERRUPTED, retry_after=1)
        _report_stored(feed, done)

    async def _wait_for_end(self, user_id: str, turn_id: UUID, feed: Feed) -> None:
        """Wait until no process runs the turn. Raises TurnInProgress at the deadline."""
        while self.running_turn(user_id, feed.accepted.conversation_id) == turn_id:
            if deadline.remaining() <= LOOK_SECONDS:
                raise TurnInProgress(retry_after=1)
            await asyncio.sleep(LOOK_SECONDS)

    async def _begin(self, user_id: str, turn_id: UUID, request: Request) -> tuple[Begun | Finished, DayLeft]:
        try:
            with self.database.transaction(user_id) as session:
                # First, here as at the end: a turn that holds a conversation must not wait for a row of the limits.
                left = self.limits.spend(session, user_id)
                begun = begin(session, user_id, turn_id, request, self.history_tokens)
        except CommitOutcomeUnknown:
            if isinstance(begun, Begun):  # a stored answer stands in any case
                begun = await self._begin_again(request, begun.lease)
        return begun, left

    async def _begin_again(self, request: Request, lease: Lease, stored: Turn | None = None) -> Begun | Finished:
        """Begin a turn again whose commit had no answer. Its allowance was spent the first time.

        Raises LeaseLost, and stores nothing, if the `stored` message has gone: its person has been erased meanwhile.
        """
        leases = [lease]  # those that this turn may hold

        def attempt() -> Begun | Finished:
            with self.database.transaction(lease.user_id) as session:
                begun = begin(session, lease.user_id, lease.turn_id, request, self.history_tokens, own=leases)
                if isinstance(begun, Begun):
                    if stored and begun.turn.said_at != stored.said_at:
                        raise LeaseLost(retry_after=1)
                    leases.append(begun.lease)
            return begun

        return await retry_while_unavailable(attempt)

    async def _finish(self, begun: Begun, run: Run, request: Request) -> ChatResponse:
        try:
            if deadline.remaining() <= 0:
                raise OutOfTime
            async with asyncio.timeout(deadline.remaining()):
                with counting(run.usage):
                    reply = await self.agent.execute(run, build_input(begun.history, begun.turn))
            turn = await self._store(begun, run, reply, request)
        except (Exception, asyncio.CancelledError) as error:
            problem = problem_of(error)
            await self._interrupt(run, problem)
            raise problem from error if error is not problem else error.__cause__
        logger.info("turn finished", extra=_log_fields(run))
        run.report.add_calls(run.calls)
        run.report.end(str(turn.reply))
        return _response(run.lease.conversation_id, turn, run.calls)

    async def _store(self, begun: Begun, run: Run, reply: str, request: Request) -> Turn:
        """Store the reply, and return the turn with it."""
        try:
            self._commit_reply(begun, run, reply)
        except CommitOutcomeUnknown:
            again = await self._begin_again(request, run.lease, begun.turn)
            if isinstance(again, Finished):
                run.calls = again.turn.calls
                return again.turn
            run.lease = again.lease
            if len(again.turn.calls) != len(run.calls):  # another attempt made calls that this reply knows nothing of
                raise LeaseLost(retry_after=1) from None
            self._commit_reply(again, run, reply)
        return replace(begun.turn, reply=reply)

    def _commit_reply(self, begun: Begun, run: Run, reply: str) -> None:
        with self.database.transaction(run.lease.user_id) as session:
            self._count(session, run)
            finish(session, begun, reply, asdict(run.usage))

    async def _interrupt(self, run: Run, problem: TaskchatError) -> None:
        """Release the lease, and record how far the turn came: a request with its key goes on from there."""
        failure = {"problem": problem.slug, "detail": problem.detail}
        logger.warning("turn interrupted", extra=_log_fields(run) | failure)
        try:
            with deadline.within(RELEASE_SECONDS):
                await retry_while_unavailable(lambda: self._release(run))
        except TaskchatError as error:  # another turn has the lease by now, or will have it when it expires
            logger.warning("lease not released", extra={"problem": error.slug})
        if not run.unsettled:
            run.report.add_calls(run.calls)
        problem.members |= _progress(run)

    def _release(self, run: Run) -> None:
        """Release the lease, and count the turn's tokens in any case. Raises LeaseLost."""
        try:
            self._settle_and_release(run)
        except LeaseLost:
            # Nothing of that transaction may stay. An earlier commit may have counted the tokens, and without the lease
            # nothing shows if it did: they are not counted again then.
            if not run.may_be_counted:
                with self.database.transaction(run.lease.user_id) as session:
                    self._count(session, run)
            raise

    def _count(self, session: Session, run: Run) -> None:
        """Add the turn's tokens to the user's day."""
        self.limits.record(session, run.lease.user_id, run.usage.tokens)
        before_commit(session, run.expect_count)

    def _settle_and_release(self, run: Run) -> None:
        """Look up the outcome of unsettled calls, and release the lease. Raises LeaseLost, and stores nothing then."""
        with self.database.transaction(run.lease.user_id) as session:
            self._count(session, run)
            settled = [(call, call.settle(session)["outcome"]) for call in run.unsettled]
            # Read again: after this attempt lost its lease, another one may have made calls.
            calls = recorded_calls(session, run.lease)
            if not run.unsettled:
                run.calls = calls
            run.lease.release(session)
        run.calls, run.unsettled = calls, []
        for call, outcome in settled:
            call.report(outcome)


def _report_stored(feed: Feed, done: Finished) -> None:
    """Report a turn as it is stored."""
    report = TurnReport(feed)
    report.add_calls(done.turn.calls)
    report.end(str(done.turn.reply))
    feed.add(events.Finished(_response(done.conversation_id, done.turn, done.turn.calls)))


def _response(conversation_id: UUID, turn: Turn, calls: list[ToolCall]) -> ChatResponse:
    return ChatResponse(
        conversation_id=conversation_id,
        turn_id=turn.turn_id,
        response=str(turn.reply),
        tool_calls=view_calls(calls),
    )


def _log_fields(run: Run) -> dict[str, object]:
    """Return the log fields of a turn: its user, its ids, and the cost of this attempt."""
    return {
        "schema": SCHEMA,
        "turn_id": str(run.lease.turn_id),
        "conversation_id": str(run.lease.conversation_id),
        "actor": run.lease.user_id,
        **asdict(run.usage),
    }


def _progress(run: Run) -> dict[str, object]:
    """Return how far the turn came, without its calls while the outcome of one is unknown."""
    ids = {"conversation_id": str(run.lease.conversation_id), "turn_id": str(run.lease.turn_id)}
    if run.unsettled:
        return dict(ids)
    return ids | {"tool_calls": [call.model_dump() for call in view_calls(run.calls)]}
