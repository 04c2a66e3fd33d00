"""One turn, in its order: receive, fetch history, build input, persist the message, run the agent, persist, return.

Two short transactions with the model between them: while it thinks, no connection and no lock is held.
A commit that the database did not answer is looked up as soon as it can be reached, and the turn goes on from there.
"""

import asyncio
from dataclasses import asdict, dataclass, replace
from typing import Final
from uuid import UUID

from aws_lambda_powertools import Logger
from sqlmodel import Session

from chat.agent import ChatAgent, Run
from chat.model_input import build_input
from chat.schemas import ChatResponse, view_calls
from chat.usage import counting
from taskchat import deadline
from taskchat.conversations import turns as conversations
from taskchat.conversations.history import Turn
from taskchat.conversations.lease import Lease, LeaseLost
from taskchat.conversations.turns import Begun, Finished, Request
from taskchat.database.transaction import Database, retry_while_away
from taskchat.errors import CommitOutcomeUnknown, OutOfTime, TaskchatError, Unavailable
from taskchat.limits import DayLeft, Limits
from taskchat.logs import to_problem
from taskchat.toolcalls.models import ToolCall

LAST_WORDS: Final = 1.0
"""Seconds in which an interrupted turn may still give its lease back: less than the margin."""

STOPPING_RETRY_AFTER: Final = 2
"""Seconds that a caller is asked to wait when the server stops: another one may be there at once."""

SETTLING: Final = 3.0
"""Seconds in which a turn may find out whether its beginning or its reply was committed."""

SCHEMA: Final = "taskchat.usage/1"
"""Version of the line that ends each attempt at a turn: a field may be added under it, never changed or taken away."""

logger = Logger()


@dataclass(frozen=True)
class Answer:
    """The outcome of a turn. `replayed` tells that it had been done before."""

    response: ChatResponse
    replayed: bool


