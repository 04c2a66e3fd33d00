"""Call the local server's /mcp with the MCP Inspector and mcp-remote, clients that are not ours (`make inspector`)."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from dev import backend, client, mcp_remote, node, processes, proof, state
from dev.authorization import browser
from dev.client import UnreachableError
from dev.processes import StartupError
from dev.proof import ProofError
from dev.standin_model.domain import domain

README: Final = state.ROOT / "README.md"
NOT_KEPT: Final = "memory"  # of the Inspector's stores for tokens
LIMIT_SECONDS = 180  # the first run downloads the Inspector
CALLS: Final = domain.examples.calls
"""On the database of this command alone, so that the first thing has the id 1."""


@dataclass(frozen=True)
class Inspector:
    """Runs the Inspector as README.md does, against the server at `url`."""

    url: str

    def list_tools(self, token: str) -> dict[str, Any]:
        """Run README's command and return its answer. Raises ProofError when the command fails."""
        done = self._run(["sh", "-c", readme_command()], {"URL": self.url, "MCP_TOKEN": token})
        return _answer("README's command", done)

    def call(self, tool: str, arguments: dict[str, object], token: str) -> dict[str, Any]:
        """Call the tool and return its result. Raises ProofError when the Inspector fails."""
        given = [word for name, value in arguments.items() for word in ("--tool-arg", f"{name}={value}")]
        header = ("--header", f"Authorization: Bearer {token}")
        return _answer(tool, self.ask("--method", "tools/call", "--tool-name", tool, *given, *header))

    def sign_in(self, *arguments: str) -> dict[str, Any]:
        """Run it without a token: it registers, and has the developer sign in and agree. Raises ProofError."""
        callback = f"http://{backend.HOST}:{processes.free_port(backend.HOST)}/oauth/callback"
        known = {"MCP_AUTO_OPEN_ENABLED": "true", "BROWSER": browser.COMMAND, "MCP_INSPECTOR_SECRET_STORE": NOT_KEPT}
        return _answer("signing in", self.ask(*arguments, "--relogin", "--callback-url", callback, known=known))

    def ask(self, *arguments: str, known: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run the version that README's command names, with other arguments."""
        words = shlex.split(readme_command())
        [package] = [word for word in words if word.startswith("@modelcontextprotocol/inspector@")]
        endpoint = ("--cli", f"{self.url}/mcp", "--transport", "http")
        return self._run(["npx", "-y", package, *endpoint, *arguments], known or {})

    def _run(self, command: list[str], known: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a command, and keep the Inspector's files out of the developer's home directory."""
        storage = state.directory() / "storage"
        places = {"MCP_STORAGE_DIR": str(storage), "MCP_CLIENT_CONFIG_PATH": str(storage / "client.json")}
        return node.run(command, LIMIT_SECONDS, cwd=state.ROOT, known={**known, **places})


def readme_command() -> str:
    """Return README.md's command that lists the tools."""
    [command] = re.findall(r"```sh\n(PATH=\S+ npx .*?)```", README.read_text(), re.DOTALL)
    return str(command)


def _answer(what: str, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    if done.returncode != 0:
        raise ProofError(f"{what}: the Inspector ended with {done.returncode}: {done.stdout}{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main() -> int:
    """List and call the tools. The exit code is 1 when a result is not the expected one."""
    try:
        with backend.running(processes.free_port(backend.HOST), backend.Progress(sys.stdout), reload=False) as server:
            inspect(Inspector(server.url))
    except (ProofError, StartupError, UnreachableError, subprocess.TimeoutExpired) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    return 0


def inspect(inspector: Inspector) -> None:
    """List the tools, call each, and check that a client without a token is refused. Raises ProofError."""
    print(f"Calling {inspector.url}/mcp with the MCP Inspector (the first run downloads it)", flush=True)
    token = client.token(inspector.url)["mcp_token"]
    listed = [tool["name"] for tool in inspector.list_tools(token)["tools"]]
    if sorted(listed) != sorted(proof.TOOLS):
        raise ProofError(f"expected the tools {proof.TOOLS}, got {listed}")
    print(f"tools/list     {', '.join(listed)}")
    for tool, values in CALLS:
        answer = inspector.call(tool, values, token)
        if answer.get("isError") is not False:
            raise ProofError(f"{tool}: expected a result, got {answer}")
        print(f"{tool:<14} {json.dumps(answer['structuredContent'])}")
    _check_refusals(inspector)
    _check_signing_in(inspector)
    print(f"{len(listed)} tools listed, {len(CALLS)} called; without a token a client has to sign in")


def _check_refusals(inspector: Inspector) -> None:
    """Check that a request without a token gets 401, after which the Inspector asks for a login. Raises ProofError."""
    status, _ = client.call(inspector.url, "/mcp", {})
    if status != HTTPStatus.UNAUTHORIZED:
        raise ProofError(f"expected 401 without a token, got {status}")
    done = inspector.ask("--method", "tools/list")
    if done.returncode == 0 or "auth_required" not in done.stdout + done.stderr:
        raise ProofError(f"expected the Inspector to be refused, got {done.returncode}: {done.stdout}{done.stderr}")
    print("without token  401")


def _check_signing_in(inspector: Inspector) -> None:
    """Connect as clients do that have no token, and end as the developer of the page. Raises ProofError."""
    listed = [tool["name"] for tool in inspector.sign_in("--method", "tools/list")["tools"]]
    tool, arguments = CALLS[0]
    through_remote, added = mcp_remote.list_and_call(f"{inspector.url}/mcp", tool, dict(arguments))
    if not sorted(listed) == sorted(through_remote) == sorted(proof.TOOLS):
        raise ProofError(f"expected the tools {proof.TOOLS}, got {listed} and {through_remote}")
    print(f"signing in     {len(listed)} tools; through mcp-remote: {tool} {json.dumps(added)}")


if __name__ == "__main__":
    sys.exit(main())
