"""Lint the API's description, and run every example, on a database of their own (`make examples`)."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from dev import backend, processes
from dev.client import UnreachableError
from dev.examples import generated, pages, scripts
from dev.processes import StartupError
from dev.proof import ProofError

Step = Callable[[Mapping[str, str]], None]

LIMITS: Final = {"TURN_BURST": "10000", "TURNS_PER_MINUTE": "10000", "DATA_BURST": "10000", "MCP_BURST": "10000"}
"""So high that the requests of this one user stay below them."""


def main(programs: Path) -> int:
    """Run every example. `programs` has the generator of the Python client. The exit code is 1 when one fails."""
    try:
        _run(programs)
    except (ProofError, StartupError, UnreachableError, subprocess.TimeoutExpired) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    return 0


def _run(programs: Path) -> None:
    steps: dict[str, Step] = {
        "the description, linted": generated.lint,
        "reference": pages.read_reference,
        "typescript": generated.use_typescript,
        "python-typed": partial(generated.use_python, programs=programs),
        "fetch": scripts.use_fetch,
        "python": scripts.use_python,
        "mcp": scripts.use_mcp,
        **{name: partial(pages.use, name) for name in pages.NAMES},
    }
    print("Running each of examples/ (the first run downloads packages)", flush=True)
    os.environ.update(LIMITS)
    with backend.running(processes.free_port(backend.HOST), backend.Progress(sys.stdout), reload=False) as server:
        for name, step in steps.items():
            begun = time.monotonic()
            step({"URL": server.url})
            print(f"{name:<24} {time.monotonic() - begun:5.1f} s", flush=True)
    print(f"{len(steps)} examples passed")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute()))
