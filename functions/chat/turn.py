"""One turn, in its order: receive, fetch history, build input, persist the message, run the agent, persist, return.

Two short transactions with the model between them: while it thinks, no connection and no lock is held.
"""

import asyncio
from dataclasses import asdict, dataclass, replace
from typing import Final
from uuid import UUID

from agents import TResponseInputItem
from aws_lambda_powertools import Logger

from chat.agent import ChatAgent, Run, build_input
from chat.model import counting
from chat.schemas import ChatResponse, view_calls
from taskchat import deadline
from taskchat.conversations import turns as conversations
from taskchat.conversations.turns import Begun, Finished, Lease, Request, Turn
from taskchat.database.engine import Database
from taskchat.errors import OutOfTime, TaskchatError, Unavailable
from taskchat.limits import Limits
from taskchat.logs import to_problem
from taskchat.toolcalls.models import ToolCall

LAST_WORDS: Final = 1.0
"""Seconds in which an interrupted turn may still give its lease back: less than the margin."""

STOPPING_RETRY_AFTER: Final = 2
"""Seconds that a caller is asked to wait when the server stops: another one may be there at once."""

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

        Raises any TaskchatError. From the moment the message is stored, it tells conversation, turn and calls.
        """
        if deadline.remaining() <= 0:
            raise OutOfTime
        with self.database.transaction(user_id) as session:
            # Before all else, here as at the end: whoever holds a conversation waits for nobody's allowance.
            left = self.limits.spend(session, user_id)
            begun = conversations.begin(session, user_id, turn_id, request, self.history_tokens)
            if isinstance(begun, Finished):
                return Answer(_response(begun.conversation_id, begun.turn, begun.turn.calls), replayed=True)
            items = build_input(begun.history, begun.turn)
        # The commit has persisted the message. From here on no connection is held but by a tool call and by the reply.
        run = Run(self.agent.tools, begun.lease, list(begun.turn.calls), self.deletions_per_turn, left)
        return await self._finish(begun, run, items)

    async def _finish(self, begun: Begun, run: Run, items: list[TResponseInputItem]) -> Answer:
        try:
            if deadline.remaining() <= 0:
                raise OutOfTime
            async with asyncio.timeout(deadline.remaining()):
                with counting(run.usage):
                    reply = await self.agent.execute(run, items)
            with self.database.transaction(run.lease.user_id) as session:
                self.limits.record(session, run.lease.user_id, run.usage.tokens)
                conversations.finish(session, begun, reply, asdict(run.usage))
        except (Exception, asyncio.CancelledError) as error:
            problem = _problem(error)
            self._interrupt(run, problem)
            raise problem from error if error is not problem else error.__cause__
        logger.info("turn finished", extra=_account(run))
        turn = replace(begun.turn, reply=reply)
        return Answer(_response(run.lease.conversation_id, turn, run.calls), replayed=False)

    def _interrupt(self, run: Run, problem: TaskchatError) -> None:
        """Let the next turn in, and note how far this one came: with its key it can be taken up again."""
        what = {"problem": problem.slug, "detail": problem.detail}
        logger.warning("turn interrupted", extra=_account(run) | what)
        calls = run.calls
        try:
            with deadline.within(LAST_WORDS), self.database.transaction(run.lease.user_id) as session:
                self.limits.record(session, run.lease.user_id, run.usage.tokens)
                # Read again: a commit whose answer was lost has taken effect all the same.
                calls = conversations.recorded_calls(session, run.lease)
                run.lease.release(session)
        except TaskchatError as failure:  # the lease is another's by now, or will be: it has an expiry
            logger.warning("lease not released", extra={"problem": failure.slug})
        problem.members |= _progress(run.lease, calls)


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


def _progress(lease: Lease, calls: list[ToolCall]) -> dict[str, object]:
    return {
        "conversation_id": str(lease.conversation_id),
        "turn_id": str(lease.turn_id),
        "tool_calls": [call.model_dump() for call in view_calls(calls)],
    }
