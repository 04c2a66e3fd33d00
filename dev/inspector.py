"""`make inspector`: the MCP Inspector's command line, a client that is not ours, against the local server's /mcp."""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from dev import backend, client, processes, proof
from dev.client import UnreachableError
from dev.processes import StartupError
from dev.proof import ProofError

LIMIT_SECONDS = 60
CALLS: tuple[tuple[str, dict[str, object]], ...] = (
    ("add_task", {"title": "buy milk"}),
    ("list_tasks", {"status": "pending"}),
    ("update_task", {"task_id": 1, "title": "buy oat milk"}),
    ("complete_task", {"task_id": 1}),
    ("delete_task", {"task_id": 1}),
)
"""Each tool once, on the database of this command alone: so the first task is number 1."""

REFUSALS = 2
"""Of a plain request, and of the Inspector itself."""


@dataclass(frozen=True)
class Inspector:
    """The program, and the endpoint it is to speak to."""

    program: Path
    url: str

    def ask(self, method: str, *arguments: str, token: str) -> dict[str, Any]:
        """What the endpoint says, as the Inspector prints it. Raises ProofError when it prints no JSON."""
        done = self.run("--method", method, "--header", f"Authorization: Bearer {token}", *arguments)
        if done.returncode != 0:
            raise ProofError(f"{method}: the Inspector ended with {done.returncode}: {done.stdout}{done.stderr}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line, to its end."""
        command = [str(self.program.absolute()), "--cli", f"{self.url}/mcp", "--transport", "http", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=LIMIT_SECONDS
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """List and call the tools. The exit code is 1 when anything differs from what it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", type=Path, help="mcp-inspector, as npm installs it")
    program = parser.parse_args(arguments).program
    try:
        with backend.running(processes.free_port(backend.HOST), backend.Progress(sys.stdout), reload=False) as server:
            inspect(Inspector(program, server.url))
    except (ProofError, StartupError, UnreachableError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    return 0


def inspect(inspector: Inspector) -> None:
    """List the tools, call each, and be refused without a token. Raises ProofError."""
    token = client.token(inspector.url)["mcp_token"]
    listed = [tool["name"] for tool in inspector.ask("tools/list", token=token)["tools"]]
    if sorted(listed) != sorted(proof.TOOLS):
        raise ProofError(f"expected the tools {proof.TOOLS}, got {listed}")
    print(f"tools/list     {', '.join(listed)}")
    for tool, values in CALLS:
        answer = inspector.ask("tools/call", "--tool-name", tool, *_tool_arguments(values), token=token)
        if answer.get("isError") is not False:
            raise ProofError(f"{tool}: expected a result, got {answer}")
        print(f"{tool:<14} {json.dumps(answer['structuredContent'])}")
    _be_refused(inspector)
    print(f"{len(listed)} tools listed, {len(CALLS)} called, {REFUSALS} refusals without a token")


def _tool_arguments(values: dict[str, object]) -> list[str]:
    return [argument for name, value in values.items() for argument in ("--tool-arg", f"{name}={value}")]


def _be_refused(inspector: Inspector) -> None:
    """Without a token: 401 to anybody, which the Inspector shows by wanting to log in. Raises ProofError."""
    status, _ = client.call(inspector.url, "/mcp", {})
    if status != HTTPStatus.UNAUTHORIZED:
        raise ProofError(f"expected 401 without a token, got {status}")
    done = inspector.run("--method", "tools/list")
    if done.returncode == 0 or "auth_required" not in done.stdout + done.stderr:
        raise ProofError(f"expected the Inspector to be refused, got {done.returncode}: {done.stdout}{done.stderr}")
    print("without token  401")


if __name__ == "__main__":
    sys.exit(main())
