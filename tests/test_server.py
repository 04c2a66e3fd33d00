"""The streaming entry point does what the other one does: ids in log lines, metrics, CORS, errors, a deadline.

The tests start its HTTP server as Lambda does, in a process of its own, and send the adapter's requests.
"""

import http.client
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from dev import processes
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from taskchat import deadline
from taskchat.http.gateway import MARGIN
from taskchat.http.web_adapter import observe
from testing.callers import Caller
from testing.gateway import LambdaContext
from tests.conftest import ROOT, run, variables
from tests.domain import example
from tests.privacy import LogSearch
from tests.test_template import cors, template, translate

HOST = "127.0.0.1"
ORIGIN = "https://app.example.com"
PATIENCE = 40
SECONDS = 30
CORRELATION_ID = "8d0c1b5e-7b5c-4f0e-9d57-0d7a8b0d4c11"


ENDS = ("turn finished", "request")
"""The last two lines of a turn's request."""

KNOWN = LambdaContext()


@dataclass(frozen=True)
class HttpAnswer:
    """Hold an answer over HTTP."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """Return the parsed body."""
        return json.loads(self.body)


@dataclass
class Server:
    """A running server of the streaming function."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> HttpAnswer:
        """Send a request as it is. An underscore in a header's name is a hyphen."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=PATIENCE)
        try:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, json.dumps(body) if body else None, sent)
            response = connection.getresponse()
            return HttpAnswer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def invoke(self, method: str, path: str, body: Any = None, id: str = CORRELATION_ID, **headers: str) -> HttpAnswer:
        """Send a request as the adapter does."""
        known = {"x_amzn_request_context": json.dumps({"requestId": id}), "x_amzn_lambda_context": lambda_context()}
        return self.send(method, path, body, **known | headers)

    def say(self, caller: Caller, message: str, **options: str) -> HttpAnswer:
        """Take one turn."""
        known = {"authorization": f"Bearer {caller.token}", "content_type": "application/json"}
        return self.invoke("POST", f"/api/{caller.id}/chat", {"message": message}, **known | options)

    def lines(self) -> list[dict[str, Any]]:
        """Return all lines that the server wrote. Each is JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def lines_about(self, actor: str) -> list[dict[str, Any]]:
        """Return the log lines about one user."""
        return [line for line in self.lines() if line.get("actor") == actor]


def lambda_context() -> str:
    """Return Lambda's context as the adapter writes it."""
    return json.dumps(
        {
            "request_id": KNOWN.aws_request_id,
            "deadline": 1,
            "invoked_function_arn": KNOWN.invoked_function_arn,
            "env_config": {"function_name": KNOWN.function_name, "memory": int(KNOWN.memory_limit_in_mb)},
        }
    )


@pytest.fixture(scope="module")
def database_url(server: Postgres) -> str:
    """Give Postgres's own URL: the entry point does not depend on the connection."""
    return server.app_url


@pytest.fixture(scope="module")
def stream(
    server: Postgres,
    running_model: StandIn,
    issuer: Issuer,
    log_search: LogSearch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """Run the server as it starts on Lambda."""
    port, log = processes.free_port(HOST), tmp_path_factory.mktemp("stream") / "log"
    environment = variables(server.app_url, running_model, issuer) | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "shared", ROOT / "functions"))),
        "AWS_LAMBDA_RUNTIME_API": f"{HOST}:9",  # the process is on Lambda; nothing asks for events here
        "CORS_ORIGINS": ORIGIN,
        "STREAM_SECONDS": str(SECONDS),
    }
    command = [sys.executable, "-u", "-W", "ignore", "-m", "chat.server", str(port)]
    with log.open("wb") as output:
        process = processes.spawn(command, output=output, cwd=ROOT / "functions", env=environment)
    try:
        processes.wait_until_listening(process, HOST, port)
        yield Server(process, port, log)
    finally:
        processes.stop(process, signal.SIGTERM)
        log_search.add_output(log.read_text())


@pytest.fixture
def caller(issuer: Issuer, standin: StandIn) -> Caller:
    """Return a user that the service does not know yet."""
    return Caller.new(issuer)


