"""Run a real Better Auth on this machine, from packages that npm installs in `.dev`. Never packaged.

`auth.mjs` is the configuration that `docs/auth.md` recommends, word for word; `server.mjs` serves it.
`development.mjs` adds the developer's account to it, and `__main__.py` runs it beside `make dev`.
"""

import contextlib
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dev import node, processes
from dev.processes import StartupError

HERE = Path(__file__).parent
CONFIGURATION = HERE / "auth.mjs"
DEVELOPMENT = "development.mjs"

START_SECONDS = 60
NO_SERVER = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Server:
    """A server that answers, and its process."""

    address: str
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def running(
    database_url: str, resource: str, configuration: str | None = None, taskchat: str = NO_SERVER, page: str = ""
) -> Iterator[str]:
    """Run the server on an empty database, for tokens for `resource`, and yield its address, which is its issuer too.

    `configuration` replaces `auth.mjs`. It deletes an account at `taskchat` first, and trusts the origin `page`.
    Raises StartupError.
    """
    known = {
        "BETTER_AUTH_SECRET": secrets.token_hex(32),
        "BETTER_AUTH_DATABASE_URL": database_url,
        "MCP_RESOURCE_URL": resource,
        "TASKCHAT_URL": taskchat,
        "PAGE_URL": page,
    }
    with started(CONFIGURATION.name, known, configuration or CONFIGURATION.read_text()) as server:
        yield server.address


@contextlib.contextmanager
def started(module: str, known: Mapping[str, str], configuration: str) -> Iterator[Server]:
    """Run the server with the configuration that `module` exports, and the variables `known`. Raises StartupError."""
    with tempfile.TemporaryDirectory(prefix="running-", dir=node.install(HERE)) as name:
        log = Path(name) / "server.log"
        process = _start(log, module, configuration, {"NO_COLOR": "1", "BETTER_AUTH_TELEMETRY": "0", **known})
        try:
            yield Server(_address(process, log), process)
        finally:
            processes.stop(process)


def _start(log: Path, module: str, configuration: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    (log.parent / CONFIGURATION.name).write_text(configuration)
    for name in ("server.mjs", DEVELOPMENT):
        shutil.copy(HERE / name, log.parent)
    command: list[str | Path] = [node.program(), "server.mjs", f"./{module}"]
    with log.open("wb") as output:
        return processes.spawn(command, output=output, cwd=log.parent, env=environment)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the address that the server prints. Raises StartupError when it ends first, or takes too long."""
    for _ in processes.attempts(START_SECONDS):
        written = log.read_text(errors="replace")
        if found := [line for line in written.splitlines(keepends=True) if line.startswith("http://")]:
            if found[0].endswith("\n"):
                return found[0].strip()
        if process.poll() is not None:
            raise StartupError(f"Better Auth ended with {process.returncode}: {written}")
    raise StartupError(f"Better Auth did not start within {START_SECONDS} s: {log.read_text(errors='replace')}")
