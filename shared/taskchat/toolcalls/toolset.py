"""Describe a domain to the engine, which knows its tools through this object only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastmcp import FastMCP

from taskchat.database.transaction import Database
from taskchat.toolcalls.capabilities import ToolsOnly
from taskchat.toolcalls.middleware import AuditMiddleware
from taskchat.version import VERSION


@dataclass(frozen=True)
class Toolset:
    """The tools of a domain, with the texts for models and clients, and the scopes."""

    name: str
    """Name of the MCP server and of the agent."""
    summary: str
    """One sentence for MCP clients."""
    instructions: str
    """The agent's instructions for the domain. The engine adds the rules that hold for every domain."""
    tools: tuple[Callable[..., Any], ...]
    scopes: tuple[str, ...]
    """Scopes of an MCP client's token. The chat API needs none."""
    destructive: frozenset[str] = frozenset()
    """Names of the tools of which one message may make DELETIONS_PER_TURN calls at most."""

    @property
    def tool_names(self) -> list[str]:
        """Return the names of the tools. Any other name in a record is the model's own text."""
        return [tool.__name__ for tool in self.tools]

    def create_server(self, database: Callable[[], Database]) -> FastMCP:
        """Return an MCP server with the tools. It calls `database` for the transaction of each tool call."""
        return FastMCP(
            self.name,
            version=VERSION,
            instructions=self.summary,
            tools=self.tools,
            middleware=[ToolsOnly(), AuditMiddleware(database, self.destructive)],
            mask_error_details=True,
        )
