"""Run the examples that are one program: each prints what a turn did."""

import sys
from collections.abc import Mapping
from typing import Final

from dev import node
from dev.examples.running import EXAMPLES, TOOLS, run

SAYS: Final = ("add_task", "Added buy milk", "list_tasks")


def use_fetch(known: Mapping[str, str]) -> None:
    """Read the events of a turn with fetch, on each version of Node.js that is supported. Raises ProofError."""
    packages = node.install(TOOLS) / "node_modules"
    for program in (packages / "node20" / "bin" / "node", packages / "node22" / "bin" / "node", node.program()):
        run([program, EXAMPLES / "fetch" / "chat.mjs"], known, says=SAYS)


def use_python(known: Mapping[str, str]) -> None:
    """Read the events of a turn with the standard library. Raises ProofError."""
    run([sys.executable, EXAMPLES / "python" / "chat.py"], known, says=SAYS)


def use_mcp(known: Mapping[str, str]) -> None:
    """Call tools with an MCP client. Raises ProofError."""
    run([sys.executable, EXAMPLES / "mcp" / "client.py"], known, says=("add_task", "buy milk True"))
