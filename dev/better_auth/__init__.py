"""A real Better Auth on this machine, for the tests: packages that npm puts under `.dev`, run by Node. Never packaged.

`auth.mjs` is the configuration that `docs/auth.md` recommends, word for word; `server.mjs` serves it.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dev import processes
from dev.processes import StartupError

HERE = Path(__file__).parent
CONFIGURATION = HERE / "auth.mjs"
HOME = HERE.parent.parent / ".dev" / "better_auth"

INSTALL_SECONDS = 300
START_SECONDS = 60
INSTALL = (
    *("npm", "install", "--loglevel=error", "--no-audit", "--no-fund"),
    "--no-package-lock",
    "--prefer-offline",  # with a warm cache the network is not asked
    "--legacy-peer-deps",  # package.json names the peers that are needed; all others belong to other frameworks
)


def is_installable() -> bool:
    """Whether Node and npm are there."""
    return bool(shutil.which("node") and shutil.which("npm"))


def install() -> Path:
    """The directory with the packages, made once per change of package.json. Raises StartupError."""
    HOME.mkdir(parents=True, exist_ok=True)
    done, wanted = HOME / "installed.json", (HERE / "package.json").read_text()
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists() or done.read_text() != wanted:
            shutil.rmtree(HOME / "node_modules", ignore_errors=True)
            (HOME / "package.json").write_text(wanted)
            _npm_install()
            done.write_text(wanted)
    return HOME


def _npm_install() -> None:
    try:
        tried = subprocess.run(INSTALL, cwd=HOME, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StartupError(f"npm could not install Better Auth: {type(error).__name__}") from error
    if tried.returncode != 0:
        raise StartupError(f"npm could not install Better Auth (is the network there?): {tried.stderr.strip()}")


@contextlib.contextmanager
def running(database_url: str, resource: str, configuration: str | None = None) -> Iterator[str]:
    """Run the server over an empty database, for tokens for `resource`; gives its address, which is its issuer too.

    `configuration` stands in for `auth.mjs`. Raises StartupError.
    """
    home = install()
    with tempfile.TemporaryDirectory(prefix="running-", dir=home) as name:
        directory = Path(name)
        (directory / "auth.mjs").write_text(configuration or CONFIGURATION.read_text())
        shutil.copy(HERE / "server.mjs", directory)
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "NO_COLOR": "1",
            "BETTER_AUTH_TELEMETRY": "0",
            "BETTER_AUTH_SECRET": secrets.token_hex(32),
            "BETTER_AUTH_DATABASE_URL": database_url,
            "MCP_RESOURCE_URL": resource,
        }
        log = directory / "server.log"
        with log.open("wb") as output:
            process = processes.spawn(["node", "server.mjs"], output=output, cwd=directory, env=environment)
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
