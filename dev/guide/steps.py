"""Read a guide: each `sh` block is a command, and each block under a path is a whole file."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dev import state

GUIDE: Final = state.ROOT / "docs" / "your-own-tools.md"
_BLOCK: Final = re.compile(r"^(?P<before>[^\n]*)\n\n```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_PATH: Final = re.compile(r"`([^`\s]+)`:")


class GuideError(Exception):
    """Raised when a guide cannot be followed; says where and why."""


@dataclass(frozen=True)
class Command:
    """Lines for a shell."""

    text: str

    def __str__(self) -> str:
        return self.text.strip()


@dataclass(frozen=True)
class File:
    """A file to write."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"write {self.path}"


def read(guide: Path = GUIDE) -> list[Command | File]:
    """Return the steps in their order. Raises GuideError for a block that is neither a step nor a `text` to look at."""
    return list(_steps(guide.read_text()))


def _steps(text: str) -> Iterator[Command | File]:
    found = list(_BLOCK.finditer(text))
    if len(re.findall(r"^```", text, re.MULTILINE)) != 2 * len(found):
        raise GuideError("A block has no kind, no end, or no empty line before it.")
    for block in found:
        if path := _PATH.fullmatch(block["before"]):
            yield File(Path(path[1]), block["text"])
        elif block["kind"] == "sh":
            yield Command(block["text"])
        elif block["kind"] != "text":
            raise GuideError(f"The block after {block['before']!r} has no path.")
