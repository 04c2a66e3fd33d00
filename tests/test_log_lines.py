"""The log lines and metrics of a request: its one id, and the fields of each line, which docs/log-lines.md lists."""

import json
from collections import Counter
from typing import Any

import psycopg
import pytest

from dev.standin_model.client import StandIn
from taskchat import measures
from taskchat.http.telemetry import Metric, write_metrics
from testing.gateway import LambdaContext, Response, event, invoke
from tests.audit_schema import fault_of, schema
from tests.conftest import ROOT, Logs, Person, reset_processes
from tests.domain import example
from tests.test_mcp_endpoint import McpClient

Rows = psycopg.Connection[dict[str, Any]]
Printed = pytest.CaptureFixture[str]
ADD = example.add("milk")
DOCUMENT = (ROOT / "docs" / "log-lines.md").read_text()


def lines_of(logs: Logs, message: str) -> list[dict[str, Any]]:
    """Return the log lines with this message."""
    return [line for line in logs() if line["message"] == message]


def documents(printed: Printed) -> list[dict[str, Any]]:
    """Return the metric documents that were printed since the last call."""
    return [line for line in map(json.loads, printed.readouterr().out.splitlines()) if "_aws" in line]


def figures(printed: Printed) -> dict[str, list[float]]:
    """Return the values of each metric since the last call, and of each of its dimensions besides the service."""
    found: dict[str, list[float]] = {}
    for document in documents(printed):
        for directive in document["_aws"]["CloudWatchMetrics"]:
            [names] = directive["Dimensions"]
            of = "".join(f" {document[name]}" for name in names if name != "service")
            found |= {metric["Name"] + of: document[metric["Name"]] for metric in directive["Metrics"]}
    return found


class TestRequestId:
    """A request has one id: in its response, its log lines and its records."""

    def check(self, answer: Response, logs: Logs, rows: Rows, person: Person) -> None:
        """Compare the ids of a request that made one call."""
        id = answer.headers["x-request-id"]
        [row] = rows.execute("select request_id from tool_call where user_id = %s", [person.id]).fetchall()
        [line] = lines_of(logs, "tool call")
        assert row["request_id"] == line["request_id"] == id
        assert {line["correlation_id"] for line in logs()} == {id}

    def test_of_a_turn(self, alice: Person, logs: Logs, rows: Rows) -> None:
        """It is the gateway's."""
        request = alice.request({"message": ADD})
        from chat.app import handler

        answer = invoke(handler, request)
        assert answer.headers["x-request-id"] == request["requestContext"]["requestId"]
        self.check(answer, logs, rows, alice)

    def test_of_an_mcp_clients_call(self, alice: Person, logs: Logs, rows: Rows) -> None:
        """The other entry point has the same ids."""
        answer = McpClient(alice.mcp_token).request("tools/call", **example.call_add("milk"))
        self.check(answer, logs, rows, alice)

    @pytest.mark.parametrize("id", ["", "a text of the caller's", "x" * 65, 1, None, "é", "a\r\nb: c"])
    def test_another_text_is_replaced(self, alice: Person, logs: Logs, rows: Rows, id: Any) -> None:
        """An event may have been made by hand."""
        from chat.app import handler

        request = alice.request({"message": ADD})
        request["requestContext"]["requestId"] = id
        answer = invoke(handler, request)
        assert len(answer.headers["x-request-id"]) == 36
        self.check(answer, logs, rows, alice)

    @pytest.mark.parametrize("function", ["chat", "mcp_tools"])
    def test_of_every_error(self, environment: None, function: str) -> None:
        """Unknown routes, missing tokens and events that are no requests have one too."""
        from chat.app import handler as chat
        from mcp_tools.app import handler as mcp_tools

        handler = {"chat": chat, "mcp_tools": mcp_tools}[function]
        requests = [event("GET", "/nothing"), event("POST", "/api/x/chat"), event("POST", "/mcp"), {"version": "2.0"}]
        answers = [handler(request, LambdaContext()) for request in requests]
        assert [answer["statusCode"] for answer in answers if answer["statusCode"] < 400] == []
        assert len({answer["headers"]["x-request-id"] for answer in answers}) == len(requests)


