"""A pytest plugin: tests say how much they tried, and the end of the run shows it, also when everything passed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.privacy import is_worker, sendable

_TALLY = pytest.StashKey[list[str]]()


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Say how much was tried: shown at the end of the run, also when everything passed."""
    return partial(tell_at_the_end, request.config)


def tell_at_the_end(config: pytest.Config, line: str) -> None:
    """The same, for a fixture that lives longer than a test."""
    config.stash.setdefault(_TALLY, []).append(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand over what the tests of one of several workers told."""
    if is_worker(session.config):
        session.config.workeroutput["tally"] = sendable(session.config.stash.get(_TALLY, []))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take it."""
    for line in getattr(node, "workeroutput", {}).get("tally", []):
        tell_at_the_end(node.config, line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the tests told."""
    told = terminalreporter.config.stash.get(_TALLY, [])
    if told:
        terminalreporter.section("what was tried")
        for line in told:
            terminalreporter.write_line(line)
