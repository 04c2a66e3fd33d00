"""Read a person's conversations and their turns in pages, and rename one.

A page begins after the last row of the page before, not at a number of rows. So no row comes twice, and none is left
out, while other rows come and go.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import Integer, Row, Uuid, and_, any_, bindparam, func, select, true, tuple_, update
from sqlmodel import Session

from taskchat import cursor
from taskchat.conversations.models import CONVERSATION, MESSAGE, THIS_CONVERSATION
from taskchat.database.transaction import Batch
from taskchat.database.types import SafeText, Timestamp
from taskchat.errors import NotFound
from taskchat.toolcalls.models import TOOL_CALL

FIRST_PLACE: Final = (datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1))
FIRST_POSITION: Final = 2**31 - 1
"""The places before the newest conversation and before the newest message."""

# Values are parameters, as in history.py. One statement reads the lease with the messages: a turn that ended between
# two statements would look interrupted.
_RUNNING: Final = func.coalesce(CONVERSATION.c.lease_until > func.clock_timestamp(), False)
_SHOWN: Final = (
    CONVERSATION.c.id,
    CONVERSATION.c.title,
    CONVERSATION.c.created_at,
    CONVERSATION.c.updated_at,
    _RUNNING.label("running"),
)
_BEFORE_PLACE: Final = tuple_(CONVERSATION.c.updated_at, CONVERSATION.c.id) < tuple_(
    bindparam("at", type_=Timestamp), bindparam("before_id", type_=Uuid)
)
_PAGE: Final = (
    select(*_SHOWN)
    .where(CONVERSATION.c.user_id == bindparam("of_user"), _BEFORE_PLACE)
    .order_by(CONVERSATION.c.updated_at.desc(), CONVERSATION.c.id.desc())
    .limit(bindparam("most", type_=Integer))
)
_NEWEST_MESSAGES: Final = (
    select(MESSAGE)
    .where(
        MESSAGE.c.user_id == bindparam("of_user"),
        MESSAGE.c.conversation_id == bindparam("of_id"),
        MESSAGE.c.position < bindparam("before_position"),
    )
    .order_by(MESSAGE.c.position.desc())
    .limit(bindparam("most", type_=Integer))
)
_SAID: Final = _NEWEST_MESSAGES.lateral("said")
_CONVERSATION_WITH_MESSAGES: Final = (
    select(
        *_SHOWN,
        CONVERSATION.c.turn_id.label("running_turn"),
        *(_SAID.c[name] for name in ("turn_id", "position", "role", "content")),
        _SAID.c.created_at.label("said_at"),
    )
    .select_from(CONVERSATION.outerjoin(_SAID, true()))
    .where(THIS_CONVERSATION)
    .order_by(_SAID.c.position.desc())
)
_TURNS_ON_PAGE: Final = func.array(_NEWEST_MESSAGES.with_only_columns(MESSAGE.c.turn_id).scalar_subquery())
_CALLS_ON_PAGE: Final = (
    select(TOOL_CALL)
    .where(and_(TOOL_CALL.c.user_id == bindparam("of_user"), TOOL_CALL.c.turn_id == any_(_TURNS_ON_PAGE)))
    .order_by(TOOL_CALL.c.turn_id, TOOL_CALL.c.position)
)
_RENAME: Final = (
    update(CONVERSATION)
    .where(THIS_CONVERSATION)
    .values(title=bindparam("new_title", type_=SafeText))
    .returning(*_SHOWN)
)

STATEMENTS: Final = (_PAGE, _CONVERSATION_WITH_MESSAGES, _CALLS_ON_PAGE, _RENAME)
"""The statements that a process prepares, so that each read takes one roundtrip and its commit another."""


@dataclass(frozen=True)
class TurnRows:
    """Hold the rows of one turn: the message, the reply if there is one, and the calls."""

    said: Row[Any]
    reply: Row[Any] | None
    calls: list[Row[Any]]

    @property
    def status(self) -> Literal["done", "running", "interrupted"]:
        """Return `done`, `running`, or `interrupted`: a request with its key goes on from there."""
        if self.reply:
            return "done"
        is_running = self.said.running and self.said.running_turn == self.said.turn_id
        return "running" if is_running else "interrupted"


def read_page(session: Session, user_id: str, after: str | None, limit: int) -> tuple[list[Row[Any]], str | None]:
    """Return the conversations by last activity, newest first, and the next page's cursor. Raises BadCursor."""
    at, before_id = _read_cursor(after, _moment, _uuid) if after is not None else FIRST_PLACE
    values = {"of_user": user_id, "at": at, "before_id": before_id, "most": limit + 1}
    found = list(session.execute(_PAGE, values))
    page = found[:limit]
    is_last = len(found) == len(page)
    return page, None if is_last else cursor.write(page[-1].updated_at.isoformat(), str(page[-1].id))


def read_turns(
    session: Session, user_id: str, conversation_id: UUID, after: str | None, limit: int
) -> tuple[Row[Any], list[TurnRows]]:
    """Return the conversation and its turns, newest first, one more than `limit` if there are older ones.

    Raises NotFound, or BadCursor. `cursor_after` makes the cursor that leads to the turns before one of them.
    """
    (before,) = _read_cursor(after, _position) if after is not None else [FIRST_POSITION]
    here = {"of_user": user_id, "of_id": conversation_id, "before_position": before, "most": 2 * (limit + 1)}
    batch = Batch(session)
    messages = batch.add(_CONVERSATION_WITH_MESSAGES, here)
    calls = batch.add(_CALLS_ON_PAGE, here)
    batch.send()
    conversation = messages.first()
    if conversation is None:
        raise NotFound
    return conversation, _join(messages.rows, calls.rows)[: limit + 1]


def cursor_after(turn: TurnRows) -> str:
    """Return the cursor of the page that begins after the turn."""
    return cursor.write(turn.said.position)


def rename(session: Session, user_id: str, conversation_id: UUID, title: str) -> Row[Any]:
    """Set the title, and return the conversation. Its last activity stays the last turn. Raises NotFound."""
    here = {"of_user": user_id, "of_id": conversation_id, "new_title": title}
    renamed = session.execute(_RENAME, here).one_or_none()
    if renamed is None:
        raise NotFound
    return renamed


def _join(messages: Sequence[Row[Any]], calls: Sequence[Row[Any]]) -> list[TurnRows]:
    """Put the rows together into turns. A reply without its message, at the end of the page, begins no turn."""
    replies = {row.turn_id: row for row in messages if row.role == "assistant"}
    made: dict[UUID, list[Row[Any]]] = defaultdict(list)
    for call in calls:
        made[call.turn_id].append(call)
    said = [row for row in messages if row.role == "user"]
    return [TurnRows(row, replies.get(row.turn_id), made[row.turn_id]) for row in said]


def _read_cursor(text: str, *parsers: Callable[[Any], Any]) -> list[Any]:
    place = cursor.read(text, *parsers)
    if None in place:
        raise cursor.BadCursor
    return place


def _moment(value: Any) -> datetime:
    moment = datetime.fromisoformat(value)
    if moment.utcoffset() != timedelta():
        raise ValueError("not in UTC")
    return moment


def _uuid(value: Any) -> UUID:
    return UUID(str(value))


def _position(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= FIRST_POSITION:
        raise ValueError("not a position")
    return value
