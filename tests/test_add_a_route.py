"""docs/add-a-route.md works as it stands, in a copy of the checkout."""

import tempfile
from pathlib import Path

from tests import walkthrough
from tests.walkthrough import Reader


def test_the_page() -> None:
    """Its commands succeed, and print what it shows."""
    with tempfile.TemporaryDirectory(prefix="taskchat-test-") as name:
        Path(name).chmod(0o755)  # Postgres is never root
        reader = Reader.of_copy(Path(name))
        for step in walkthrough.read("add-a-route.md"):
            reader.follow(step)