class TestStart:
    """The process starts as the other entry point does. This class needs the server's first requests."""

    def test_the_adapters_readiness_check_is_no_request(self, stream: Server) -> None:
        """It gets an answer, and no metric counts it."""
        assert stream.send("GET", "/health").json == {"status": "ok"}
        assert [line for line in stream.lines() if "_aws" in line] == []

    def test_the_cold_start_is_counted_once(self, stream: Server, caller: Caller) -> None:
        """The first request's log lines have it too."""
        assert [stream.say(caller, example.add(text)).status for text in ("milk", "bread")] == [200, 200]
        names = [line["function_name"] for line in stream.lines() if "ColdStart" in line]
        assert names == [KNOWN.function_name]
        calls = [line["cold_start"] for line in stream.lines_about(caller.id) if line["message"] == "tool call"]
        assert calls == [True, False]


class TestLog:
    """Log lines have the keys that they have on the other entry point."""

    def test_a_line_has_the_requests_ids(self, stream: Server, caller: Caller) -> None:
        """They come from the headers that the adapter writes."""
        stream.say(caller, example.add("milk"))
        for line in stream.lines_about(caller.id):
            assert line["correlation_id"] == CORRELATION_ID
            assert line["function_request_id"] == KNOWN.aws_request_id
            assert line["function_name"] == KNOWN.function_name
            assert line["function_arn"] == KNOWN.invoked_function_arn
            assert line["function_memory_size"] == int(KNOWN.memory_limit_in_mb)

    @pytest.mark.parametrize(
        "context",
        [
            *("", "no JSON", "[]", "{}", '{"requestId": 1}', '{"requestId": "a person wrote this"}'),
            *(json.dumps({"requestId": text}) for text in ("x" * 65, "x\n", "")),
        ],
    )
    def test_a_text_that_is_no_id_is_replaced(self, stream: Server, caller: Caller, context: str) -> None:
        """The request succeeds, and its lines share a new id."""
        answer = stream.say(caller, example.add("milk"), x_amzn_request_context=context, x_amzn_lambda_context=context)
        assert answer.status == 200, answer.body
        [correlation_id] = {line["correlation_id"] for line in stream.lines_about(caller.id)}
        assert len(correlation_id) == 36
        assert "a person wrote this" not in stream.log.read_text()

    def test_requests_at_once_keep_their_ids(self, stream: Server, standin: StandIn, issuer: Issuer) -> None:
        """Each turn waits for the model while the others log."""
        callers = {f"id-{number}": Caller.new(issuer) for number in range(4)}
        message = example.add("milk at once")
        standin.fault("hang", match=message, after_calls=1, times=len(callers), seconds=PATIENCE)
        with ThreadPoolExecutor(len(callers)) as pool:
            answers = [pool.submit(stream.say, caller, message, id=id) for id, caller in callers.items()]
            standin.waiting(at_least=len(callers))
            standin.release()
            assert {answer.result().status for answer in answers} == {200}
        found = {id: {line["correlation_id"] for line in stream.lines_about(c.id)} for id, c in callers.items()}
        assert found == {id: {id} for id in callers}
        for id in callers:
            lines = [line for line in stream.lines() if line.get("correlation_id") == id]
            assert [line["message"] for line in lines if line["message"] in ENDS] == list(ENDS)
            assert [line["request_id"] for line in lines if line["message"] == "tool call"] == [id]


def test_a_streamed_turn_is_reported_before_its_last_byte(stream: Server, caller: Caller) -> None:
    """Lambda freezes the process after that byte. The first event came earlier."""
    before = len(stream.lines())
    answer = stream.say(caller, example.add("milk"), accept="text/event-stream", id="streamed")
    assert (answer.status, answer.headers["x-request-id"]) == (200, "streamed")
    lines = stream.lines()[before:]
    model, *_, finished, request = [line for line in lines if line.get("correlation_id") == "streamed"]
    assert (finished["message"], request["message"], request["route"]) == (*ENDS, "/api/{user_id}/chat")
    assert finished["begin_ms"] < finished["first_event_ms"] < finished["duration_ms"] <= request["duration_ms"]
    assert (model["message"], model["outcome"]) == ("model call", "ok")
    metrics = {name: value for line in lines if "_aws" in line for name, value in line.items()}
    assert (metrics["Turns"], metrics["Status2xx"]) == ([1], [1])
    assert metrics["FirstEventLatency"] == [finished["first_event_ms"]]
    assert [line["Turns"] for line in lines if "Turns" in line] == [[1]]


