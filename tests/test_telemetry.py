"""A failure of logs or metrics never changes the answer to a request."""

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
from tests.domain import example
from tests.test_cold_start import fresh

Rows = psycopg.Connection[dict[str, Any]]


@pytest.fixture(scope="session")
def database_url(server: Postgres) -> str:
    """Give Postgres's own URL: the logs do not depend on the connection."""
    return server.app_url


PROCESS = """
import json, os, sys
from chat.app import handler
from taskchat.http import telemetry
from taskchat.http.telemetry import logger
from taskchat.measures import Measures
from testing.gateway import LambdaContext
requests = json.load(sys.stdin)
{breakage}
answers = [handler(request, {context}) for request in requests]
with open(sys.argv[1], "w") as file:
    json.dump(answers, file)
os._exit(0)  # as Lambda ends an environment: Python would fail at exit to flush a broken standard output
"""

BROKEN_PIPE = "import os; reading, writing = os.pipe(); os.close(reading); os.dup2(writing, 1); os.dup2(writing, 2)"

IN_THE_PROCESS = {
    "nothing": "",
    "standard output closed": "sys.stdout.close()",
    "standard output and error closed": "sys.stdout.close(); sys.stderr.close()",
    "file descriptors closed": "os.close(1); os.close(2)",
    "a pipe without a reader": BROKEN_PIPE,
    "a full disk": "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)",
    "no metrics": "telemetry.EphemeralMetrics = None",
    "a metric of no unit": "telemetry.Metric.unit = property(lambda self: object())",
    "a namespace that is no text": "telemetry.NAMESPACE = object(); os.environ['POWERTOOLS_METRICS_NAMESPACE'] = ''",
    "a metric without a value": "Measures.elapsed_ms = lambda self: object()",
    "no version of the request's line": "telemetry.SCHEMA = type('Odd', (), {'__str__': lambda self: 1 / 0})()",
    "no routes": "Measures.scope = property(lambda self: None, lambda self, scope: None)",
    "a formatter that fails": "logger.registered_handler.setFormatter(__import__('logging').Formatter('%(none)s'))",
    "a stream that fails": "logger.registered_handler.setStream(object())",
    "a key that cannot be written": "logger.append_keys(key=type('Odd', (), {'__str__': lambda self: 1 / 0})())",
}
"""Code that breaks something in the process before the first request."""

BROKEN_ONCE = """
make = telemetry.EphemeralMetrics
def fail_once():
    telemetry.EphemeralMetrics = make
    raise ValueError
telemetry.EphemeralMetrics = fail_once
"""

BY_A_VARIABLE = {
    "no namespace": {"POWERTOOLS_METRICS_NAMESPACE": None},
    "a namespace set to nothing": {"POWERTOOLS_METRICS_NAMESPACE": ""},
    "no service": {"POWERTOOLS_SERVICE_NAME": None},
    "a service that is no text": {"POWERTOOLS_SERVICE_NAME": "\udcff"},
    "metrics neither on nor off": {"POWERTOOLS_METRICS_DISABLED": "perhaps"},
    "events neither logged nor not": {"POWERTOOLS_LOGGER_LOG_EVENT": "perhaps"},
}
"""Variables that are missing or wrong in the environment."""


class Function:
    """Run the chat function in separate processes."""

    def __init__(self, known: dict[str, str], person: Person, directory: Path) -> None:
        self._known = known | {"PYTHONPATH": f"{ROOT / 'shared'}:{ROOT / 'functions'}:{ROOT}"}
        self._person, self._answers = person, directory / "answers.json"
        self.output = ""

    def request(self, text: str) -> dict[str, Any]:
        """Return the event of a request that adds a row."""
        token = self._person.issuer.mint(self._person.id, issuer=AUTH, audience=AUTH)
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        body = json.dumps({"message": example.add(text)}).encode()
        return event("POST", f"/api/{self._person.id}/chat", headers=headers, body=body)

    def answer(self, breakage: str = "", context: str = "LambdaContext()", **known: str | None) -> list[dict[str, Any]]:
        """Handle two requests in one process in which something is broken, and return the handler's answers."""
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
        self.output = done.stdout
        answers: list[dict[str, Any]] = json.loads(self._answers.read_text())
        return answers


