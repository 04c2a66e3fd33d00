"""The domain as the engine sees it. The engine knows no tool, table or word of it but through this object."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastmcp import FastMCP

from taskchat.database.transaction import Database
from taskchat.toolcalls.middleware import AuditMiddleware


@dataclass(frozen=True)
class Toolset:
    """A domain: its tools, what a model and a client are told of them, and what limits them."""

    name: str
    """Of the MCP server and of the agent."""
    summary: str
    """One sentence for MCP clients."""
    instructions: str
    """What the agent is told of the domain. The engine adds what holds for every domain."""
    tools: tuple[Callable[..., Any], ...]
    scopes: tuple[str, ...]
    """Scopes that an MCP client's token may have. A person who chats has all of them."""
    destructive: frozenset[str] = frozenset()
    """Names of the tools that destroy something. One message may make only DELETIONS_PER_TURN such calls."""

    def create_server(self, database: Callable[[], Database]) -> FastMCP:
        """Return an MCP server with the tools. It calls `database` for the transaction of each tool call."""
        return FastMCP(
            self.name,
            instructions=self.summary,
            tools=self.tools,
            middleware=[AuditMiddleware(database, self.destructive)],
            mask_error_details=True,
        )