class TestModelCalls:
    """Each try of a model call has a line with its outcome, times and tokens."""

    def test_an_answer(self, alice: Person, logs: Logs, standin: StandIn) -> None:
        """A turn with a tool call asks the model twice."""
        answer = alice.say(ADD).json
        first, second = lines_of(logs, "model call")
        [usage] = lines_of(logs, "turn finished")
        for line in (first, second):
            assert (line["schema"], line["attempt"], line["outcome"]) == ("taskchat.model/1", 1, "ok")
            assert (line["turn_id"], line["actor"]) == (answer["turn_id"], alice.id)
            assert line["conversation_id"] == answer["conversation_id"]
            assert line["gen_ai.request.model"] == "stand-in"
            assert (line["gen_ai.operation.name"], line["gen_ai.provider.name"]) == ("chat", "127.0.0.1")
            assert line["duration_ms"] > 0
            assert not line.keys() & {"error.type", "first_token_ms"}  # it did not fail, and it was not streamed
        for kind, name in (("input", "input"), ("cache_read.input", "cached"), ("output", "output")):
            spent = [line[f"gen_ai.usage.{kind}_tokens"] for line in (first, second)]
            assert sum(spent) == usage[f"{name}_tokens"]

    def test_tries_and_the_fallback(
        self, alice: Person, logs: Logs, standin: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: Printed
    ) -> None:
        """The fallback's try has the next number."""
        monkeypatch.setenv("MODEL_FALLBACK", "second-choice")
        reset_processes()
        standin.fault("server_error", match=ADD, times=3)
        assert alice.say(ADD).status == 200
        tries = [
            (line["attempt"], line["outcome"], line["gen_ai.request.model"]) for line in lines_of(logs, "model call")
        ]
        failed = [(number, "failed", "stand-in") for number in (1, 2, 3)]
        assert tries == [*failed, (4, "ok", "second-choice"), (1, "ok", "stand-in")]
        assert lines_of(logs, "model call")[0]["error.type"].startswith("InternalServerError 500")
        found = figures(capsys)
        assert (found["ModelCalls failed"], found["ModelCalls ok"], len(found["ModelLatency"])) == ([3], [2], 5)

    def test_a_try_that_is_too_late(self, alice: Person, logs: Logs, standin: StandIn) -> None:
        """The deadline cancels it."""
        standin.fault("hang", match=ADD, times=None)
        assert alice.say(ADD, seconds=3).status == 504
        [line] = lines_of(logs, "model call")
        assert (line["outcome"], line["error.type"]) == ("failed", "TimeoutError")


class TestTurn:
    """The line that ends a turn has its outcome and its times."""

    def test_finished(self, alice: Person, logs: Logs, capsys: Printed) -> None:
        """The database's time includes both transactions and the call's."""
        alice.say(ADD)
        [line] = lines_of(logs, "turn finished")
        assert (line["outcome"], line["resumed"], line.get("first_event_ms")) == ("finished", 0, None)
        assert 0 < line["begin_ms"] + line["finish_ms"] < line["database_ms"] < line["duration_ms"]
        found = figures(capsys)
        assert found["Turns finished"] == [1]
        assert (found["TurnLatency"], found["InputTokens"]) == ([line["duration_ms"]], [line["input_tokens"]])
        assert not found.keys() & {"ResumedTurns", "ReplayedTurns", "RefusedByLimit", "DatabaseRefused"}

    def test_interrupted_resumed_and_replayed(
        self, alice: Person, logs: Logs, standin: StandIn, capsys: Printed
    ) -> None:
        """The second request goes on after the call of the first one. The third gets the stored answer."""
        standin.fault("quota", match=ADD, times=1, after_calls=1)
        asked = [(alice.say(ADD, key="k").status, figures(capsys)) for _ in range(3)]
        assert [status for status, _ in asked] == [502, 200, 200]
        (_, interrupted), (_, resumed), (_, replayed) = asked
        assert interrupted["Turns model-failed"] == resumed["Turns finished"] == replayed["Turns replayed"] == [1]
        assert resumed["ResumedTurns"] == replayed["ReplayedTurns"] == [1]
        messages = ("turn interrupted", "turn finished", "turn replayed")
        first, second, third = (line for message in messages for line in lines_of(logs, message))
        assert (first["outcome"], second["resumed"], third["outcome"]) == ("model-failed", 1, "replayed")
        assert first["turn_id"] == second["turn_id"] == third["turn_id"]
        assert (third["schema"], third["input_tokens"], third.get("model")) == ("taskchat.usage/1", 0, None)


class TestRequestLine:
    """The last line of each request has its route and its status, and nothing of its path."""

    def last(self, logs: Logs) -> tuple[str | None, str | None, int]:
        """Return what the last line says."""
        line = logs()[-1]
        assert (line["message"], line["schema"]) == ("request", "taskchat.request/1")
        assert line["duration_ms"] > 0
        return line.get("method"), line.get("route"), line["status"]

    def test_of_chat(self, alice: Person, logs: Logs) -> None:
        """Routes of an included router have their whole template."""
        alice.say(ADD)
        assert self.last(logs) == ("POST", "/api/{user_id}/chat", 200)
        alice.get("/conversations")
        assert self.last(logs) == ("GET", "/api/{user_id}/conversations", 200)
        alice.get("/conversations/not-an-id")
        assert self.last(logs) == ("GET", "/api/{user_id}/conversations/{conversation_id}", 404)
        alice.call("DELETE", "")
        assert self.last(logs) == ("DELETE", "/api/{user_id}", 428)

    def test_of_mcp(self, alice: Person, logs: Logs) -> None:
        """Its routes have no parameters."""
        McpClient(alice.mcp_token).add("milk")
        assert self.last(logs) == ("POST", "/mcp", 200)

    def test_of_an_unknown_request(self, alice: Person, logs: Logs) -> None:
        """Path and method may be a text of the caller's."""
        from chat.app import handler

        invoke(handler, event("MILK", "/buy/milk"))
        assert self.last(logs) == (None, None, 404)
        handler({"version": "2.0"}, LambdaContext())
        assert self.last(logs) == (None, None, 400)


