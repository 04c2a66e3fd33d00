"""Every alarm, dashboard and saved query of template.yaml reads metrics and log fields that the code writes."""

import io
import json
import logging
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpx2
import pytest

from chat.app import app
from chat.app import handler as chat
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.template_rules.transformed import Resource, template, translate
from dev.tokens import Issuer
from mcp_tools.app import handler as mcp_tools
from retention.app import handler as retention
from taskchat.errors import TaskchatError
from taskchat.http.web_adapter import REQUEST_CONTEXT, observe
from taskchat.toolcalls.audit_log import logger
from testing.gateway import LambdaContext
from tests.conftest import ROOT, Person, reset_processes, serving, variables
from tests.domain import example
from tests.test_mcp_endpoint import McpClient
from tests.test_retention import DAYS, EVENT, Deployed
from tests.test_template import of_type

FUNCTIONS = {"ChatFunction": chat, "McpToolsFunction": mcp_tools, "RetentionFunction": retention}
GROUPS = {"ChatLogs": "ChatFunction", "McpToolsLogs": "McpToolsFunction", "RetentionLogs": "RetentionFunction"}


ELSEWHERE = dict.fromkeys(("ReconcileMismatches", "ReconcileChecked", "SecretReread"), "shared/taskchat")
"""Metrics that no request below causes, and the directory whose code writes each."""


@dataclass
class Emitted:
    """Hold the log lines and metrics that the functions wrote, by function."""

    lines: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    metrics: dict[str, set[tuple[str, frozenset[str]]]] = field(default_factory=lambda: defaultdict(set))
    """The metrics, each with the names of its dimensions."""

    @contextmanager
    def by(self, function: str) -> Iterator[None]:
        """Add the output of the block to a function's. Each line must be JSON."""
        handler = logger.registered_handler
        assert isinstance(handler, logging.StreamHandler)
        written, printed = io.StringIO(), io.StringIO()
        before = handler.setStream(written)
        try:
            with redirect_stdout(printed):
                yield
        finally:
            handler.setStream(before)
        self.lines[function] += map(json.loads, written.getvalue().splitlines())
        for document in map(json.loads, printed.getvalue().splitlines()):
            self._add_metrics(function, document)

    def _add_metrics(self, function: str, document: dict[str, Any]) -> None:
        """Add the metrics of an EMF document. CloudWatch drops one whose values or dimensions are not beside it."""
        for directive in document["_aws"]["CloudWatchMetrics"]:
            assert directive["Namespace"] == "taskchat"
            for metric in directive["Metrics"]:
                for dimensions in directive["Dimensions"]:
                    assert {metric["Name"], *dimensions} <= set(document)
                    self.metrics[function].add((metric["Name"], frozenset(dimensions)))


@pytest.fixture(scope="module")
def emitted(server: Postgres, running_model: StandIn, issuer: Issuer) -> Iterator[Emitted]:
    """Run turns and calls of every outcome through the handlers, and collect what they write."""
    found = Emitted()
    running_model.reset()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in variables(server.app_url, running_model, issuer).items():
            environment.setenv(name, value)
        _run_turns(found, running_model, issuer)
        _stream(found, issuer)
        _call_tools(found, issuer)
        for name in ("TURN_BURST", "TURNS_PER_MINUTE", "MCP_BURST", "MCP_REQUESTS_PER_MINUTE"):
            environment.setenv(name, "1")
        _request_twice(found, issuer)
        environment.setenv("DATABASE_URL", re.sub(r":\d+/", ":1/", server.app_url))  # no server listens there
        _request_twice(found, issuer)
        environment.setenv("RETENTION_DATABASE_URL", Deployed(server).retention_url)
        environment.setenv("RETENTION_DAYS", str(DAYS))
        with found.by("RetentionFunction"):
            retention(EVENT, LambdaContext(300))
        yield found
    running_model.reset()
    reset_processes()


def _run_turns(found: Emitted, standin: StandIn, issuer: Issuer) -> None:
    """Finish, interrupt, resume, replay and delay turns, as JSON and as a stream."""
    person = Person.new(issuer)
    reset_processes()
    with found.by("ChatFunction"):
        assert person.say(example.add("milk"), key="a").status == 200
        assert person.say(example.add("milk"), key="a").headers["idempotent-replayed"] == "true"
        assert person.say(example.fail()).status == 200
        assert person.say(example.show(), accept="text/event-stream").status == 200
        assert person.say(example.show(), seconds=0.2).status == 504
        standin.fault("server_error", match=example.add("bread"), times=None, after_calls=1)
        assert person.say(example.add("bread"), key="b").status == 502
        standin.reset()
        assert person.say(example.add("bread"), key="b").status == 200
        standin.fault("malformed_body", match=example.add("tea"), times=1)
        assert person.say(example.add("tea")).status == 200


