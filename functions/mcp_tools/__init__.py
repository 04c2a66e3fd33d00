"""The MCP Lambda: the same tools for any MCP client. All of it is imported at once, in the way that costs least."""

from taskchat import imports

with imports.fast():
    from mcp_tools import app as app
