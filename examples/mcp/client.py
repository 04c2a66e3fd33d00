"""Call taskchat's tools as an MCP client does, without a model."""

import asyncio
import json
import os
import urllib.request
from typing import Any

from fastmcp import Client
from fastmcp.client.auth import BearerAuth

URL = os.environ.get("URL", "http://127.0.0.1:8000")


def find_token() -> str:
    """Return an access token for /mcp: from the environment, or from the development server."""
    if "MCP_TOKEN" in os.environ:
        return os.environ["MCP_TOKEN"]
    with urllib.request.urlopen(f"{URL}/dev/token", timeout=10) as answer:
        return str(json.load(answer)["mcp_token"])


async def main() -> None:
    """List the tools, add a task, and finish it."""
    async with Client(f"{URL}/mcp", auth=BearerAuth(find_token())) as client:
        print([tool.name for tool in await client.list_tools()])
        task = await call(client, "add_task", title="buy milk")
        done = await call(client, "complete_task", task_id=task["id"])
        print(done["title"], done["completed"])


async def call(client: Client[Any], tool: str, **arguments: object) -> dict[str, Any]:
    """Call the tool, and return its result. Raises ToolError with the tool's sentence if the call fails."""
    result = await client.call_tool(tool, arguments)
    return dict(result.structured_content or {})


if __name__ == "__main__":
    asyncio.run(main())