def _stream(found: Emitted, issuer: Issuer) -> None:
    """Finish a turn whose events are sent as they come, as the streaming function does."""
    person = Person.new(issuer)
    reset_processes()
    headers = {"Authorization": f"Bearer {person.token}", "Accept": "text/event-stream", REQUEST_CONTEXT: "{}"}
    with found.by("ChatFunction"), serving(observe(app, 29)) as address:
        answer = httpx2.post(f"{address}/api/{person.id}/chat", headers=headers, json={"message": example.show()})
        assert answer.status_code == 200


def _call_tools(found: Emitted, issuer: Issuer) -> None:
    """Call tools over MCP: one call succeeds, one fails, one names no tool."""
    client = McpClient(Person.new(issuer).mcp_token)
    reset_processes()
    with found.by("McpToolsFunction"):
        client.make(example.call_list())
        client.make(example.call_change(10**6))
        client.call("no_such_tool")


def _request_twice(found: Emitted, issuer: Issuer) -> None:
    """Send two requests to each function, so that a limit of one refuses the second, or both fail."""
    person = Person.new(issuer)
    reset_processes()
    for _ in range(2):
        with found.by("ChatFunction"):
            person.say(example.show())
        with found.by("McpToolsFunction"):
            McpClient(person.mcp_token).request("tools/call", **example.call_list())


@cache
def resources() -> Resource:
    """Return all resources of the transformed template."""
    found: Resource = translate(template())["Resources"]
    return found


def alarms() -> dict[str, Resource]:
    """Return the properties of each alarm."""
    return of_type(resources(), "CloudWatch::Alarm")


def queries() -> dict[str, Resource]:
    """Return the properties of each saved query."""
    return of_type(resources(), "Logs::QueryDefinition")


def chosen(value: Any) -> Any:
    """Return a value as it is in a deployment in which every condition holds."""
    if isinstance(value, dict) and "Fn::If" in value:
        return chosen(value["Fn::If"][1])
    if isinstance(value, dict):
        return {name: chosen(each) for name, each in value.items()}
    return [chosen(each) for each in value] if isinstance(value, list) else value


def text_of(value: Any) -> str:
    """Return the text of a string, or of `Fn::Sub` with its own names filled in."""
    if isinstance(value, str):
        return value
    content = value["Fn::Sub"]
    text, names = content if isinstance(content, list) else (content, {})
    for name, each in names.items():
        text = text.replace(f"${{{name}}}", text_of(each))
    return str(text)


def widgets(conditions: bool = True) -> list[Resource]:
    """Return the dashboard's widgets, with those parts that depend on a condition or without them."""
    [dashboard] = of_type(resources(), "CloudWatch::Dashboard").values()
    text, names = dashboard["DashboardBody"]["Fn::Sub"]
    chosen_names = {name: each["Fn::If"][1 if conditions else 2] for name, each in names.items()}
    found: list[Resource] = json.loads(text_of({"Fn::Sub": [text, chosen_names]}))["widgets"]
    return found


def services() -> dict[str, str]:
    """Return the function of each value of the dimension `service`."""
    functions = of_type(resources(), "Lambda::Function")
    return {text_of(functions[name]["Environment"]["Variables"]["POWERTOOLS_SERVICE_NAME"]): name for name in FUNCTIONS}


@dataclass(frozen=True)
class Used:
    """Hold a metric as an alarm or the dashboard reads it."""

    name: str
    services: tuple[str, ...]
    dimensions: frozenset[str]
    values: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """Return the name of the test case."""
        return f"{self.name}-{'-'.join(sorted(self.dimensions - {'service'}))}-{self.services[0]}"


def metrics_of(alarm: Resource) -> list[Resource]:
    """Return the metrics and expressions of an alarm in which every condition holds."""
    found: list[Resource] = chosen(alarm["Metrics"])
    return found


