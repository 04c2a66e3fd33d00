"""Lint the description that the server gives, generate two clients from it, check their types, and use them."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dev import node, state
from dev.examples.running import EXAMPLES, TOOLS, install, run

QUIET: Final = {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
SAYS: Final = ("Added buy milk", "without a date", "Groceries", "422", "title")
"""Parts of the output: the turn, the list, the new title, and the problem of an empty one."""


def lint(known: Mapping[str, str]) -> None:
    """Check the description against the recommended rules: a warning fails too. Raises ProofError."""
    program = node.install(TOOLS) / "node_modules" / ".bin" / "redocly"
    description = f"{known['URL']}/openapi.json"
    run([program, "lint", description, "--config", TOOLS / "redocly.yaml"], {**known, **QUIET})


def use_typescript(known: Mapping[str, str]) -> None:
    """Generate types with openapi-typescript, compile a program that uses openapi-fetch, and run it."""
    home = install("typescript")
    for script in ("generate", "check"):
        run(["npm", "run", script], known, cwd=home)
    run([node.program(), "main.ts"], known, cwd=home, says=SAYS)


def use_python(known: Mapping[str, str], programs: Path) -> None:
    """Generate a client with openapi-python-client, check a program that uses it with mypy, and run it."""
    home = state.directory() / "python-typed"
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(EXAMPLES / "python-typed", home)
    on_path = {**known, "PATH": f"{programs}:{node.environment()['PATH']}"}  # the generator formats with its own ruff
    address = f"{known['URL']}/openapi.json"
    options = ("--meta", "none", "--output-path", "taskchat_client", "--fail-on-warning")
    run([programs / "openapi-python-client", "generate", "--url", address, *options], on_path, cwd=home)
    run([programs / "mypy", "main.py"], on_path, cwd=home)
    run([programs / "python", "main.py"], on_path, cwd=home, says=SAYS)
