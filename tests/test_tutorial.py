"""docs/tutorial.md works as it stands, in a copy of the checkout."""

import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dev import processes
from tests import walkthrough
from tests.conftest import ROOT
from tests.privacy import LogSearch
from tests.walkthrough import Reader, Step

PAGE = (ROOT / "docs" / "tutorial.md").read_text()
START, *STEPS = walkthrough.read("tutorial.md")
ADDRESS = "http://127.0.0.1:8000"
RESTART_SECONDS = 30


@pytest.fixture
def reader(log_search: LogSearch) -> Iterator[Reader]:
    """Return a person with a clone, and search what their server logged."""
    with tempfile.TemporaryDirectory(prefix="taskchat-test-") as name:
        Path(name).chmod(0o755)  # Postgres is never root
        reader = Reader.of_copy(Path(name))
        yield reader
        log_search.add_output((reader.checkout / ".dev" / "server.log").read_text())


def test_the_tutorial(reader: Reader) -> None:
    """Each command prints what the page shows. A reader sends the page's first message on the chat page."""
    assert START.text.strip() == "make dev"
    with reader.serving() as printed:
        (address,) = re.findall(r"Page  (.*)/\n", printed)
        assert START.is_shown(printed.replace(address, ADDRESS)), printed
        (message,) = re.findall(r'write "(.+?)", and press Enter', PAGE)
        assert "call mum" in reader.run(f'make chat MESSAGE="{message}"')
        for step in STEPS:
            step = replace(step, text=step.text.replace(ADDRESS, address))
            wait_for_change(reader, step)
            reader.follow(step)


def wait_for_change(reader: Reader, step: Step) -> None:
    """Wait until a turn prints what the page shows: a server whose code changed restarts."""
    if step.text.startswith("make chat"):
        for _ in processes.attempts(RESTART_SECONDS):
            done = reader.try_to_run(step.text)
            if done.returncode == 0 and step.is_shown(done.stdout):
                return
