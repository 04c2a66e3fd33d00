"""Show at the end of the run how much the tests tried, also when all passed: a pytest plugin."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.privacy import is_worker, sendable

_TALLY = pytest.StashKey[list[str]]()


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Give a function that adds a line to the end of the run's output."""
    return partial(report_at_end, request.config)


def report_at_end(config: pytest.Config, line: str) -> None:
    """Add a line to the end of the run's output, from a fixture that outlives its test."""
    config.stash.setdefault(_TALLY, []).append(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send a worker's lines to the main process."""
    if is_worker(session.config):
        session.config.workeroutput["tally"] = sendable(session.config.stash.get(_TALLY, []))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add a worker's lines."""
    for line in getattr(node, "workeroutput", {}).get("tally", []):
        report_at_end(node.config, line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print all lines."""
    told = terminalreporter.config.stash.get(_TALLY, [])
    if told:
        terminalreporter.section("what was tried")
        for line in told:
            terminalreporter.write_line(line)