class TestMetrics:
    """A request writes its metrics at its end, in few lines."""

    def test_a_turn_needs_two_lines(self, alice: Person, capsys: Printed) -> None:
        """Metrics whose dimensions agree share a line."""
        alice.say(ADD)
        documents(capsys)
        alice.say(ADD)
        found = documents(capsys)
        assert len(found) == 2
        assert alice.id not in json.dumps(found)

    def test_calls_are_counted_by_tool_and_outcome(self, alice: Person, standin: StandIn, capsys: Printed) -> None:
        """A name that no tool has counts as unknown."""
        calls = [example.call_add("milk"), example.call_add("bread"), {"name": "milk", "arguments": {}}]
        standin.fault("call", calls=calls, match="hello")
        alice.say("hello")
        found = figures(capsys)
        assert (found[f"ToolCalls {example.add_tool} ok"], found["ToolCalls unknown error"]) == ([2], [1])

    def test_a_refusal_by_the_limits(self, alice: Person, monkeypatch: pytest.MonkeyPatch, capsys: Printed) -> None:
        """A turn that did not begin counts no turn."""
        monkeypatch.setenv("TURN_BURST", "1")
        monkeypatch.setenv("TURNS_PER_MINUTE", "1")
        reset_processes()
        alice.say(ADD)
        figures(capsys)
        assert alice.say(ADD).status == 429
        found = figures(capsys)
        assert (found["RefusedByLimit"], found["Status4xx"]) == ([1], [1])
        assert not any(name.startswith("Turn") for name in found)

    def test_a_database_that_refuses(self, alice: Person, monkeypatch: pytest.MonkeyPatch, capsys: Printed) -> None:
        """Each transaction that fails counts."""
        monkeypatch.setenv("DATABASE_URL", "postgresql://a:b@127.0.0.1:1/none?sslmode=disable")
        reset_processes()
        assert alice.say(ADD).status == 503
        assert figures(capsys)["DatabaseRefused"] == [1]

    def test_figures_outside_a_request_are_not_kept(self) -> None:
        """As in a migration or a test."""
        measures.current().database_refused += 1
        assert measures.current().database_refused == 0

    def test_another_program_writes_metrics(self, capsys: Printed) -> None:
        """`make reconcile` uses the same names."""
        write_metrics({(): {Metric.RECONCILE_CHECKED: [7], Metric.RECONCILE_MISMATCHES: [0]}})
        assert figures(capsys) == {"ReconcileChecked": [7], "ReconcileMismatches": [0]}


class TestAuditSchema:
    """docs/audit.schema.json describes the audit line. The search of all logs checks every line of the run."""

    def test_a_line_is_checked(self, alice: Person, logs: Logs) -> None:
        """A missing field, a new one and a wrong value are faults."""
        alice.say(ADD)
        [line] = lines_of(logs, "tool call")
        assert fault_of(json.dumps(line, separators=(",", ":"))) is None
        less = {name: value for name, value in line.items() if name != "actor"}
        for wrong in (less, line | {"new": 1}, line | {"outcome": "done"}, line | {"error.type": "tool_error"}):
            assert "breaks its schema" in str(fault_of(json.dumps(wrong, separators=(",", ":"))))

    def test_both_entry_points_and_a_failed_call(self, alice: Person, logs: Logs) -> None:
        """Their lines have all fields of the schema together, less Lambda's own."""
        alice.say(example.fail())
        McpClient(alice.mcp_token).add("milk")
        lines = lines_of(logs, "tool call")
        assert Counter(map(fault_of, (json.dumps(line, separators=(",", ":")) for line in lines))) == {None: 2}
        assert {name for line in lines for name in line} == schema()["properties"].keys() - {"xray_trace_id"}


class TestDocument:
    """docs/log-lines.md lists each field."""

    def test_every_field(self, alice: Person, standin: StandIn, logs: Logs) -> None:
        """Those of the lines of a finished and an interrupted turn."""
        alice.say(ADD)
        standin.fault("quota", match=ADD, times=1)
        alice.say(ADD)
        fields = {name for line in logs() if "schema" in line for name in line}
        assert {name for name in fields if f"`{name}`" not in DOCUMENT} == set()