@dataclass(frozen=True)
class TurnRunner:
    """What every turn needs and no turn changes."""

    database: Database
    agent: ChatAgent
    history_tokens: int
    deletions_per_turn: int
    limits: Limits

    async def run(self, user_id: str, turn_id: UUID, request: Request) -> Answer:
        """Do the turn before the deadline, once, however often it is asked for.

        Raises any TaskchatError. Once the message is known to be stored, it tells conversation, turn and calls.
        """
        if deadline.remaining() <= 0:
            raise OutOfTime
        begun, left = await self._begin(user_id, turn_id, request)
        if isinstance(begun, Finished):
            return Answer(_response(begun.conversation_id, begun.turn, begun.turn.calls), replayed=True)
        # The commit has persisted the message. From here on no connection is held but by a tool call and by the reply.
        calls = list(begun.turn.calls)
        run = Run(self.agent.tools, begun.lease, calls, self.deletions_per_turn, left, resumed=len(calls))
        return await self._finish(begun, run, request)

    async def _begin(self, user_id: str, turn_id: UUID, request: Request) -> tuple[Begun | Finished, DayLeft]:
        own: list[Lease] = []
        try:
            with self.database.transaction(user_id) as session:
                # Before all else, here as at the end: whoever holds a conversation waits for nobody's allowance.
                left = self.limits.spend(session, user_id)
                begun = self._take_lease(session, user_id, turn_id, request, own)
        except CommitOutcomeUnknown:
            begun = await self._begin_again(request, own)
        return begun, left

    async def _begin_again(self, request: Request, own: list[Lease]) -> Begun | Finished:
        """Begin a turn whose beginning or reply was committed or not. Its allowance was spent the first time."""

        def attempt() -> Begun | Finished:
            with self.database.transaction(own[0].user_id) as session:
                return self._take_lease(session, own[0].user_id, own[0].turn_id, request, own)

        return await retry_while_away(attempt, SETTLING)

    def _take_lease(
        self, session: Session, user_id: str, turn_id: UUID, request: Request, own: list[Lease]
    ) -> Begun | Finished:
        """Begin the turn, and add its lease to those that this process may hold."""
        begun = conversations.begin(session, user_id, turn_id, request, self.history_tokens, own)
        if isinstance(begun, Begun):
            own.append(begun.lease)
        return begun

    async def _finish(self, begun: Begun, run: Run, request: Request) -> Answer:
        try:
            if deadline.remaining() <= 0:
                raise OutOfTime
            async with asyncio.timeout(deadline.remaining()):
                with counting(run.usage):
                    reply = await self.agent.execute(run, build_input(begun.history, begun.turn))
            turn = await self._store(begun, run, reply, request)
        except (Exception, asyncio.CancelledError) as error:
            problem = _problem(error)
            await self._interrupt(run, problem)
            raise problem from error if error is not problem else error.__cause__
        logger.info("turn finished", extra=_account(run))
        return Answer(_response(run.lease.conversation_id, turn, run.calls), replayed=False)

    async def _store(self, begun: Begun, run: Run, reply: str, request: Request) -> Turn:
        """Store the reply, and return the turn as it is then."""
        try:
            self._commit_reply(begun, run, reply)
        except CommitOutcomeUnknown:
            again = await self._begin_again(request, [run.lease])
            if isinstance(again, Finished):
                run.calls = again.turn.calls
                return again.turn
            run.lease = again.lease
            if len(again.turn.calls) != len(run.calls):  # another attempt went on meanwhile: the reply is not its own
                raise LeaseLost(retry_after=1) from None
            self._commit_reply(again, run, reply)
        return replace(begun.turn, reply=reply)

    def _commit_reply(self, begun: Begun, run: Run, reply: str) -> None:
        with self.database.transaction(run.lease.user_id) as session:
            self.limits.record(session, run.lease.user_id, run.usage.tokens)
            conversations.finish(session, begun, reply, asdict(run.usage))

    async def _interrupt(self, run: Run, problem: TaskchatError) -> None:
        """Let the next turn in, and note how far this one came: with its key it can be taken up again."""
        what = {"problem": problem.slug, "detail": problem.detail}
        logger.warning("turn interrupted", extra=_account(run) | what)
        try:
            with deadline.within(LAST_WORDS):
                await retry_while_away(lambda: self._release(run), LAST_WORDS)
        except TaskchatError as failure:  # the lease is another's by now, or will be: it has an expiry
            logger.warning("lease not released", extra={"problem": failure.slug})
        problem.members |= _progress(run)

    def _release(self, run: Run) -> None:
        """Settle what the turn has done, and give its lease back."""
        with self.database.transaction(run.lease.user_id) as session:
            self.limits.record(session, run.lease.user_id, run.usage.tokens)
            settled = [(call, call.settle(session)["outcome"]) for call in run.unsettled]
            # Read again: if this attempt has lost its lease, another one may have made calls.
            calls = conversations.recorded_calls(session, run.lease)
            if not run.unsettled:
                run.calls = calls
            run.lease.release(session)
        run.calls, run.unsettled = calls, []
        for call, outcome in settled:
            call.report(outcome)


def _problem(error: Exception | asyncio.CancelledError) -> TaskchatError:
    """Return what ended the turn. A server that stops cancels the turns that it will not wait for any longer."""
    if isinstance(error, asyncio.CancelledError):
        return Unavailable(retry_after=STOPPING_RETRY_AFTER)
    return OutOfTime() if isinstance(error, TimeoutError) else to_problem(error)


def _response(conversation_id: UUID, turn: Turn, calls: list[ToolCall]) -> ChatResponse:
    return ChatResponse(
        conversation_id=conversation_id,
        turn_id=turn.turn_id,
        response=str(turn.reply),
        tool_calls=view_calls(calls),
    )


def _account(run: Run) -> dict[str, object]:
    """For the log: whose turn it was, and what this attempt at it cost."""
    return {
        "schema": SCHEMA,
        "turn_id": str(run.lease.turn_id),
        "conversation_id": str(run.lease.conversation_id),
        "actor": run.lease.user_id,
        **asdict(run.usage),
    }


def _progress(run: Run) -> dict[str, object]:
    """How far the turn came. Says nothing of its calls while it is unknown whether one of them took effect."""
    ids = {"conversation_id": str(run.lease.conversation_id), "turn_id": str(run.lease.turn_id)}
    if run.unsettled:
        return dict(ids)
    return ids | {"tool_calls": [call.model_dump() for call in view_calls(run.calls)]}
