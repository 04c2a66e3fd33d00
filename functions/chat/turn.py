"""Run one turn: read the history and store the message, build the input, run the agent, store the reply.

It reports each step as an event. `chat.running` hands the events to the clients.

One transaction reads the history and stores the message, another one stores the reply. The model is called between
the two: while it works, no connection and no lock is held.
After a commit without an answer, the turn looks up what the database holds, and goes on from there.
"""

import asyncio
from dataclasses import asdict, dataclass, replace
from typing import Final
from uuid import UUID

from aws_lambda_powertools import Logger
from sqlmodel import Session

from chat.agent import ChatAgent, Run
from chat.model_input import build_input
from chat.schemas import view_calls
from chat.stream.feed import Feed, problem_of
from chat.stream.report import TurnReport
from chat.usage import Usage, counting
from taskchat import deadline, measures
from taskchat.conversations.history import Turn
from taskchat.conversations.lease import Lease, LeaseLost
from taskchat.conversations.renewal import renewing
from taskchat.conversations.turns import Begun, Finished, Request, begin, finish, recorded_calls
from taskchat.database.transaction import Database, before_commit, retry_while_unavailable
from taskchat.errors import CommitOutcomeUnknown, OutOfTime, TaskchatError
from taskchat.limits import DayLeft, Limits

RELEASE_SECONDS: Final = 1.0
"""Seconds in which an interrupted turn may still release its lease. Less than gateway.MARGIN, which also holds the
answer."""

SCHEMA: Final = "taskchat.usage/1"
"""Version of the log line that ends each attempt at a turn. A version may get new fields; none changes or goes."""

logger = Logger()


@dataclass(frozen=True)
class TurnRunner:
    """Runs turns. It holds what all turns share, and no turn changes it."""

    database: Database
    agent: ChatAgent
    history_tokens: int
    deletions_per_turn: int
    limits: Limits

    async def begin(self, user_id: str, turn_id: UUID, request: Request) -> tuple[Begun | Finished, DayLeft]:
        """Take the lease, and store the message. Return the turn as it was if it is done. Raises any TaskchatError."""
        if deadline.remaining() <= 0:
            raise OutOfTime
        try:
            with measures.current().timing("begin_ms"), self.database.transaction(user_id) as session:
                # First, here as at the end: a turn that holds a conversation must not wait for a row of the limits.
                left = self.limits.spend(session, user_id)
                begun = begin(session, user_id, turn_id, request, self.history_tokens)
        except CommitOutcomeUnknown:
            if isinstance(begun, Begun):  # a stored answer stands in any case
                begun = await self._begin_again(request, begun.lease)
        if isinstance(begun, Finished):
            ids = _ids(user_id, turn_id, begun.conversation_id)
            logger.info("turn replayed", extra=_end(ids, Usage(), "replayed", 0))
        return begun, left

    async def run(self, begun: Begun, left: DayLeft, request: Request, feed: Feed, *, is_streamed: bool) -> None:
        """Run a turn that has begun, before the deadline, and add its events to the feed.

        Raises any TaskchatError. The error names conversation, turn and calls.
        """
        # The commit has persisted the message. From here on only a tool call and the reply hold a connection.
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
        turn = await self._finish(begun, run, request)
        run.report.finish(run.lease.conversation_id, replace(turn, calls=run.calls))

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

    async def _finish(self, begun: Begun, run: Run, request: Request) -> Turn:
        measures.current().turn_ids = _ids_of(run)
        try:
            if deadline.remaining() <= 0:
                raise OutOfTime
            async with asyncio.timeout(deadline.remaining()), renewing(self.database, run):
                with counting(run.usage):
                    reply = await self.agent.execute(run, build_input(begun.history, begun.turn))
            turn = await self._store(begun, run, reply, request)
        except (Exception, asyncio.CancelledError) as error:
            problem = problem_of(error)
            await self._interrupt(run, problem)
            raise problem from error if error is not problem else error.__cause__
        logger.info("turn finished", extra=_end(_ids_of(run), run.usage, "finished", run.resumed))
        return turn

    async def _store(self, begun: Begun, run: Run, reply: str, request: Request) -> Turn:
        """Store the reply, and return the turn with it."""
        try:
            self._commit_reply(begun.turn, run, reply)
        except CommitOutcomeUnknown:
            again = await self._begin_again(request, run.lease, begun.turn)
            if isinstance(again, Finished):
                run.calls = again.turn.calls
                return again.turn
            run.lease = again.lease
            if len(again.turn.calls) != len(run.calls):  # another attempt made calls that this reply knows nothing of
                raise LeaseLost(retry_after=1) from None
            self._commit_reply(again.turn, run, reply)
        return replace(begun.turn, reply=reply)

    def _commit_reply(self, turn: Turn, run: Run, reply: str) -> None:
        with measures.current().timing("finish_ms"), self.database.transaction(run.lease.user_id) as session:
            self._count(session, run)
            finish(session, run.lease, turn, reply, asdict(run.usage))

    async def _interrupt(self, run: Run, problem: TaskchatError) -> None:
        """Release the lease, and record how far the turn came: a request with its key goes on from there."""
        failure = {"problem": problem.slug, "detail": problem.detail}
        logger.warning("turn interrupted", extra=_end(_ids_of(run), run.usage, problem.slug, run.resumed) | failure)
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


def _ids_of(run: Run) -> dict[str, str]:
    return _ids(run.lease.user_id, run.lease.turn_id, run.lease.conversation_id)


def _ids(user_id: str, turn_id: UUID, conversation_id: UUID) -> dict[str, str]:
    """Return the log fields that name a turn and its user."""
    return {"turn_id": str(turn_id), "conversation_id": str(conversation_id), "actor": user_id}


def _end(ids: dict[str, str], usage: Usage, outcome: str, resumed: int) -> dict[str, object]:
    """Return the log fields of a turn's end: the cost and the times of this attempt. Keep them for the metrics."""
    request = measures.current()
    request.turn = {
        "schema": SCHEMA,
        **ids,
        **asdict(usage),
        "outcome": outcome,
        "resumed": resumed,
        "duration_ms": request.elapsed_ms(),
        "first_event_ms": request.first_event_ms,
        "begin_ms": request.begin_ms,
        "finish_ms": request.finish_ms,
        "database_ms": request.database_ms,
    }
    return dict(request.turn)


def _progress(run: Run) -> dict[str, object]:
    """Return how far the turn came, without its calls while the outcome of one is unknown."""
    ids = {"conversation_id": str(run.lease.conversation_id), "turn_id": str(run.lease.turn_id)}
    if run.unsettled:
        return dict(ids)
    return ids | {"tool_calls": [call.model_dump() for call in view_calls(run.calls)]}
