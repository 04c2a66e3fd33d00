"""Delete a conversation with its messages. Its tool calls stay as audit, without any text.

The turns of a conversation's messages lead to its calls, by the keys of both tables. No statement reads all calls of
the person.
"""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import any_, bindparam, delete, func, literal, select, update
from sqlmodel import Session

from taskchat.conversations.lease import LOCK_REMAINING, lock_free
from taskchat.conversations.models import CONVERSATION, MESSAGE, THIS_CONVERSATION
from taskchat.database.types import SafeJson
from taskchat.toolcalls.models import TOOL_CALL, without_made_up_name

DELETED: Final = {"deleted": "The person deleted this conversation."}
"""The result of a call whose conversation was deleted."""

_HERE: Final = (MESSAGE.c.user_id == bindparam("of_user"), MESSAGE.c.conversation_id == bindparam("of_id"))
_TURNS: Final = select(MESSAGE.c.turn_id).where(*_HERE).distinct()
_REDACTED: Final = (
    update(TOOL_CALL)
    .where(
        TOOL_CALL.c.user_id == bindparam("of_user"),
        TOOL_CALL.c.turn_id == any_(func.array(_TURNS.scalar_subquery())),
    )
    .values(
        arguments=literal({}, SafeJson),
        result=literal(DELETED, SafeJson),
        tool=without_made_up_name(TOOL_CALL.c.tool),
    )
    .returning(TOOL_CALL.c.call_id)
    .cte("redacted")
)
_GONE: Final = delete(CONVERSATION).where(THIS_CONVERSATION).returning(CONVERSATION.c.id).cte("gone")
# The parts of one statement see the same rows: the messages are counted although their conversation goes.
_DELETE: Final = select(
    select(func.count()).select_from(_TURNS.subquery()).scalar_subquery().label("turns"),
    select(func.count()).select_from(_REDACTED).scalar_subquery().label("tool_calls"),
).add_cte(_GONE)

STATEMENTS: Final = (LOCK_REMAINING, _DELETE)
"""The statements that a process prepares, so that a deletion takes two roundtrips and its commit another."""


def delete_conversation(
    session: Session, user_id: str, conversation_id: UUID, tool_names: Sequence[str]
) -> dict[str, int]:
    """Delete a conversation, and return the numbers of its turns and tool calls.

    A call keeps its tool's name only if it is among `tool_names`. Raises NotFound, or TurnInProgress while a turn runs.
    """
    here: dict[str, Any] = {"of_user": user_id, "of_id": conversation_id}
    lock_free(session, here)
    # A later statement: it sees each call that was committed before the lock.
    return dict(session.execute(_DELETE, here | {"tool_names": list(tool_names)}).mappings().one())
