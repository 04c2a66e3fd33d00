"""The MCP Lambda function: the same tools for any MCP client. This module imports all of it, at the lowest cost."""

from taskchat import imports

with imports.fast():
    from mcp_tools import app as app
