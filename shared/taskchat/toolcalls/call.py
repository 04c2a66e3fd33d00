"""On whose behalf a tool is called, in which turn and with which scopes, and the transaction it runs in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID, uuid4

from fastmcp.server.dependencies import get_access_token
from sqlmodel import Session

from taskchat.errors import ToolFailure, Unauthenticated
from taskchat.toolcalls.models import ToolCall
from taskchat.toolcalls.record import UnsettledCall


def _no_guard(_session: Session) -> None:
    """A call outside any turn has no lease to lose."""


@dataclass(frozen=True)
class Call:
    """On whose behalf a tool is called, and where the call belongs. Never chosen by a model or a client."""

    user_id: str
    door: Literal["chat", "mcp"]
    turn_id: UUID
    call_id: str
    position: int = 0
    conversation_id: UUID | None = None
    scopes: frozenset[str] | None = None
    """The scopes of an MCP client's token. None for a person who chats: they may do everything."""
    guard: Callable[[Session], None] = _no_guard
    """Run first in the call's transaction: raises when the turn has lost its lease."""
    refusal: str | None = None
    """Why the call must not reach its tool, in a plain sentence."""
    records: list[ToolCall] = field(default_factory=list)
    """Where the committed record goes, for the answer. Holds those of the turn's earlier calls."""
    unsettled: list[UnsettledCall] = field(default_factory=list)
    """Where a call is put when its outcome could not be found out."""
    max_destructive: int | None = None
    """How many destructive calls the turn may make. None for an MCP client, which decides on each call by itself."""


current_call: ContextVar[Call] = ContextVar("call")
open_session: ContextVar[Callable[[], Session]] = ContextVar("open_session")


def user_with(scope: str) -> Callable[[], str]:
    """Return a dependency that gives a tool the caller's user id, if the caller has the scope.

    It raises Unauthenticated outside a call, and ToolFailure when the scope is missing.
    """

    def user_id() -> str:
        call = current_call.get(None)
        if call is None:
            raise Unauthenticated
        if call.scopes is not None and scope not in call.scopes:
            raise ToolFailure(f"Insufficient scope: this tool needs {scope}.")
        return call.user_id

    return user_id


def session() -> Session:
    """The transaction of the running call, begun at first use.

    Not sooner: FastMCP gives way to other requests while it looks the tool up, and a transaction that is open then
    could hold a lock for which the next request blocks the whole loop. From here to the commit nothing gives way.
    """
    return open_session.get()()


@contextmanager
def calling(call: Call) -> Iterator[Call]:
    """Name the call that the tool invocation inside the block is."""
    token = current_call.set(call)
    try:
        yield call
    finally:
        current_call.reset(token)


def call_from_token() -> Call:
    """The call of an MCP client: person and scopes are its verified token's. Raises Unauthenticated."""
    token = get_access_token()
    if token is None or not token.subject:
        raise Unauthenticated
    return Call(token.subject, "mcp", turn_id=uuid4(), call_id=uuid4().hex, scopes=frozenset(token.scopes))
