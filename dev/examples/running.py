"""Hold the steps that the examples share: their place, a command, and the check of its output."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from dev import node, state
from dev.proof import ProofError

EXAMPLES: Final = state.ROOT / "examples"
TOOLS: Final = Path(__file__).parent / "tools"
LIMIT_SECONDS: Final = 120


def install(name: str) -> Path:
    """Install the packages of an example that has a package.json, put its files there, and return the place."""
    home = node.install(EXAMPLES / name)
    shutil.rmtree(home / "src", ignore_errors=True)
    shutil.copytree(EXAMPLES / name, home, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules", "dist"))
    return home


def run(
    command: Sequence[str | Path], known: Mapping[str, str], *, cwd: Path | None = None, says: Sequence[str] = ()
) -> None:
    """Run a command whose output holds each text of `says`. Raises ProofError."""
    done = node.run(command, LIMIT_SECONDS, cwd=cwd, known=known)
    shown = f"{done.stdout}{done.stderr}"
    if done.returncode != 0:
        raise ProofError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{shown}")
    if missing := [text for text in says if text not in done.stdout]:
        raise ProofError(f"{' '.join(map(str, command))}: expected {missing} in the output:\n{shown}")
