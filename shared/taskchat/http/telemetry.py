"""Log and count requests. A failure of logs or metrics never changes the answer to a request.

The figures of a request are its own, and it writes its metrics once, at its end: several requests may run at once.
"""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Any, Final

from aws_lambda_powertools import Logger
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit
from aws_lambda_powertools.metrics.functions import is_metrics_disabled
from starlette.types import Scope

from taskchat.measures import Measures

SCHEMA: Final = "taskchat.request/1"
"""Version of a request's last log line. A version may get new fields; none changes or goes."""

PERSON_PATH: Final = "/api/{user_id}"
"""Begins the path of every route of a person."""

REQUEST_ID: Final = "X-Request-Id"
"""The response header with the request's id."""

NAMESPACE: Final = "taskchat"
"""The metrics' namespace if POWERTOOLS_METRICS_NAMESPACE is not set."""

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

logger: Final = Logger()


class Metric(StrEnum):
    """All metrics. Each has the dimension `service`, and those that its comment names."""

    TURNS = "Turns"  # outcome
    """Ends of turns, by `outcome` of the usage line."""
    TURN_LATENCY = "TurnLatency"
    """`duration_ms` of the usage line."""
    FIRST_EVENT_LATENCY = "FirstEventLatency"
    """From the request's arrival to the first event of a streamed answer."""
    MODEL_CALLS = "ModelCalls"  # outcome
    """Tries of model calls, `ok` or `failed`."""
    MODEL_LATENCY = "ModelLatency"
    """`duration_ms` of each try."""
    TOOL_CALLS = "ToolCalls"  # tool, outcome
    """Audit lines."""
    INPUT_TOKENS = "InputTokens"
    """Input tokens of the turn."""
    CACHED_TOKENS = "CachedTokens"
    """Those of them that the provider had cached."""
    OUTPUT_TOKENS = "OutputTokens"
    """Output tokens of the turn."""
    ESTIMATED_TOKENS = "EstimatedTokens"
    """Tokens of the turn that the provider did not report, as estimated."""
    RESUMED_TURNS = "ResumedTurns"
    """Turns with calls of earlier attempts."""
    REPLAYED_TURNS = "ReplayedTurns"
    """Stored answers that were sent again."""
    REFUSED_BY_LIMIT = "RefusedByLimit"
    """Refusals by the user's limits."""
    DATABASE_WAIT = "DatabaseWait"
    """`database_ms` of the request."""
    DATABASE_REFUSED = "DatabaseRefused"
    """Transactions that failed because the database could not be reached or gave up."""
    REREAD = "SecretReread"
    """Times that the secret was read again."""
    STATUS_2XX = "Status2xx"
    """Responses with such a status."""
    STATUS_3XX = "Status3xx"
    """Responses with such a status."""
    STATUS_4XX = "Status4xx"
    """Responses with such a status."""
    STATUS_5XX = "Status5xx"
    """Responses with such a status."""
    COLD_START = "ColdStart"  # function_name
    """First requests of processes."""
    RETENTION_ROWS_DELETED = "RetentionRowsDeleted"
    """Rows that a daily run of retention deleted."""
    RETENTION_FINISHED = "RetentionFinished"
    """Daily runs of retention that finished."""
    RECONCILE_CHECKED = "ReconcileChecked"
    """Calls that `make reconcile` compared."""
    RECONCILE_MISMATCHES = "ReconcileMismatches"
    """Calls without their line or their row."""

    @property
    def unit(self) -> MetricUnit:
        return MetricUnit.Milliseconds if self.endswith(("Latency", "Wait")) else MetricUnit.Count


Dimensions = tuple[tuple[str, str], ...]
Document = dict[str, Any]


def attempt(report: Callable[..., object], *arguments: Any) -> None:
    """Call a function that reports on a request. Log a failure if that is possible; it never changes the answer."""
    try:
        report(*arguments)
    except Exception as error:
        with suppress(Exception):
            logger.error("report failed", extra={"reason": type(error).__name__})


class Reporter:
    """Writes the metrics and the last log line of each request to one function."""

    def __init__(self) -> None:
        self._is_cold = True

    def report(self, measures: Measures, status: int, context: object) -> None:
        """Report a request that has its response. It raises nothing."""
        attempt(self._write_metrics, measures, status, context)
        attempt(_write_line, measures, status)

    def _write_metrics(self, measures: Measures, status: int, context: object) -> None:
        figures = _collect(measures, status)
        if self._is_cold:
            self._is_cold = False
            figures[("function_name", str(getattr(context, "function_name", "unknown"))),] = {Metric.COLD_START: [1]}
        write_metrics(figures)