def test_each_status_is_counted(stream: Server, caller: Caller) -> None:
    """A request that the app refuses counts like any other."""
    before = len([line for line in stream.lines() if "Status4xx" in line])
    refused = stream.invoke("POST", f"/api/{caller.id}/chat", {"message": "hello"})
    assert (refused.status, refused.json["type"]) == (401, "urn:taskchat:problem:unauthenticated")
    assert len([line for line in stream.lines() if "Status4xx" in line]) == before + 1


def test_an_unknown_route_is_a_problem(stream: Server) -> None:
    """The gateway passes every path on."""
    answer = stream.invoke("GET", "/")
    assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")


@pytest.fixture(scope="module")
def allowed() -> dict[str, Any]:
    """Return the CORS settings of the HTTP API."""
    return cors(translate(template())["Resources"])


class TestCors:
    """The app answers browsers as the HTTP API does."""

    def preflight(self, stream: Server, origin: str, **headers: str) -> HttpAnswer:
        """Ask as a browser does before it sends a message."""
        asked = {"origin": origin, "access_control_request_method": "POST"}
        return stream.invoke("OPTIONS", "/api/alice/chat", **asked | headers)

    def test_a_preflight_gets_the_lists_of_the_http_api(self, stream: Server, allowed: dict[str, Any]) -> None:
        """Less the headers of MCP clients, whose endpoint is not here, and with those that need no permission."""
        answer = self.preflight(stream, ORIGIN)
        listed = {
            name: {each.lower() for each in answer.headers[f"access-control-allow-{name}"].split(", ")}
            for name in ("methods", "headers")
        }
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert answer.headers["access-control-max-age"] == str(allowed["maxAge"])
        assert listed["methods"] == {method.lower() for method in allowed["allowMethods"]}
        for_mcp = {name for name in allowed["allowHeaders"] if name.startswith("mcp-")}
        assert listed["headers"] >= set(allowed["allowHeaders"]) - for_mcp
        assert listed["headers"] - set(allowed["allowHeaders"]) == {"accept", "accept-language", "content-language"}

    def test_another_pages_preflight_is_refused(self, stream: Server) -> None:
        """The browser sends no message then."""
        answer = self.preflight(stream, "https://evil.example.com")
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (400, None)

    def test_a_page_may_read_errors(self, stream: Server, allowed: dict[str, Any]) -> None:
        """It can show why a message failed, and when to try again."""
        answer = stream.invoke("POST", "/api/alice/chat", {"message": "hello"}, origin=ORIGIN)
        assert answer.status == 401
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert set(exposed) == set(allowed["exposeHeaders"])

    def test_every_answer_has_the_security_headers(self, stream: Server) -> None:
        """A preflight's too, which the app's own middleware does not see."""
        answers = [self.preflight(stream, ORIGIN), stream.invoke("GET", "/health")]
        assert [answer.headers["x-content-type-options"] for answer in answers] == ["nosniff"] * 2


class TestDeadline:
    """The deadline is this entry point's own."""

    def test_a_request_has_the_parameters_seconds(self) -> None:
        """The app gets them less the time for the answer. The readiness check has no deadline."""
        left: list[float] = []

        async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
            left.append(deadline.remaining())

        async def never(*_: Any) -> Any: ...

        for headers in ([(b"x-amzn-request-context", b"{}")], []):
            run(observe(app, 300)({"type": "http", "headers": headers}, never, never))
        assert left == [pytest.approx(300 - MARGIN, abs=PATIENCE), math.inf]
        assert left[0] <= 300 - MARGIN

    @pytest.mark.parametrize(("outer", "least"), [(300, 200), (5, 0)])
    def test_a_route_keeps_its_entry_points_deadline(self, outer: float, least: float) -> None:
        """A longer one and a shorter one."""
        with deadline.within(outer), deadline.default(27):
            assert least < deadline.remaining() <= outer

    def test_a_route_without_an_entry_point_has_its_own(self) -> None:
        """As in `make dev`."""
        with deadline.default(27):
            assert 0 < deadline.remaining() <= 27
