"""The watch over the logs of all tests (tests/privacy.py) sees what is logged, and finds what may not be."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dev.tokens import Issuer
from testing.callers import AUTH
from tests.conftest import ROOT, Person
from tests.privacy import Watch

WORDS = "call the lawyer about the divorce"

LEAKING_TEST = f"""
import logging
import pytest
from aws_lambda_powertools import Logger

@pytest.mark.parametrize("way", ["root", "powertools", "print", "error"])
def test_it(way, watch):
    watch.know_texts(["{WORDS}"])
    if way == "root":
        logging.getLogger("any.library").info("asked: %s", "{WORDS}")
    if way == "powertools":
        Logger(service="another").info("turn", extra={{"message_text": "{WORDS}"}})
    if way == "print":
        print("{WORDS}")
    if way == "error":
        try:
            raise ValueError("{WORDS}")
        except ValueError:
            logging.exception("it failed")
"""


@pytest.fixture
def person_in_logs() -> Watch:
    """A watch of its own that knows one text."""
    watch = Watch()
    watch.know_texts([WORDS])
    return watch


def run_tests(directory: Path, code: str, workers: int, *options: str) -> subprocess.CompletedProcess[str]:
    """A run of these tests under the watch."""
    (directory / "test_leaking.py").write_text(code)
    plugins = ["-p", "tests.privacy", "-p", "xdist.plugin", "--numprocesses", str(workers)]
    command = [sys.executable, "-m", "pytest", *plugins, "--rootdir", str(directory), *options, "."]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(  # noqa: S603  # this Python, and tests of ours
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("way", ["root", "powertools", "print", "error"])
def test_a_run_that_logs_a_persons_words_fails(way: str, workers: int, tmp_path: Path) -> None:
    """Whichever way they got out, although its tests pass; the test is named, and the words."""
    done = run_tests(tmp_path, LEAKING_TEST, workers, "-k", way)
    assert "1 passed" in done.stdout
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert f"LEAKED test_leaking.py::test_it[{way}] logged a person's words" in done.stdout


SILENT_TESTS = {
    "a report that cannot be sent": "def test_it(): assert 'a\\ud800' == 'b'",
    "a leak that cannot be sent": "def test_it(): print('Bearer opaque-session-token \\ud800')",
    "a worker that ends after its tests": "def test_it(watch): watch.search = lambda: __import__('os')._exit(7)",
    "a search that fails": "def test_it(watch): watch.search = lambda: 1 / 0",
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("what", SILENT_TESTS)
def test_a_run_that_cannot_tell_fails(what: str, workers: int, tmp_path: Path) -> None:
    """What is lost between a worker and the run may have been a failure, or a leak."""
    assert run_tests(tmp_path, SILENT_TESTS[what], workers).returncode != pytest.ExitCode.OK


def test_what_the_program_logs_is_seen(alice: Person, watch: Watch) -> None:
    """The audit line by its own handler, a library's line by the root logger."""
    before = len(watch.lines)
    alice.say("Add buy milk")
    logging.getLogger("some.library").info("a line of %s", alice.id)
    written = list(watch.lines)[before:]
    assert any('"message":"tool call"' in line and alice.id in line for line in written)
    assert f"a line of {alice.id}" in written


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(f'{{"message":"{WORDS}"}}', id="whole"),
        pytest.param(f"value='{WORDS[:26]}...' is too long", id="cut at its end"),
        pytest.param(f"...{WORDS[6:]}", id="cut at its beginning"),
    ],
)
def test_words_are_found(line: str, person_in_logs: Watch) -> None:
    """Also when the log has cut them."""
    person_in_logs.note(line)
    [leak] = person_in_logs.search().leaks
    assert "a person's words" in leak


def test_words_are_found_as_json_writes_them(person_in_logs: Watch) -> None:
    """Quotes, newlines and letters beyond ASCII."""
    person_in_logs.know_texts(['the "Zürich" thing'])
    person_in_logs.note(r'{"text":"the \"Z\u00fcrich\" thing"}')
    assert person_in_logs.search().leaks


def test_secrets_are_found(issuer: Issuer, person_in_logs: Watch) -> None:
    """By their form, and by their name if they have none."""
    person_in_logs.secrets.add("0123456789abcdef")
    token = issuer.mint("alice", issuer=AUTH, audience=AUTH)
    for line in (
        f"claims of {token}",
        f"{{'Authorization': '{token}'}}",
        "Bearer opaque-session-token",
        "postgresql://app:hunter2@db.example.com/neondb",
        "Incorrect API key provided: sk-proj-aaaaaaaaaaaa",
        "password=0123456789abcdef",
    ):
        person_in_logs.note(line)
    assert len(person_in_logs.search().leaks) == len(person_in_logs.lines) == 6


def test_the_programs_own_words_are_nobodys(person_in_logs: Watch) -> None:
    """A task that is called as a tool is no leak when the tool is logged; everything else about it is."""
    person_in_logs.know_texts(["list_tasks"])
    person_in_logs.note('{"message":"tool call","tool":"list_tasks"}')
    assert person_in_logs.search().leaks == []
