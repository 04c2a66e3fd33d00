"""Logs and metrics stand beside a request: whatever is wrong with them, the answer is the same."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from testing.callers import AUTH
from testing.gateway import event
from tests.conftest import ROOT, Person, variables
from tests.test_cold_start import fresh

Rows = psycopg.Connection[dict[str, Any]]


@pytest.fixture(scope="session")
def database_url(server: Postgres) -> str:
    """Postgres itself: what is logged does not depend on the way to it."""
    return server.app_url


PROCESS = """
import json, os, sys
from chat.app import handler
from taskchat.http.gateway import logger, metrics
from testing.gateway import LambdaContext
requests = json.load(sys.stdin)
{breakage}
answers = [handler(request, {context}) for request in requests]
with open(sys.argv[1], "w") as file:
    json.dump(answers, file)
os._exit(0)  # as an environment is thrown away: a broken standard output is nobody's at the end
"""

BROKEN_PIPE = "import os; reading, writing = os.pipe(); os.close(reading); os.dup2(writing, 1); os.dup2(writing, 2)"

IN_THE_PROCESS = {
    "nothing": "",
    "standard output closed": "sys.stdout.close()",
    "standard output and error closed": "sys.stdout.close(); sys.stderr.close()",
    "file descriptors closed": "os.close(1); os.close(2)",
    "a pipe that nobody reads": BROKEN_PIPE,
    "a disk that is full": "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)",
    "too many dimensions": "for n in range(30): metrics.dimension_set[f'd{n}'] = 'x'",
    "a metric of no unit": "metrics.metric_set['Broken'] = {'Unit': object(), 'Value': [object()]}",
    "a formatter that fails": "logger.registered_handler.setFormatter(__import__('logging').Formatter('%(none)s'))",
    "a stream that fails": "logger.registered_handler.setStream(object())",
    "a key that cannot be written": "logger.append_keys(key=type('Odd', (), {'__str__': lambda self: 1 / 0})())",
}
"""What is broken before the first request, in the code of the process."""

BY_A_VARIABLE = {
    "no namespace": {"POWERTOOLS_METRICS_NAMESPACE": None},
    "a namespace set to nothing": {"POWERTOOLS_METRICS_NAMESPACE": ""},
    "no service": {"POWERTOOLS_SERVICE_NAME": None},
    "a service that is no text": {"POWERTOOLS_SERVICE_NAME": "\udcff"},
    "metrics neither on nor off": {"POWERTOOLS_METRICS_DISABLED": "perhaps"},
    "events neither logged nor not": {"POWERTOOLS_LOGGER_LOG_EVENT": "perhaps"},
}
"""What is missing or wrong in the environment."""


class Function:
    """The chat function in processes of its own."""

    def __init__(self, known: dict[str, str], person: Person, directory: Path) -> None:
        self._known = known | {"PYTHONPATH": f"{ROOT / 'shared'}:{ROOT / 'functions'}:{ROOT}"}
        self._person, self._answers = person, directory / "answers.json"
        self.printed = ""

    def request(self, title: str) -> dict[str, Any]:
        """The event of a person who adds a task."""
        token = self._person.issuer.mint(self._person.id, issuer=AUTH, audience=AUTH)
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        body = json.dumps({"message": f"Add {title}"}).encode()
        return event("POST", f"/api/{self._person.id}/chat", headers=headers, body=body)

    def answer(self, breakage: str = "", context: str = "LambdaContext()", **known: str | None) -> list[dict[str, Any]]:
        """Two requests in one process, of which something is broken: what the handler returns for each."""
        code = PROCESS.format(breakage=breakage, context=context)
        environment = {name: value for name, value in (self._known | known).items() if value is not None}
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-u", "-W", "ignore", "-c", code, self._answers],
            cwd=ROOT,
            env=environment,
            input=json.dumps([self.request("milk"), self.request("bread")]),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=60,
        )
        assert self._answers.exists(), done.stderr
        self.printed = done.stdout
        answers: list[dict[str, Any]] = json.loads(self._answers.read_text())
        return answers


@pytest.fixture
def function(server: Postgres, standin: StandIn, issuer: Issuer, alice: Person, tmp_path: Path) -> Function:
    """The chat function, with everything in order so far."""
    known = {"POWERTOOLS_METRICS_NAMESPACE": "taskchat", "POWERTOOLS_SERVICE_NAME": "taskchat"}
    return Function(variables(server.app_url, standin, issuer) | known, alice, tmp_path)


def assert_both_are_done(answers: list[dict[str, Any]], rows: Rows, person: Person) -> None:
    """Both requests are answered as ever, and each has its effect once."""
    assert [answer["statusCode"] for answer in answers] == [200, 200]
    told = [call["result"]["title"] for answer in answers for call in json.loads(answer["body"])["tool_calls"]]
    found = rows.execute("select title from task where user_id = %s order by id", [person.id]).fetchall()
    assert told == [row["title"] for row in found] == ["milk", "bread"]


class TestARequest:
    """Answered, with its effect, whatever becomes of what is told about it."""

    @pytest.mark.parametrize("breakage", IN_THE_PROCESS)
    def test_with_something_broken(self, function: Function, rows: Rows, alice: Person, breakage: str) -> None:
        """Twice, for an environment is used again."""
        assert_both_are_done(function.answer(IN_THE_PROCESS[breakage]), rows, alice)

    @pytest.mark.parametrize("variable", BY_A_VARIABLE)
    def test_with_a_variable_wrong(self, function: Function, rows: Rows, alice: Person, variable: str) -> None:
        """Of those that only name or switch what is told."""
        assert_both_are_done(function.answer(**BY_A_VARIABLE[variable]), rows, alice)

    def test_with_a_context_that_says_little(self, function: Function, rows: Rows, alice: Person) -> None:
        """The time that is left is all that a request needs to know of it."""
        context = "type('Bare', (), {'get_remaining_time_in_millis': lambda self: 30_000})()"
        assert_both_are_done(function.answer(context=context), rows, alice)


class TestMetrics:
    """What they are called when nobody says it, and that a failure leaves nothing behind."""

    def metrics(self, printed: str) -> list[dict[str, Any]]:
        """The metric lines among what was printed."""
        return [line for line in map(json.loads, printed.splitlines()) if "_aws" in line]

    @pytest.mark.parametrize(("named", "namespace"), [(None, "taskchat"), ("", "taskchat"), ("Shop", "Shop")])
    def test_the_namespace(self, function: Function, named: str | None, namespace: str) -> None:
        """Ours, unless the environment has another."""
        function.answer(POWERTOOLS_METRICS_NAMESPACE=named)
        lines = self.metrics(function.printed)
        assert {line["_aws"]["CloudWatchMetrics"][0]["Namespace"] for line in lines} == {namespace}
        assert [line["Status2xx"] for line in lines if "Status2xx" in line] == [[1.0], [1.0]]

    def test_what_could_not_be_told_is_not_told_later(self, function: Function) -> None:
        """One broken value costs the metrics of one request."""
        function.answer(IN_THE_PROCESS["a metric of no unit"])
        assert [line["Status2xx"] for line in self.metrics(function.printed) if "Status2xx" in line] == [[1.0]]


def test_no_variable_has_events_logged(function: Function) -> None:
    """An event holds its caller's token."""
    function.answer(POWERTOOLS_LOGGER_LOG_EVENT="true")
    assert "tool call" in function.printed
    assert "uthorization" not in function.printed


def test_the_mcp_function_needs_no_namespace_either() -> None:
    """Both functions have their handler from one place."""
    code = """
import contextlib, io, json
from mcp_tools.app import handler
from testing.gateway import LambdaContext, event
with contextlib.redirect_stdout(io.StringIO()) as printed:
    answer = handler(event("GET", "/.well-known/oauth-protected-resource"), LambdaContext())
print(json.dumps([answer["statusCode"], '"Namespace":"taskchat"' in printed.getvalue()]))
"""
    path = os.pathsep.join(map(str, (ROOT / "shared", ROOT / "functions", ROOT)))
    assert fresh(code, PYTHONPATH=path, POWERTOOLS_METRICS_NAMESPACE="") == [200, True]