def write_metrics(figures: Mapping[Dimensions, Mapping[Metric, list[float]]]) -> None:
    """Write the values of each metric, by the dimensions that it has besides `service`, unless metrics are disabled."""
    if is_metrics_disabled():
        return
    metrics = EphemeralMetrics()
    metrics.namespace = metrics.namespace or NAMESPACE
    documents = _pack(_to_document(metrics, dimensions, values) for dimensions, values in figures.items())
    sys.stdout.write("".join(json.dumps(document, separators=(",", ":")) + "\n" for document in documents))


def _collect(measures: Measures, status: int) -> defaultdict[Dimensions, dict[Metric, list[float]]]:
    """Return the figures of a request, without those that are zero."""
    figures: defaultdict[Dimensions, dict[Metric, list[float]]] = defaultdict(dict)
    plain: dict[Metric, list[float]] = {
        Metric(f"Status{status // 100}xx"): [1],
        Metric.REFUSED_BY_LIMIT: [measures.refused_by_limit],
        Metric.DATABASE_REFUSED: [measures.database_refused],
        Metric.DATABASE_WAIT: [measures.database_ms or 0],
        Metric.REREAD: [measures.secrets_read_again],
        Metric.FIRST_EVENT_LATENCY: [measures.first_event_ms or 0],
        Metric.MODEL_LATENCY: [spent for _, spent in measures.model_calls],
    }
    if measures.turn:
        plain |= _figures_of_turn(measures.turn)
        figures[("outcome", measures.turn["outcome"]),] = {Metric.TURNS: [1]}
    figures[()] = {metric: values for metric, values in plain.items() if any(values)}
    for outcome, tries in Counter(each for each, _ in measures.model_calls).items():
        figures[("outcome", outcome),][Metric.MODEL_CALLS] = [tries]
    for (tool, outcome), calls in measures.tool_calls.items():
        figures[("tool", tool), ("outcome", outcome)] = {Metric.TOOL_CALLS: [calls]}
    return figures


def _figures_of_turn(turn: Mapping[str, Any]) -> dict[Metric, list[float]]:
    is_replayed = turn["outcome"] == "replayed"
    return {
        Metric.TURN_LATENCY: [turn["duration_ms"]],
        Metric.INPUT_TOKENS: [turn["input_tokens"]],
        Metric.CACHED_TOKENS: [turn["cached_tokens"]],
        Metric.OUTPUT_TOKENS: [turn["output_tokens"]],
        Metric.ESTIMATED_TOKENS: [turn["estimated_tokens"]],
        Metric.RESUMED_TURNS: [int(turn["resumed"] > 0)],
        Metric.REPLAYED_TURNS: [int(is_replayed)],
    }


def _to_document(metrics: EphemeralMetrics, dimensions: Dimensions, values: Mapping[Metric, list[float]]) -> Document:
    """Return one document in CloudWatch's embedded metric format."""
    service = {"service": metrics.service} if metrics.service else {}
    described = {name.value: {"Unit": name.unit.value, "Value": numbers} for name, numbers in values.items()}
    return dict(metrics.serialize_metric_set(described, service | dict(dimensions)))


def _pack(documents: Iterator[Document]) -> list[Document]:
    """Put documents together where no name has two values: each line costs money."""
    packed: list[Document] = []
    for document in documents:
        for other in packed:
            if all(other.get(name, value) == value for name, value in document.items() if name != "_aws"):
                other["_aws"]["CloudWatchMetrics"] += document.pop("_aws")["CloudWatchMetrics"]
                other |= document
                break
        else:
            packed.append(document)
    return packed


def _write_line(measures: Measures, status: int) -> None:
    method = measures.scope.get("method")
    fields = {
        "schema": SCHEMA,
        "method": method if method in _METHODS else None,
        "route": _route_of(measures.scope),
        "status": status,
        "duration_ms": measures.elapsed_ms(),
    }
    logger.info("request", extra=fields)


def _route_of(scope: Scope) -> str | None:
    """Return the template of the route, such as `/api/{user_id}/chat`. Never the path: it is the caller's text."""
    route, parameters = scope.get("route"), scope.get("path_params")
    if route is None:  # Starlette keeps no template, but without parameters the template is the path
        return scope["path"] if "endpoint" in scope and not parameters else None
    is_whole = not parameters or route.path.startswith(PERSON_PATH)
    return str(route.path) if is_whole else PERSON_PATH + route.path  # an included router's route has no prefix
