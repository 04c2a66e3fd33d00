"""The search of all logs (tests/privacy.py) reads everything that the program logs, and finds each leak."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dev.tokens import Issuer
from testing.callers import AUTH
from tests.conftest import ROOT, Person
from tests.domain import example
from tests.privacy import LogSearch

TEXT = "call the lawyer about the divorce"

LEAKING_TEST = f"""
import logging
import pytest
from aws_lambda_powertools import Logger

@pytest.mark.parametrize("way", ["root", "powertools", "print", "error"])
def test_it(way, log_search):
    log_search.add_texts(["{TEXT}"])
    if way == "root":
        logging.getLogger("any.library").info("asked: %s", "{TEXT}")
    if way == "powertools":
        Logger(service="another").info("turn", extra={{"message_text": "{TEXT}"}})
    if way == "print":
        print("{TEXT}")
    if way == "error":
        try:
            raise ValueError("{TEXT}")
        except ValueError:
            logging.exception("it failed")
"""


@pytest.fixture
def log_search_for_text() -> LogSearch:
    """Return a log search of its own that knows one text."""
    log_search = LogSearch()
    log_search.add_texts([TEXT])
    return log_search


def run_tests(directory: Path, code: str, workers: int, *options: str) -> subprocess.CompletedProcess[str]:
    """Run this test file with the log search."""
    (directory / "test_leaking.py").write_text(code)
    plugins = ["-p", "tests.privacy", "-p", "xdist.plugin", "--numprocesses", str(workers)]
    command = [sys.executable, "-m", "pytest", *plugins, "--rootdir", str(directory), *options, "."]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(  # noqa: S603  # this Python, and these tests
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("way", ["root", "powertools", "print", "error"])
def test_a_run_that_logs_a_users_text_fails(way: str, workers: int, tmp_path: Path) -> None:
    """The run fails although its tests pass, by whichever way the text came out. It names the test and the text."""
    done = run_tests(tmp_path, LEAKING_TEST, workers, "-k", way)
    assert "1 passed" in done.stdout
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert f"LEAKED test_leaking.py::test_it[{way}] logged a user's text" in done.stdout


_FAILING_SEARCH = "def test_it(log_search): log_search.search = lambda: "
SILENT_TESTS = {
    "a report that cannot be sent": "def test_it(): assert 'a\\ud800' == 'b'",
    "a leak that cannot be sent": "def test_it(): print('Bearer opaque-session-token \\ud800')",
    "a worker that ends after its tests": f"{_FAILING_SEARCH}__import__('os')._exit(7)",
    "a search that fails": f"{_FAILING_SEARCH}1 / 0",
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("what", SILENT_TESTS)
def test_a_run_that_loses_a_search_result_fails(what: str, workers: int, tmp_path: Path) -> None:
    """A lost result may have been a failure or a leak."""
    assert run_tests(tmp_path, SILENT_TESTS[what], workers).returncode != pytest.ExitCode.OK


def test_all_that_the_program_logs_is_searched(alice: Person, log_search: LogSearch) -> None:
    """The audit line comes from its own handler, a library's line from the root logger."""
    before = len(log_search.lines)
    alice.say(example.add("buy milk"))
    logging.getLogger("some.library").info("a line of %s", alice.id)
    written = list(log_search.lines)[before:]
    assert any('"message":"tool call"' in line and alice.id in line for line in written)
    assert f"a line of {alice.id}" in written


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(f'{{"message":"{TEXT}"}}', id="whole"),
        pytest.param(f"value='{TEXT[:26]}...' is too long", id="cut at its end"),
        pytest.param(f"...{TEXT[6:]}", id="cut at its beginning"),
    ],
)
def test_a_text_is_found(line: str, log_search_for_text: LogSearch) -> None:
    """The search finds a text that the log has cut."""
    log_search_for_text.add_output(line)
    [leak] = log_search_for_text.search().leaks
    assert "a user's text" in leak


def test_a_text_is_found_in_json(log_search_for_text: LogSearch) -> None:
    """The search finds quotes, newlines and letters beyond ASCII."""
    log_search_for_text.add_texts(['the "Zürich" thing'])
    log_search_for_text.add_output(r'{"text":"the \"Z\u00fcrich\" thing"}')
    assert log_search_for_text.search().leaks


def test_secrets_are_found(issuer: Issuer, log_search_for_text: LogSearch) -> None:
    """The search finds a secret by its form, and one without a form by its value."""
    log_search_for_text.secrets.add("0123456789abcdef")
    token = issuer.mint("alice", issuer=AUTH, audience=AUTH)
    for line in (
        f"claims of {token}",
        f"{{'Authorization': '{token}'}}",
        "Bearer opaque-session-token",
        "postgresql://app:hunter2@db.example.com/neondb",
        "Incorrect API key provided: sk-proj-aaaaaaaaaaaa",
        "password=0123456789abcdef",
    ):
        log_search_for_text.add_output(line)
    assert len(log_search_for_text.search().leaks) == len(log_search_for_text.lines) == 6


def test_the_programs_own_text_is_no_leak(log_search_for_text: LogSearch) -> None:
    """A user's text that equals a tool's name is no leak where the tool is logged."""
    log_search_for_text.add_texts([example.list_tool])
    log_search_for_text.add_output(f'{{"message":"tool call","tool":"{example.list_tool}"}}')
    assert log_search_for_text.search().leaks == []
