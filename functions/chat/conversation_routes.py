"""Let a person list, read, rename and delete their conversations. Each request is one short transaction."""

from itertools import accumulate
from typing import Annotated, Any, Final
from uuid import UUID

from aws_lambda_powertools import Logger
from fastapi import APIRouter, Depends, Path, Query, Request, Response

from chat.openapi import BODY_RESPONSES, BUSY_RESPONSE, CALL_EXAMPLE, answers_with, body_of
from chat.schemas import ConversationPage, ConversationView, ConversationWithTurns, Renaming, TurnView, view_calls
from taskchat import cursor, measures
from taskchat.conversations import deletion
from taskchat.conversations.reading import TurnRows, cursor_after, read_page, read_turns, rename
from taskchat.errors import NotFound
from taskchat.http.input import NoQuery, PageQuery, read_body
from taskchat.http.person import Caller, Person
from taskchat.logs import UPKEEP

MAX_PAGE_BYTES: Final = 1024 * 1024
"""Bytes of the turns on one page. Lambda passes on 6 MB, and the longest turn takes less than 1 MB."""

_CONVERSATION: Final[dict[str, Any]] = {
    "id": "0b2f6c1e-8a55-4d0e-9d3a-5f6f0c1d2e3f",
    "title": "Add buy milk",
    "created_at": "2026-11-23T08:00:00.000000Z",
    "updated_at": "2026-11-23T08:00:03.000000Z",
    "running": False,
}
_TURN: Final = {
    "turn_id": "3d1c2b4a-7e8f-4a6b-8c9d-0e1f2a3b4c5d",
    "status": "done",
    "message": "Add buy milk",
    "response": "Added buy milk.",
    "tool_calls": [CALL_EXAMPLE],
    "created_at": "2026-11-23T08:00:00.000000Z",
    "finished_at": "2026-11-23T08:00:03.000000Z",
}

logger = Logger()
router: Final = APIRouter(prefix="/conversations", tags=["conversations"])


async def _parse_id(
    _caller: Caller,
    conversation_id: Annotated[str, Path(description="The conversation's id.", json_schema_extra={"format": "uuid"})],
) -> UUID:
    """Return the id in the path. Raises NotFound for any text but an id as the list shows it."""
    try:
        parsed = UUID(conversation_id)
    except ValueError:
        raise NotFound from None
    if str(parsed) != conversation_id.lower():
        raise NotFound
    return parsed


ConversationId = Annotated[UUID, Depends(_parse_id)]
Page = Annotated[PageQuery, Query()]


@router.get(
    "",
    summary="List conversations",
    responses=answers_with(
        "A page of conversations.",
        {
            "conversations": [_CONVERSATION],
            "next_cursor": cursor.write(_CONVERSATION["updated_at"], _CONVERSATION["id"]),
        },
    ),
)
async def list_conversations(caller: Caller, page: Page) -> ConversationPage:
    """Return the conversations by last activity, newest first.

    A conversation in which a turn ends moves to the front, before the pages that were read.
    """
    with caller.transaction() as session:
        rows, next_cursor = read_page(session, caller.user_id, page.cursor, page.limit)
    return ConversationPage(conversations=[ConversationView.model_validate(r) for r in rows], next_cursor=next_cursor)


@router.get(
    "/{conversation_id}",
    summary="Read a conversation",
    responses=answers_with(
        "The conversation, with a page of its turns. A page of long turns ends before its limit, at 1 MiB.",
        _CONVERSATION | {"turns": [_TURN], "next_cursor": cursor.write(0)},
    ),
)
async def get_conversation(caller: Caller, conversation_id: ConversationId, page: Page) -> ConversationWithTurns:
    """Return the conversation and its turns, newest first."""
    with caller.transaction() as session:
        row, found = read_turns(session, caller.user_id, conversation_id, page.cursor, page.limit)
    turns = _fitting([_view(turn) for turn in found[: page.limit]])
    next_cursor = cursor_after(found[len(turns) - 1]) if len(turns) < len(found) else None
    conversation = ConversationView.model_validate(row).model_dump()
    return ConversationWithTurns(**conversation, turns=turns, next_cursor=next_cursor)


@router.patch(
    "/{conversation_id}",
    summary="Rename a conversation",
    openapi_extra=body_of(Renaming, {"title": "Groceries"}),
    responses=BODY_RESPONSES | answers_with("The conversation.", _CONVERSATION | {"title": "Groceries"}),
)
async def rename_conversation(
    caller: Caller, conversation_id: ConversationId, request: Request, _query: NoQuery
) -> ConversationView:
    """Set the title. The conversation keeps its place in the list."""
    body = await read_body(request, Renaming)
    with caller.transaction() as session:
        row = rename(session, caller.user_id, conversation_id, body.title)
    _log("conversation renamed", caller, conversation_id)
    return ConversationView.model_validate(row)


@router.delete(
    "/{conversation_id}",
    status_code=204,
    response_class=Response,
    summary="Delete a conversation",
    responses={204: {"description": "The conversation and its messages are gone."}, **BUSY_RESPONSE},
)
async def delete_conversation(caller: Caller, conversation_id: ConversationId, _query: NoQuery) -> None:
    """Delete the conversation with its messages. Its tool calls stay as audit, without arguments and results."""
    tool_names = caller.process.toolset.tool_names
    with caller.transaction() as session:
        counts = deletion.delete_conversation(session, caller.user_id, conversation_id, tool_names)
    _log("conversation deleted", caller, conversation_id, **counts)


def _view(turn: TurnRows) -> TurnView:
    return TurnView(
        turn_id=turn.said.turn_id,
        status=turn.status,
        message=turn.said.content,
        response=turn.reply and turn.reply.content,
        tool_calls=view_calls(turn.calls),
        created_at=turn.said.said_at,
        finished_at=turn.reply and turn.reply.said_at,
    )


def _fitting(turns: list[TurnView]) -> list[TurnView]:
    """Return the first turns that fit a page: at least one, or the next page would never come."""
    ends = accumulate(len(turn.model_dump_json().encode()) for turn in turns)
    return [turn for turn, end in zip(turns, ends, strict=True) if end <= MAX_PAGE_BYTES] or turns[:1]


def _log(text: str, person: Person, conversation_id: UUID, **counts: Any) -> None:
    """Write the line that says who changed which conversation, without any text of theirs."""
    fields = {"schema": UPKEEP, "actor": person.user_id, "conversation_id": str(conversation_id), **counts}
    logger.info(text, extra=fields | {"request_id": measures.current().request_id})