def used_by_alarms() -> Iterator[Used]:
    """Yield each of our metrics that an alarm reads."""
    for alarm in alarms().values():
        for each in metrics_of(alarm):
            metric = each.get("MetricStat", {}).get("Metric", {})
            if metric.get("Namespace") == "taskchat":
                values = {dimension["Name"]: text_of(dimension["Value"]) for dimension in metric["Dimensions"]}
                service = values.pop("service")
                names = frozenset({"service", *values})
                yield Used(metric["MetricName"], (service,), names, tuple(values.items()))


def used_by_dashboard() -> Iterator[Used]:
    """Yield each of our metrics that the dashboard shows."""
    search = re.compile(
        r"""SEARCH\('\{taskchat,([\w,]+)\} MetricName="(\w+)" service=\("(\S+)" OR "(\S+)"\)', 'Sum', 300\)"""
    )
    for widget in widgets():
        for row in widget["properties"].get("metrics", []):
            if isinstance(row[0], dict):
                found = search.fullmatch(row[0]["expression"])
                assert found, row
                yield Used(found[2], (found[3], found[4]), frozenset(found[1].split(",")))
            elif row[0] == "taskchat":
                assert (row[2], len(row)) == ("service", 5)
                yield Used(row[1], (row[3],), frozenset({"service"}))


USED = sorted({*used_by_alarms(), *used_by_dashboard()}, key=lambda used: (str(used), used.values))


@pytest.mark.parametrize(
    "used",
    [pytest.param(used, id=f"{used}{dict(used.values) or ''}") for used in USED],
)
def test_a_metric_is_one_that_the_code_writes(used: Used, request: pytest.FixtureRequest) -> None:
    """It has exactly these dimensions: an alarm without the dimension `service` would never fire."""
    assert set(used.services) <= set(services())
    if used.name in ELSEWHERE:
        code = "".join(path.read_text() for path in (ROOT / ELSEWHERE[used.name]).rglob("*.py"))
        assert f'"{used.name}"' in code
        return
    emitted: Emitted = request.getfixturevalue("emitted")
    written = set().union(*(emitted.metrics[services()[service]] for service in used.services))
    assert (used.name, used.dimensions) in written


def outcomes() -> dict[str, set[str]]:
    """Return the values that the dimension `outcome` of a metric may have."""
    slugs, classes = set(), [TaskchatError]
    while classes:
        slugs.add(classes[-1].slug)
        classes += classes.pop().__subclasses__()
    return {"Turns": {"finished", "replayed", *slugs}, "ModelCalls": {"ok", "failed"}}


@pytest.mark.parametrize("used", [used for used in USED if used.values], ids=str)
def test_a_dimension_has_a_value_that_occurs(used: Used) -> None:
    """An alarm on a misspelt outcome would never fire."""
    assert all(name == "outcome" and value in outcomes()[used.name] for name, value in used.values)


WORDS = {
    *("fields", "filter", "sort", "limit", "stats", "by", "as", "asc", "desc", "and", "or", "like"),
    *("count", "count_distinct", "sum", "max", "bin"),
}
"""The words of the query language in our queries."""


def fields_of(query: str) -> set[str]:
    """Return the log fields of a query, also those of the filters that a comment proposes."""
    quoted = set(re.findall(r"`([^`]+)`", query))
    text = re.sub(r"`[^`]+`|\"[^\"]*\"|/(?:\\.|[^/\\])*/", " ", query.replace("# |", "|"))
    aliases = set(re.findall(r"\bas (\w+)", text))
    return quoted | (set(re.findall(r"(?<![\w.@])@?[a-z_][\w.]*", text)) - WORDS - aliases - {"@timestamp"})


def messages_of(query: str) -> set[str]:
    """Return the messages that a query asks for."""
    return set(re.findall(r'message = "([^"]+)"', query))


def read_by(query: Resource, emitted: Emitted) -> list[dict[str, Any]]:
    """Return the emitted lines that pass the query's filters of schema and message, and have its id."""
    text = query["QueryString"]
    ids = re.findall(r'^\| filter (\w+) = "', text, re.MULTILINE)
    schemas = [name.replace("\\", "") for name in re.findall(r"schema like /\^([^ ]+?)/(?=\s|$)", text)]
    lines = [line for group in query["LogGroupNames"] for line in emitted.lines[GROUPS[group["Ref"]]]]
    return [
        line
        for line in lines
        if all(line.get("schema", "").startswith(schema) for schema in schemas)
        and set(ids) <= set(line)
        and (not messages_of(text) or line["message"] in messages_of(text))
    ]


