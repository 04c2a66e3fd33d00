"""Connect to an MCP endpoint through mcp-remote, the bridge of clients that speak stdio only. Never packaged."""

import asyncio
from pathlib import Path
from typing import Any, Final

from fastmcp import Client
from fastmcp.client.transports import StdioTransport

from dev import node, state
from dev.authorization import browser

HERE: Final = Path(__file__).parent
SECONDS: Final = 120


def list_and_call(url: str, tool: str, arguments: dict[str, object]) -> tuple[list[str], Any]:
    """Return the names of the tools, and the structured result of a call. mcp-remote has no token at first."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:  # `run` would take the tests' loop away
        return runner.run(asyncio.wait_for(_list_and_call(url, tool, arguments), SECONDS))


async def _list_and_call(url: str, tool: str, arguments: dict[str, object]) -> tuple[list[str], Any]:
    program = node.install(HERE) / "node_modules" / "mcp-remote" / "dist" / "proxy.js"
    places = {"MCP_REMOTE_CONFIG_DIR": str(state.directory() / "mcp-remote"), "BROWSER": browser.COMMAND}
    log = state.directory() / "mcp-remote.log"
    transport = StdioTransport(
        str(node.program()), [str(program), url], env=node.environment() | places, keep_alive=False, log_file=log
    )
    async with Client(transport, init_timeout=SECONDS) as client:
        names = [listed.name for listed in await client.list_tools()]
        return names, (await client.call_tool(tool, arguments)).structured_content
