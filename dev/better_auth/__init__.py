"""A real Better Auth on this machine, for the tests: packages that npm puts under `.dev`, run by Node. Never packaged.

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


@contextlib.contextmanager
def running(database_url: str, resource: str, configuration: str | None = None) -> Iterator[str]:
    """Run the server over an empty database, for tokens for `resource`; gives its address, which is its issuer too.

    `configuration` stands in for `auth.mjs`. Raises StartupError.
    """
    home = node.install(HERE)
    with tempfile.TemporaryDirectory(prefix="running-", dir=home) as name:
        directory = Path(name)
        (directory / "auth.mjs").write_text(configuration or CONFIGURATION.read_text())
        shutil.copy(HERE / "server.mjs", directory)
        environment = {
            "NO_COLOR": "1",
            "BETTER_AUTH_TELEMETRY": "0",
            "BETTER_AUTH_SECRET": secrets.token_hex(32),
            "BETTER_AUTH_DATABASE_URL": database_url,
            "MCP_RESOURCE_URL": resource,
        }
        log = directory / "server.log"
        with log.open("wb") as output:
            process = processes.spawn([node.program(), "server.mjs"], output=output, cwd=directory, env=environment)
        try:
            yield _address(process, log)
        finally:
            processes.stop(process)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """What the server prints once it serves. Raises StartupError when it ends first, or takes too long."""
    for _ in processes.attempts(START_SECONDS):
        written = log.read_text(errors="replace")
        if found := [line for line in written.splitlines(keepends=True) if line.startswith("http://")]:
            if found[0].endswith("\n"):
                return found[0].strip()
        if process.poll() is not None:
            raise StartupError(f"Better Auth ended with {process.returncode}: {written}")
    raise StartupError(f"Better Auth did not start within {START_SECONDS} s: {log.read_text(errors='replace')}")
