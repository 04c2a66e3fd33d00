"""Find the turn that runs in a conversation, and read a turn that another process has ended."""

from typing import Final
from uuid import UUID

from sqlalchemy import func, select
from sqlmodel import Session

from taskchat.conversations.history import CALLS_OF_TURN, MESSAGES_OF_TURN, join_turns
from taskchat.conversations.models import CONVERSATION, THIS_CONVERSATION
from taskchat.conversations.turns import Finished

_RUNNING_TURN: Final = select(CONVERSATION.c.turn_id).where(
    THIS_CONVERSATION, CONVERSATION.c.lease_until > func.clock_timestamp()
)

STATEMENTS: Final = (_RUNNING_TURN,)


def running_turn(session: Session, user_id: str, conversation_id: UUID) -> UUID | None:
    """Return the id of the turn that runs in the conversation."""
    return session.execute(_RUNNING_TURN, {"of_user": user_id, "of_id": conversation_id}).scalar_one_or_none()


def stored_turn(session: Session, user_id: str, turn_id: UUID) -> Finished | None:
    """Return a turn that is done, or None for one without a reply."""
    this_turn = {"of_user": user_id, "of_turn": turn_id}
    messages = session.execute(MESSAGES_OF_TURN, this_turn).all()
    calls = list(session.scalars(CALLS_OF_TURN, this_turn))
    if not any(message.role == "assistant" for message in messages):
        return None
    (turn,) = join_turns(list(messages), calls)
    return Finished(messages[0].conversation_id, turn)
