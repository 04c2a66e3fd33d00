"""Run a real Better Auth on this machine for the tests, from packages that npm installs in `.dev`. Never packaged.

`auth.mjs` is the configuration that `docs/auth.md` recommends, word for word; `server.mjs` serves it.
"""

import contextlib
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dev import node, processes
from dev.processes import StartupError

HERE = Path(__file__).parent
CONFIGURATION = HERE / "auth.mjs"

START_SECONDS = 60
NO_SERVER = "http://127.0.0.1:9"


@contextlib.contextmanager
def running(
    database_url: str, resource: str, configuration: str | None = None, taskchat: str = NO_SERVER
) -> Iterator[str]:
    """Run the server on an empty database, for tokens for `resource`, and yield its address, which is its issuer too.

    `configuration` replaces `auth.mjs`. It deletes an account at `taskchat` first. Raises StartupError.
    """
    environment = {
        "NO_COLOR": "1",
        "BETTER_AUTH_TELEMETRY": "0",
        "BETTER_AUTH_SECRET": secrets.token_hex(32),
        "BETTER_AUTH_DATABASE_URL": database_url,
        "MCP_RESOURCE_URL": resource,
        "TASKCHAT_URL": taskchat,
    }
    with tempfile.TemporaryDirectory(prefix="running-", dir=node.install(HERE)) as name:
        log = Path(name) / "server.log"
        process = _start(log, configuration or CONFIGURATION.read_text(), environment)
        try:
            yield _address(process, log)
        finally:
            processes.stop(process)


def _start(log: Path, configuration: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    (log.parent / "auth.mjs").write_text(configuration)
    shutil.copy(HERE / "server.mjs", log.parent)
    with log.open("wb") as output:
        return processes.spawn([node.program(), "server.mjs"], output=output, cwd=log.parent, env=environment)


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