@pytest.fixture
def function(server: Postgres, standin: StandIn, issuer: Issuer, alice: Person, tmp_path: Path) -> Function:
    """Return the chat function with everything in order."""
    known = {"POWERTOOLS_METRICS_NAMESPACE": "taskchat", "POWERTOOLS_SERVICE_NAME": "taskchat"}
    return Function(variables(server.app_url, standin, issuer) | known, alice, tmp_path)


def assert_both_are_done(answers: list[dict[str, Any]], rows: Rows, person: Person) -> None:
    """Check that both requests got a 200, and that each effect happened once."""
    assert [answer["statusCode"] for answer in answers] == [200, 200]
    results = [call["result"] for answer in answers for call in json.loads(answer["body"])["tool_calls"]]
    assert [result[example.text] for result in results] == ["milk", "bread"]
    assert example.rows_of(rows, person.id) == [example.row("milk"), example.row("bread")]


class TestRequest:
    """A request gets its answer and has its effect, whatever fails in logs and metrics."""

    @pytest.mark.parametrize("breakage", IN_THE_PROCESS)
    def test_broken_telemetry_fails_no_request(
        self, function: Function, rows: Rows, alice: Person, breakage: str
    ) -> None:
        """Two requests, because Lambda uses an environment again."""
        assert_both_are_done(function.answer(IN_THE_PROCESS[breakage]), rows, alice)

    @pytest.mark.parametrize("variable", BY_A_VARIABLE)
    def test_a_wrong_telemetry_variable_fails_no_request(
        self, function: Function, rows: Rows, alice: Person, variable: str
    ) -> None:
        """These variables only name or switch telemetry."""
        assert_both_are_done(function.answer(**BY_A_VARIABLE[variable]), rows, alice)

    def test_a_context_with_only_the_remaining_time_suffices(
        self, function: Function, rows: Rows, alice: Person
    ) -> None:
        """A request needs nothing else from Lambda's context."""
        context = "type('Bare', (), {'get_remaining_time_in_millis': lambda self: 30_000})()"
        assert_both_are_done(function.answer(context=context), rows, alice)


class TestMetrics:
    """Metrics have a default namespace, and a failed metric leaves nothing behind."""

    def metrics(self, printed: str) -> list[dict[str, Any]]:
        """Return the metric lines of the output."""
        return [line for line in map(json.loads, printed.splitlines()) if "_aws" in line]

    @pytest.mark.parametrize(("named", "namespace"), [(None, "taskchat"), ("", "taskchat"), ("Shop", "Shop")])
    def test_the_namespace_defaults_to_the_products(
        self, function: Function, named: str | None, namespace: str
    ) -> None:
        """The environment may set another."""
        function.answer(POWERTOOLS_METRICS_NAMESPACE=named)
        lines = self.metrics(function.output)
        assert {line["_aws"]["CloudWatchMetrics"][0]["Namespace"] for line in lines} == {namespace}
        assert [line["Status2xx"] for line in lines if "Status2xx" in line] == [[1.0], [1.0]]

    def test_a_broken_metric_is_dropped_with_its_request(self, function: Function) -> None:
        """One fault loses the metrics of one request only."""
        function.answer(BROKEN_ONCE)
        assert [line["Status2xx"] for line in self.metrics(function.output) if "Status2xx" in line] == [[1.0]]


def test_no_variable_makes_the_function_log_events(function: Function) -> None:
    """An event holds its caller's token."""
    function.answer(POWERTOOLS_LOGGER_LOG_EVENT="true")
    assert "tool call" in function.output
    assert "uthorization" not in function.output


def test_the_mcp_function_has_the_same_default_namespace() -> None:
    """Both functions get their handler from one function."""
    code = """
import contextlib, io, json
with contextlib.redirect_stdout(io.StringIO()) as printed:
    from mcp_tools.app import handler
    from testing.gateway import LambdaContext, event
    answer = handler(event("GET", "/.well-known/oauth-protected-resource"), LambdaContext())
print(json.dumps([answer["statusCode"], '"Namespace":"taskchat"' in printed.getvalue()]))
"""
    path = os.pathsep.join(map(str, (ROOT / "shared", ROOT / "functions", ROOT)))
    assert fresh(code, PYTHONPATH=path, POWERTOOLS_METRICS_NAMESPACE="") == [200, True]
