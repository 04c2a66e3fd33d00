"""Build the example pages, serve them, and take one turn in each with a browser."""

from collections.abc import Mapping
from typing import Final

from dev.examples.running import install, run

NAMES: Final = ("usechat", "assistant-ui")


def use(name: str, known: Mapping[str, str]) -> None:
    """Build the page and take one turn in it. Raises ProofError."""
    home = install(name)
    run(["npm", "run", "build"], known, cwd=home)