LINES = {name: query for name, query in queries().items() if {"Ref": "GatewayLogs"} not in query["LogGroupNames"]}


@pytest.mark.parametrize(
    ("query", "name"),
    [(query, name) for query, found in LINES.items() for name in sorted(fields_of(found["QueryString"]))],
)
def test_a_field_is_one_that_the_code_logs(query: str, name: str, emitted: Emitted) -> None:
    """A line that the query reads has it: Insights shows nothing for a field that no line has."""
    lines = read_by(LINES[query], emitted)
    assert lines
    assert any(name in line for line in lines)


@pytest.mark.parametrize(
    "message",
    sorted(set().union(*(messages_of(query["QueryString"]) for query in LINES.values()))),
)
def test_a_message_is_one_that_the_code_logs(message: str, emitted: Emitted) -> None:
    """A filter on a misspelt message would find nothing."""
    assert any(line["message"] == message for lines in emitted.lines.values() for line in lines)


def test_a_field_that_no_code_logs_is_found(emitted: Emitted) -> None:
    """The tests above fail for a misspelt field in any part of a query."""
    query = (
        'filter message = "tool call" and outcom = "x" | stats sum(`gen_ai.x`) as y by bin(1h), toool # | filter z > 1'
    )
    assert fields_of(query) == {"message", "outcom", "gen_ai.x", "toool", "z"}
    assert emitted.lines["ChatFunction"]
    assert emitted.lines["McpToolsFunction"]
    assert emitted.lines["RetentionFunction"]


class TestGatewayLogs:
    """The gateway logs each request, also one that no function gets, without anything of a person."""

    def formats(self) -> dict[str, dict[str, str]]:
        """Return the fields of a line, for each API."""
        [http] = of_type(resources(), "ApiGatewayV2::Stage").values()
        [stream] = of_type(resources(), "ApiGateway::Stage").values()
        settings = {"http": http["AccessLogSettings"], "stream": chosen(stream["AccessLogSetting"])}
        return {name: json.loads(each["Format"]) for name, each in settings.items()}

    def test_the_query_reads_its_fields(self) -> None:
        """Both APIs write the same fields, so one query reads both."""
        http, stream = self.formats().values()
        assert set(http) == set(stream) >= fields_of(queries()["GatewayErrorsQuery"]["QueryString"])
        assert http["schema"] == stream["schema"] == "taskchat.gateway/1"

    def test_a_line_holds_nothing_of_a_person(self) -> None:
        """No path, which has the user's id, no address, no token and no user agent."""
        allowed = {
            *("$context.requestId", "$context.httpMethod", "$context.routeKey", "$context.resourcePath"),
            *("$context.status", "$context.responseLatency", "$context.error.responseType"),
            *("$context.integrationLatency", "$context.integrationStatus", "$context.integrationErrorMessage"),
            *("$context.integration.latency", "$context.integration.integrationStatus", "$context.integration.error"),
        }
        values = {value for line in self.formats().values() for value in line.values() if value.startswith("$")}
        assert values == allowed

    def test_its_id_is_that_of_the_functions_lines(self) -> None:
        """One search finds a request in both logs."""
        assert {line["correlation_id"] for line in self.formats().values()} == {"$context.requestId"}

    def test_both_write_to_the_gateways_group(self) -> None:
        """API Gateway takes the ARN without `:*`."""
        [http] = of_type(resources(), "ApiGatewayV2::Stage").values()
        [stream] = of_type(resources(), "ApiGateway::Stage").values()
        group = "arn:${AWS::Partition}:logs:${AWS::Region}:${AWS::AccountId}:log-group:${GatewayLogs}"
        destinations = [
            each["DestinationArn"] for each in (http["AccessLogSettings"], chosen(stream["AccessLogSetting"]))
        ]
        assert destinations == [{"Fn::Sub": group}] * 2

    def test_the_streaming_api_logs_only_if_the_account_can(self) -> None:
        """A REST API needs a role of the whole account. The stack neither makes nor replaces it."""
        [stream] = of_type(resources(), "ApiGateway::Stage").values()
        condition, _, nothing = stream["AccessLogSetting"]["Fn::If"]
        assert (condition, nothing) == ("LogsStreamAccess", {"Ref": "AWS::NoValue"})
        assert template()["Parameters"]["StreamAccessLogs"]["Default"] == "disabled"
        assert of_type(resources(), "ApiGateway::Account") == {}


