"""Hold the context of the running tool call: its caller, its turn, its scopes and its transaction."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from uuid import UUID, uuid4

from fastmcp.server.dependencies import get_access_token
from sqlmodel import Session

from taskchat.errors import ToolFailure, Unauthenticated
from taskchat.toolcalls.models import ToolCall
from taskchat.toolcalls.record import UnsettledCall


@dataclass(frozen=True)
class CallContext:
    """The caller and the turn of one tool call. No model and no client chooses any of it."""

    user_id: str
    door: Literal["chat", "mcp"]
    turn_id: UUID
    call_id: str
    conversation_id: UUID | None = None
    scopes: frozenset[str] | None = None
    """The scopes of an MCP client's token. None in a turn, which may call every tool."""
    check_lease: Callable[[Session], None] | None = None
    """Runs first in the call's transaction, and raises if the turn has lost its lease. None outside a turn."""
    said_at: datetime | None = None
    """When the person wrote the message, which says what "today" is. None for a call of an MCP client: it is now."""
    timezone: str | None = None
    """The person's time zone, an IANA name. None for UTC."""
    refusal: str | None = None
    """A plain sentence for the model. A call that has one does not reach its tool."""
    records: list[ToolCall] = field(default_factory=list)
    """Records of the turn's calls so far. The call adds its own."""
    unsettled: list[UnsettledCall] = field(default_factory=list)
    """Calls whose outcome could not be found out. The call adds itself if it is one."""
    deletions_per_turn: float = math.inf
    """Destructive calls that the turn may make. An MCP client decides on each call by itself."""


current_call: ContextVar[CallContext] = ContextVar("call")
open_session: ContextVar[Callable[[], Session]] = ContextVar("open_session")


def require_scope(scope: str) -> Callable[[], str]:
    """Return a dependency that gives a tool the caller's user id.

    It raises Unauthenticated outside a call, and ToolFailure if the caller does not have the scope.
    """

    def read_user_id() -> str:
        call = current_call.get(None)
        if call is None:
            raise Unauthenticated
        if call.scopes is not None and scope not in call.scopes:
            raise ToolFailure(f"Insufficient scope: this tool needs {scope}.")
        return call.user_id

    return read_user_id


def get_session() -> Session:
    """Return the session of the running call, and begin its transaction at the first use.

    FastMCP lets other requests run while it looks the tool up. A transaction that is open by then could hold a lock for
    which the next request blocks the whole event loop. From here to the commit, no other request runs.
    """
    return open_session.get()()


@contextmanager
def calling(call: CallContext) -> Iterator[CallContext]:
    """Set the context of the tool call in the block."""
    token = current_call.set(call)
    try:
        yield call
    finally:
        current_call.reset(token)


def context_from_token() -> CallContext:
    """Return the context of an MCP client's call, from its verified token. Raises Unauthenticated."""
    token = get_access_token()
    if token is None or not token.subject:
        raise Unauthenticated
    return CallContext(token.subject, "mcp", turn_id=uuid4(), call_id=uuid4().hex, scopes=frozenset(token.scopes))
