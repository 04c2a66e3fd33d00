"""Follow a page of docs/ in a copy of the checkout: its commands, its files, and the output that it shows."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dev import processes
from tests.conftest import ROOT
from tests.test_dev import ENVIRONMENT

SECONDS: Final = 300
"""Of one block of commands."""
_BLOCK: Final = re.compile(r"\n\n```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_IDENTITY: Final = "git -c user.name=reader -c user.email=reader@example.com"


@dataclass(frozen=True)
class Step:
    """A block of a page: commands with the output that the page shows below them, or a file to write."""

    text: str
    path: Path | None = None
    shown: str | None = None

    def is_shown(self, output: str) -> bool:
        """Compare the output with the page's, in which `…` stands for anything, and a line of it for any lines."""
        lines = [re.escape(line).replace("…", ".*") for line in (self.shown or "…").rstrip().splitlines()]
        pattern = "\n".join("(?s:.*)" if line == ".*" else re.sub(r"(\\ ){2,}", r"\\s+", line) for line in lines)
        return re.fullmatch(pattern, output.rstrip()) is not None


def read(page: str) -> list[Step]:
    """Return the steps of a page. Every block must be one, or the output of the one before."""
    steps: list[Step] = []
    text = (ROOT / "docs" / page).read_text()
    found = list(_BLOCK.finditer(text))
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(found), "a block lacks its kind, or a line before"
    for block in found:
        path = re.search(r"\n`([^`\s]+)`:$", text[: block.start()])
        if block["kind"] == "text":
            steps[-1] = Step(steps[-1].text, shown=block["text"])
        else:
            assert path or block["kind"] == "sh", block["text"]
            steps.append(Step(block["text"], Path(path[1]) if path else None))
    return steps


@dataclass
class Reader:
    """A person with a checkout of their own and one shell."""

    checkout: Path
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_copy(cls, directory: Path) -> "Reader":
        """Copy what git knows of the checkout. The copy shares the installed packages, and imports its own files."""
        copy = directory / "taskchat"
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).exists():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, copy / name)
        (copy / ".venv").symlink_to(ROOT / ".venv")
        make = directory / "make"
        make.write_text(f'#!/bin/sh\nexec {shutil.which("make")} --assume-old=.venv/.installed "$@"\n')
        make.chmod(0o755)
        roots = os.pathsep.join(str(copy / name) for name in ("shared", "functions", ""))
        reader = cls(copy, {"PYTHONPATH": roots, "PATH": f"{directory}{os.pathsep}{os.environ['PATH']}"})
        reader.run(f"git init -q && echo .venv >> .git/info/exclude && git add -A && {_IDENTITY} commit -qm Begin")
        return reader

    def run(self, commands: str) -> str:
        """Run commands that succeed, and return what they print."""
        done = self.try_to_run(commands)
        assert done.returncode == 0, f"{commands}\n{done.stdout}"
        return done.stdout

    def try_to_run(self, commands: str) -> subprocess.CompletedProcess[str]:
        """Run commands in the shell, which keeps its variables and functions."""
        kept = self.checkout.parent / "shell"
        kept.touch()
        script = f"set -ae; . '{kept}'; {{ {commands}\n}}; {{ export -p; declare -f; }} > '{kept}'"
        return subprocess.run(  # noqa: S603  (the page's own commands)
            ["bash", "-c", script],  # noqa: S607  (as typed)
            cwd=self.checkout,
            env=ENVIRONMENT | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=SECONDS,
        )

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Run `make dev` beside the block. Gives what it prints before it waits."""
        port = str(processes.free_port("127.0.0.1"))
        environment = ENVIRONMENT | self.environment | {"PORT": port}
        with subprocess.Popen(
            ["make", "dev"],  # noqa: S607  (as typed)
            cwd=self.checkout,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        ) as server:
            try:
                yield "".join(self._beginning(server))
            finally:
                os.killpg(server.pid, signal.SIGINT)

    def _beginning(self, server: subprocess.Popen[str]) -> Iterator[str]:
        assert server.stdout is not None
        for line in server.stdout:
            yield line
            if "Ctrl-C" in line:
                return
        raise AssertionError("the server ended")

    def follow(self, step: Step) -> None:
        """Write the step's file, or run its commands, which succeed and print what the page shows."""
        if step.path:
            (self.checkout / step.path).write_text(step.text)
            return
        printed = self.run(step.text)
        assert step.is_shown(printed), f"{step.text}\n{printed}"
