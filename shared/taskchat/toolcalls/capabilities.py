"""Offer MCP clients the tools only: FastMCP would also offer prompts, resources, logging and news of changed tools."""

from typing import Any, Final

import mcp_types
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext

_TOOLS: Final = mcp_types.ServerCapabilities(tools=mcp_types.ToolsCapability())


class ToolsOnly(Middleware):
    """Names the tools as the only capability, to clients of both eras of the protocol."""

    async def on_initialize(
        self,
        context: MiddlewareContext[mcp_types.InitializeRequest],
        call_next: CallNext[mcp_types.InitializeRequest, mcp_types.InitializeResult | None],
    ) -> mcp_types.InitializeResult | None:
        """Answer a client that begins with a handshake."""
        result = await call_next(context)
        return result and result.model_copy(update={"capabilities": _TOOLS})

    async def on_discover(
        self,
        context: MiddlewareContext[mcp_types.DiscoverRequest],
        call_next: CallNext[mcp_types.DiscoverRequest, mcp_types.DiscoverResult | dict[str, Any]],
    ) -> mcp_types.DiscoverResult | dict[str, Any]:
        """Answer a client that asks for the server's versions and capabilities."""
        result = await call_next(context)
        return result if isinstance(result, dict) else result.model_copy(update={"capabilities": _TOOLS})
