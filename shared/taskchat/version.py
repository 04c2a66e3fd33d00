"""Name the release: the MCP server and the OpenAPI description give it. pyproject.toml has the same one."""

from typing import Final

VERSION: Final = "0.1.0"