MISSING = {"ReconcileAlarm": "ignore"}
"""Alarms that keep their state while there is no data. All others are then at rest: no traffic is no failure."""
CONDITIONS = {"DailyTokensAlarm": "HasDailyTokenAlarm", "RetentionAlarm": "HasRetention"}
ANCHORS = {
    "ServerErrorsAlarm": "server-errors",
    "ChatErrorsAlarm": "function-errors",
    "McpErrorsAlarm": "function-errors",
    "TimeoutsAlarm": "timeouts",
    "ThrottlesAlarm": "throttles",
    "LatencyAlarm": "slow-turns",
    "DatabaseRefusedAlarm": "database-refused",
    "ModelFailingAlarm": "model-failing",
    "DailyTokensAlarm": "tokens",
    "ReconcileAlarm": "reconciliation",
    "RetentionAlarm": "retention",
    "GatewayErrorsAlarm": "gateway-errors",
}
"""The runbook's entry for each alarm."""
DAY = 86_400


def test_the_alarms_are_these() -> None:
    """Each exists in every deployment, or with its own parameter."""
    found = {name: each for name, each in resources().items() if each["Type"] == "AWS::CloudWatch::Alarm"}
    assert set(found) == set(ANCHORS)
    assert {name: each["Condition"] for name, each in found.items() if "Condition" in each} == CONDITIONS


@pytest.mark.parametrize("name", ANCHORS)
def test_an_alarm_says_what_to_do(name: str) -> None:
    """Its e-mail names the runbook's entry, and it is sent to the topic if there is an address."""
    alarm = alarms()[name]
    assert alarm["AlarmDescription"].rstrip().endswith(f"See docs/runbook.md#{ANCHORS[name]}")
    assert len(alarm["AlarmDescription"]) <= 1024
    notify = {"Fn::If": ["HasAlarmEmail", [{"Ref": "AlarmTopic"}], {"Ref": "AWS::NoValue"}]}
    assert alarm["AlarmActions"] == notify
    assert alarm["AlarmName"]["Fn::Sub"].startswith("${AWS::StackName}-")  # the topic's policy names it


@pytest.mark.parametrize("anchor", sorted({*ANCHORS.values(), "cost"}))
def test_the_runbook_has_the_entry(anchor: str) -> None:
    """A reader follows the link from the e-mail."""
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ANCHORS)
def test_an_alarm_can_be_evaluated(name: str) -> None:
    """CloudWatch refuses more than ten metrics, two results, and more than a day, or a week of long periods."""
    alarm, metrics = alarms()[name], metrics_of(alarms()[name])
    assert alarm["TreatMissingData"] == MISSING.get(name, "notBreaching")
    assert len(metrics) <= 10
    [_] = [each for each in metrics if each.get("ReturnData", True)]
    [period] = {each["MetricStat"]["Period"] for each in metrics if "MetricStat" in each}
    assert period in {300, 3600, DAY}
    assert period * alarm["EvaluationPeriods"] <= (7 * DAY if period >= 3600 else DAY)
    assert {each["MetricStat"]["Stat"] for each in metrics if "MetricStat" in each} <= {
        *("Sum", "Maximum", "SampleCount", "p95"),
    }


@pytest.mark.parametrize("name", ANCHORS)
def test_an_expression_uses_every_metric_and_no_other(name: str) -> None:
    """With every condition, and with none."""
    for of in (chosen, without):
        metrics = of(alarms()[name]["Metrics"])
        ids = {each["Id"] for each in metrics} - {"alarm"}
        expressions = " ".join(each.get("Expression", "") for each in metrics)
        assert set(re.findall(r"[a-z]\w*", expressions)) == ids


def without(value: Any) -> Any:
    """Return a value as it is in a deployment in which no condition holds, without the parts that are not there."""
    if isinstance(value, dict) and "Fn::If" in value:
        return without(value["Fn::If"][2])
    if isinstance(value, list):
        return [each for each in map(without, value) if each != {"Ref": "AWS::NoValue"}]
    return {name: without(each) for name, each in value.items()} if isinstance(value, dict) else value


