"""The MCP Lambda: the same tools for any MCP client."""
