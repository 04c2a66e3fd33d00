"""The search of all logs (tests/privacy.py) reads everything that the program logs, and finds each leak."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from dev.backend import STAND_IN
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from taskchat import cursor
from testing.callers import AUTH
from testing.gateway import LambdaContext, runtime_log
from tests import personal_data
from tests.conftest import ROOT, Logs, Person, reset_processes
from tests.domain import example
from tests.privacy import LogSearch

WORD = "quuxzanzibar"
"""A text of a person that no log line may hold."""
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


class TestPersonalData:
    """The routes of a person's own data log no text. The search of all logs misses texts that they delete."""

    @pytest.fixture
    def everything(self, logs: Logs, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
        """Return a function that gives all that was written since the test began."""
        with runtime_log() as written:
            yield lambda: json.dumps(logs()) + written.getvalue() + "".join(capfd.readouterr())

    def test_nothing_that_is_deleted_or_erased_is_logged(
        self, alice: Person, standin: StandIn, everything: Callable[[], str]
    ) -> None:
        """Neither messages nor titles, arguments, results or the names that a model made up."""
        standin.fault("call", calls=[{"name": f"{WORD}tool", "arguments": {WORD: WORD}}], match="invent")
        first = alice.say(f"{WORD} invent").json["conversation_id"]
        second = alice.say(example.add(WORD)).json["conversation_id"]
        for conversation in (first, second):
            assert alice.call("PATCH", f"/conversations/{conversation}", {"title": WORD}).status == 200
        answers = [alice.get(path) for path in ("/conversations", f"/conversations/{second}", "/export")]
        assert all(WORD in answer.body for answer in answers)
        assert alice.call("DELETE", f"/conversations/{first}").status == 204
        assert personal_data.erase(alice).status == 204
        written = everything()
        assert WORD not in written
        for line in ("conversation renamed", "conversation deleted", "erased"):
            assert f'"message": "{line}"' in written

    @pytest.mark.parametrize("path", ["/conversations", f"/conversations/{UUID(int=1)}", "/export"])
    def test_no_query_is_logged(self, alice: Person, path: str, everything: Callable[[], str]) -> None:
        """It may hold any text, in a cursor too."""
        for query in ({WORD: "1"}, {"limit": WORD}, {"cursor": WORD}, {"cursor": cursor.write(WORD)}):
            assert alice.get(path, **query).status == 422
        written = everything()
        assert WORD not in written
        assert cursor.write(WORD) not in written

    @pytest.mark.parametrize("title", [f"{WORD}\0", WORD * 30, [WORD], {WORD: WORD}])
    def test_no_title_that_is_refused_is_logged(self, alice: Person, title: Any, everything: Callable[[], str]) -> None:
        """Nor one for a conversation that is not there."""
        for value, status in ((title, 422), (WORD, 404)):
            assert alice.call("PATCH", f"/conversations/{uuid4()}", {"title": value}).status == status
        assert WORD not in everything()

    def test_no_text_is_logged_when_the_database_is_gone(
        self, alice: Person, everything: Callable[[], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An error of the driver may quote its statement with the values."""
        monkeypatch.setenv("DATABASE_URL", "postgresql://taskchat_app:x@127.0.0.1:9/taskchat?sslmode=disable")
        reset_processes()
        here = f"/conversations/{uuid4()}"
        answers = [
            alice.call("PATCH", here, {"title": WORD}),
            alice.call("DELETE", here),
            alice.get("/export"),
            personal_data.erase(alice),
        ]
        assert {answer.status for answer in answers} == {503}
        assert WORD not in everything()


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


@pytest.mark.parametrize("name", [STAND_IN["MODEL"], LambdaContext.function_name, LambdaContext.invoked_function_arn])
def test_a_name_of_the_installation_is_no_leak(name: str, alice: Person, logs: Logs) -> None:
    """The model's name and the function's are in many lines. Hypothesis sends them: it reads the constants of ours."""
    alice.say(example.add("buy milk"))
    search = LogSearch()
    search.add_texts([name])
    search.add_output(json.dumps(logs()))
    assert search.search().leaks == []