def evaluate(name: str, **values: float) -> bool:
    """Return whether an alarm without streaming breaches its threshold. A metric without a value has no data."""
    alarm, known = alarms()[name], defaultdict[str, Any](lambda: math.nan, values)
    known["IF"] = lambda test, yes, no: yes if test else no
    known["FILL"] = lambda value, other: other if math.isnan(value) else value
    expressions = {each["Id"]: each["Expression"] for each in without(alarm["Metrics"]) if "Expression" in each}
    for each in sorted(expressions, key=lambda id: id == "alarm"):
        try:
            known[each] = eval(expressions[each].replace(" OR ", " or "), {}, known)  # noqa: S307  (the template's own)
        except ZeroDivisionError:
            known[each] = math.nan
    if alarm["ComparisonOperator"] == "GreaterThanOrEqualToThreshold":
        return bool(known["alarm"] >= alarm["Threshold"])
    return bool(known["alarm"] > alarm["Threshold"])  # never with missing data


@pytest.mark.parametrize(
    ("name", "values", "breaches"),
    [
        ("ServerErrorsAlarm", {}, False),
        ("ServerErrorsAlarm", {"chat_failed": 1, "chat_ok": 2}, False),
        ("ServerErrorsAlarm", {"chat_failed": 4}, False),
        ("ServerErrorsAlarm", {"chat_failed": 5}, True),
        ("ServerErrorsAlarm", {"chat_failed": 2, "mcp_failed": 3}, True),
        ("ServerErrorsAlarm", {"chat_failed": 5, "chat_ok": 95}, False),
        ("ServerErrorsAlarm", {"chat_failed": 10, "chat_ok": 90}, True),  # a broken version with a tenth of the traffic
        ("ChatErrorsAlarm", {"errors": 1, "calls": 3}, False),
        ("ChatErrorsAlarm", {"errors": 3, "calls": 300}, False),
        ("ChatErrorsAlarm", {"errors": 3, "calls": 299}, True),
        ("McpErrorsAlarm", {"errors": 2, "calls": 2}, False),
        ("McpErrorsAlarm", {"errors": 3, "calls": 3}, True),
        ("TimeoutsAlarm", {"late": 1, "finished": 2}, False),
        ("TimeoutsAlarm", {"late": 5}, True),
        ("TimeoutsAlarm", {"late": 5, "finished": 95}, False),
        ("TimeoutsAlarm", {"finished": 95}, False),
        ("ThrottlesAlarm", {"chat": 4}, False),
        ("ThrottlesAlarm", {"chat": 4, "mcp": 1}, True),
        ("LatencyAlarm", {"p95": 29_000, "turns": 19}, False),
        ("LatencyAlarm", {"p95": 5_001, "turns": 20}, True),
        ("LatencyAlarm", {"p95": 5_000, "turns": 20}, False),
        ("LatencyAlarm", {}, False),
        ("DatabaseRefusedAlarm", {"mcp": 4}, False),
        ("DatabaseRefusedAlarm", {"chat": 5}, True),
        ("ModelFailingAlarm", {"failed": 1, "ok": 2}, False),
        ("ModelFailingAlarm", {"failed": 5}, True),
        ("ModelFailingAlarm", {"failed": 20, "ok": 80}, False),
        ("RetentionAlarm", {}, True),  # it did not run
        ("RetentionAlarm", {"failures": 0, "finished": 1}, False),
        ("RetentionAlarm", {"failures": 1, "finished": 1}, False),  # the second attempt succeeded
        ("RetentionAlarm", {"failures": 2}, True),  # a wrong setting: the process did not start
        ("RetentionAlarm", {"failures": 0, "finished": 0}, True),
        ("GatewayErrorsAlarm", {"gateway": 7, "chat": 7}, False),
        ("GatewayErrorsAlarm", {"gateway": 5}, True),
    ],
)
def test_an_alarm_breaches_for_a_failure_and_not_for_one_request(
    name: str, values: dict[str, float], breaches: bool
) -> None:
    """A deployment with little traffic wakes no operator for one failed request of three."""
    assert evaluate(name, **values) is breaches


