"""Write docs/decisions/README.md, the list of decisions, from their headings."""

from typing import Final

from dev import state
from dev.reference.markdown import fill

DIRECTORY: Final = state.ROOT / "docs" / "decisions"


def page() -> str:
    """Return the page."""
    files = sorted(DIRECTORY.glob("[0-9]*.md"))
    headings = [file.read_text().partition("\n")[0].removeprefix("# ") for file in files]
    return fill(
        "decisions", "\n".join(f"- [{heading}]({file.name})" for heading, file in zip(headings, files, strict=True))
    )
