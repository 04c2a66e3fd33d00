"""`make reference`: write the reference pages anew."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from dev import state
from dev.reference import decisions, events, metrics, problems, routes, settings

PAGES: Final[dict[Path, Callable[[], str]]] = {
    state.ROOT / "docs" / "settings.md": settings.page,
    state.ROOT / "docs" / "routes.md": routes.page,
    state.ROOT / "docs" / "events.md": events.page,
    state.ROOT / "docs" / "metrics.md": metrics.page,
    state.ROOT / "docs" / "problems.md": problems.page,
    decisions.DIRECTORY / "README.md": decisions.page,
}
"""The generated pages."""


def main() -> None:
    """Write each page."""
    for path, page in PAGES.items():
        path.write_text(page())


if __name__ == "__main__":
    main()