def test_the_alarms_of_a_rollback_depend_on_no_alias() -> None:
    """The aliases depend on the rollback's alarms, so CloudFormation would refuse the circle."""

    def names_in(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set().union(*map(names_in, value.values()), *({each} for key, each in value.items() if key == "Ref"))
        if isinstance(value, list):
            return set().union(*map(names_in, value))
        return set(re.findall(r"\w+", value)) if isinstance(value, str) else set()

    pending, reached = ["ServerErrorsAlarm", "ChatErrorsAlarm"], set()
    while pending:
        reached.add(name := pending.pop())
        pending += (names_in(resources()[name].get("Properties")) & set(resources())) - reached
    kinds = {resources()[name]["Type"] for name in reached}
    assert not {
        kind for kind in kinds if "Alias" in kind or "ApiGateway" in kind or "Version" in kind.split("::")[-1]
    } - {"AWS::Lambda::LayerVersion"}


class TestTopic:
    """Alarms and the budget send e-mails by an encrypted topic, which exists only with an address."""

    def test_it_exists_only_with_an_address(self) -> None:
        """The budget needs an amount too."""
        names = ("AlarmKey", "AlarmTopic", "AlarmTopicPolicy", "Budget")
        assert [resources()[name]["Condition"] for name in names] == ["HasAlarmEmail"] * 3 + ["HasBudget"]
        conditions, parameters = template()["Conditions"], template()["Parameters"]
        assert conditions["HasAlarmEmail"] == {"Fn::Not": [{"Fn::Equals": [{"Ref": "AlarmEmail"}, ""]}]}
        assert {"Condition": "HasAlarmEmail"} in conditions["HasBudget"]["Fn::And"]
        assert [parameters[name]["Default"] for name in ("AlarmEmail", "MonthlyBudget")] == ["", 0]

    @pytest.mark.parametrize(
        ("address", "fits"), [("", True), ("ops@example.com", True), ("ops", False), ("a b@c", False)]
    )
    def test_the_address_is_checked(self, address: str, fits: bool) -> None:
        """CloudFormation refuses a text that is none."""
        assert bool(re.fullmatch(template()["Parameters"]["AlarmEmail"]["AllowedPattern"], address)) is fits

    def test_a_budget_without_an_address_is_refused(self) -> None:
        """Otherwise the operator would wait for e-mails in vain."""
        rule = template()["Rules"]["BudgetNeedsEmail"]
        assert rule["RuleCondition"] == {"Fn::Not": [{"Fn::Equals": [{"Ref": "MonthlyBudget"}, 0]}]}
        [assertion] = rule["Assertions"]
        assert assertion["Assert"] == {"Fn::Not": [{"Fn::Equals": [{"Ref": "AlarmEmail"}, ""]}]}

    def test_only_this_accounts_alarms_and_budgets_publish(self) -> None:
        """No other account may use CloudWatch to send e-mails by it."""
        [policy] = of_type(resources(), "SNS::TopicPolicy").values()
        allowed = {}
        for statement in policy["PolicyDocument"]["Statement"]:
            assert (statement["Effect"], statement["Action"]) == ("Allow", "sns:Publish")
            assert statement["Resource"] == {"Ref": "AlarmTopic"}
            assert statement["Condition"]["StringEquals"] == {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}
            allowed[statement["Principal"]["Service"]] = text_of(statement["Condition"]["ArnLike"]["aws:SourceArn"])
        here = "${AWS::Region}:${AWS::AccountId}"
        assert allowed == {
            "cloudwatch.amazonaws.com": f"arn:${{AWS::Partition}}:cloudwatch:{here}:alarm:${{AWS::StackName}}-*",
            "budgets.amazonaws.com": "arn:${AWS::Partition}:budgets::${AWS::AccountId}:*",
        }

    def test_its_key_is_for_the_account_and_the_two_services(self) -> None:
        """The AWS-managed key would not let CloudWatch publish. The key is rotated, and goes with the stack."""
        [topic] = of_type(resources(), "SNS::Topic").values()
        [key] = of_type(resources(), "KMS::Key").values()
        assert topic["KmsMasterKeyId"] == {"Fn::GetAtt": ["AlarmKey", "Arn"]}
        assert (key["EnableKeyRotation"], key["PendingWindowInDays"]) == (True, 7)
        account, both = key["KeyPolicy"]["Statement"]
        assert account["Principal"]["AWS"]["Fn::Sub"].endswith("::${AWS::AccountId}:root")
        assert both["Principal"] == {"Service": ["cloudwatch.amazonaws.com", "budgets.amazonaws.com"]}
        assert both["Action"] == ["kms:Decrypt", "kms:GenerateDataKey*"]
        assert both["Condition"] == {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}}

    def test_the_budget_warns_before_and_at_its_amount(self) -> None:
        """At 80 % of what was spent, and when the month's forecast exceeds it."""
        [budget] = of_type(resources(), "Budgets::Budget").values()
        assert budget["Budget"]["BudgetLimit"] == {"Amount": {"Ref": "MonthlyBudget"}, "Unit": "USD"}
        warnings = {}
        for each in budget["NotificationsWithSubscribers"]:
            warnings[each["Notification"]["NotificationType"]] = each["Notification"]["Threshold"]
            assert each["Subscribers"] == [{"SubscriptionType": "SNS", "Address": {"Ref": "AlarmTopic"}}]
        assert warnings == {"ACTUAL": 80, "FORECASTED": 100}


