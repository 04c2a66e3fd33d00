"""Run the examples that are one program: each prints what a turn did."""

import sys
from collections.abc import Mapping
from typing import Final

from dev import node
from dev.examples.running import EXAMPLES, run

SAYS: Final = ("add_task", "Added buy milk", "list_tasks")


def use_fetch(known: Mapping[str, str]) -> None:
    """Read the events of a turn with fetch. Raises ProofError."""
    run([node.program(), EXAMPLES / "fetch" / "chat.mjs"], known, says=SAYS)


def use_python(known: Mapping[str, str]) -> None:
    """Read the events of a turn with the standard library. Raises ProofError."""
    run([sys.executable, EXAMPLES / "python" / "chat.py"], known, says=SAYS)


def use_mcp(known: Mapping[str, str]) -> None:
    """Call tools with an MCP client. Raises ProofError."""
    run([sys.executable, EXAMPLES / "mcp" / "client.py"], known, says=("add_task", "buy milk True"))