class TestDashboard:
    """The dashboard shows every metric of ours, the alarms, Lambda and the gateway."""

    def test_it_shows_every_alarm(self) -> None:
        """Those of a deployment without conditions are shown without them."""
        for conditions, names in ((True, set(ANCHORS)), (False, set(ANCHORS) - set(CONDITIONS))):
            [widget] = [each for each in widgets(conditions) if each["type"] == "alarm"]
            assert {arn.removeprefix("${").removesuffix(".Arn}") for arn in widget["properties"]["alarms"]} == names

    def test_its_widgets_do_not_overlap(self) -> None:
        """Each has its own place in the grid of 24 columns."""
        cells = [
            (column, row)
            for each in widgets()
            for column in range(each["x"], each["x"] + each["width"])
            for row in range(each["y"], each["y"] + each["height"])
        ]
        assert len(cells) == len(set(cells))
        assert max(column for column, _ in cells) == 23

    def test_its_references_are_resources(self) -> None:
        """`Fn::Sub` fills in the names of functions and of the API."""
        names = set(re.findall(r"\$\{(\w+)(?:\.Arn)?\}", json.dumps(widgets())))
        assert names <= set(resources()) | {"EnvironmentName"}

    @pytest.mark.parametrize("metric", ["Throttles", "Errors", "ConcurrentExecutions"])
    def test_it_shows_each_function_that_serves_requests(self, metric: str) -> None:
        """The streaming function too, if there is one."""
        for conditions, count in ((True, 3), (False, 2)):
            rows = [row for each in widgets(conditions) for row in each["properties"].get("metrics", [])]
            assert len([row for row in rows if row[:2] == ["AWS/Lambda", metric]]) == count


PAGE = ROOT / "docs" / "alarms.md"


class TestPage:
    """docs/alarms.md describes what the template deploys."""

    def rows(self, title: str) -> dict[str, list[str]]:
        """Return the rows of the table under a heading, by their first cell."""
        section = PAGE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
        rows = [
            [cell.strip() for cell in line.strip("|").split(" | ")]
            for line in re.findall(r"^\| .+ \|$", section, re.MULTILINE)
        ]
        return {row[0].strip("` "): row for row in rows[1:]}

    def test_it_lists_every_alarm_with_its_entry(self) -> None:
        """Each row links the runbook's entry."""
        rows = self.rows("Alarms")
        targets = dict(re.findall(r"^(\[.+\]): runbook\.md#(.+)$", PAGE.read_text(), re.MULTILINE))
        assert {name: targets[row[-1]] for name, row in rows.items()} == ANCHORS

    def test_it_lists_every_widget_and_query(self) -> None:
        """By the titles that the console shows."""
        assert set(self.rows("Dashboard")) == {each["properties"]["title"] for each in widgets()}
        titles = {text_of(query["Name"]).removeprefix("${AWS::StackName}/") for query in queries().values()}
        assert set(self.rows("Saved queries")) == titles

    def test_it_names_every_parameter_and_output(self) -> None:
        """Those of alarms, budget and gateway logs."""
        text, document = PAGE.read_text(), template()
        names = {"AlarmEmail", "MonthlyBudget", "DailyTokenAlarm", "StreamAccessLogs", "LogRetentionDays"}
        outputs = {"DashboardUrl", "GatewayLogGroup", "AlarmTopicArn"}
        assert names <= set(document["Parameters"])
        assert outputs <= set(document["Outputs"])
        assert all(f"`{name}`" in text for name in names | outputs)
