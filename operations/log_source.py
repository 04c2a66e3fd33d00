"""Read log lines by time and fields: from a file of JSON lines, or from CloudWatch Logs."""

import heapq
import json
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, Protocol

Line = dict[str, Any]

MOST_RESULTS: Final = 10_000
"""Lines that one query of Logs Insights returns at most."""

QUERY_SECONDS: Final = 600
"""Seconds after which a query is given up."""

AUDIT: Final = "taskchat.audit"
"""Schema of the audit lines, without its version."""

_TEXTS: Final = ("actor", "turn_id", "call_id", "door", "tool", "outcome")
"""Fields that every audit line has."""

MARGIN: Final = timedelta(minutes=10)
"""The longest time between a record and its line: a request, a settled commit, and clocks that differ."""

ALL_TIME: Final = datetime(2000, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)


class OperatorError(Exception):
    """Raised when a command cannot go on. Its text is the line that the operator reads."""


@dataclass(frozen=True)
class Query:
    """The lines from `since`, before `until`, of these schemas, with one of the values in each of these fields."""

    since: datetime
    until: datetime
    schemas: Collection[str] = ()
    """Names without their versions, such as `taskchat.audit`."""
    fields: Mapping[str, Collection[str]] = field(default_factory=dict)

    def accepts(self, line: Line) -> bool:
        """Return whether the line is among those that are asked for."""
        return (
            str(line.get("schema")).partition("/")[0] in self.schemas
            and all(str(line.get(name)) in values for name, values in self.fields.items())
            and self.since <= time_of(line) < self.until
        )


class LogSource(Protocol):
    """A place that keeps log lines."""

    def read(self, query: Query) -> Iterator[Line]:
        """Return the lines in about the order of time."""


def time_of(line: Line) -> datetime:
    """Return the time at which the function wrote the line. Raises OperatorError."""
    try:
        return datetime.strptime(line["timestamp"], "%Y-%m-%d %H:%M:%S,%f%z")
    except (KeyError, TypeError, ValueError):
        raise OperatorError("A log line has no timestamp of the form 2026-11-24 09:30:00,123+0000.") from None


def in_order(lines: Iterator[Line]) -> Iterator[Line]:
    """Sort lines that are about in order of time. Raises OperatorError for a line that is later than MARGIN allows.

    Several processes write one log, so two lines of a file may have changed places.
    """
    waiting: list[tuple[datetime, int, Line]] = []
    latest = ALL_TIME
    for number, line in enumerate(lines):
        when = time_of(line)
        if when < latest - MARGIN:
            raise OperatorError("The log is not in order of time: sort its lines by `timestamp` first.")
        heapq.heappush(waiting, (when, number, line))
        latest = max(latest, when)
        while waiting[0][0] < latest - MARGIN:
            yield heapq.heappop(waiting)[2]
    yield from (heapq.heappop(waiting)[2] for _ in range(len(waiting)))


@dataclass(frozen=True)
class FileLog:
    """Reads a file of JSON lines, or standard input if its name is `-`. It skips every other line."""

    name: str

    def read(self, query: Query) -> Iterator[Line]:
        """Return the lines in the order of the file. Raises OperatorError."""
        if self.name == "-":
            yield from _parsed(sys.stdin, query)
            return
        try:
            with Path(self.name).open(encoding="utf-8", errors="replace") as file:
                yield from _parsed(file, query)
        except OSError as error:
            raise OperatorError(f"The log {self.name} cannot be read: {error.strerror}.") from None


def _parsed(texts: Iterator[str] | Any, query: Query) -> Iterator[Line]:
    for text in texts:
        line = _parse(text)
        if line is not None and query.accepts(line):
            _check(line)
            yield line


def _check(line: Line) -> None:
    """Raise OperatorError for an audit line that the functions cannot have written."""
    if str(line["schema"]).partition("/")[0] != AUDIT:
        return
    wrong = [name for name in _TEXTS if not isinstance(line.get(name), str)]
    wrong += ["tool_arguments"] if not isinstance(line.get("tool_arguments", {}), dict) else []
    if wrong:
        raise OperatorError(f"The audit line of {line['timestamp']} has no valid {', '.join(wrong)}.")


def _parse(text: str) -> Line | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):  # text that is nested very deep is no line of ours
        return None
    return line if isinstance(line, dict) else None


@dataclass(frozen=True)
class ScannedLog:
    """Reads every line of CloudWatch's log groups in the range, with FilterLogEvents. It costs nothing, and is slow."""

    client: Any
    groups: tuple[str, ...]

    def read(self, query: Query) -> Iterator[Line]:
        """Return the lines in order of time."""
        return heapq.merge(*(self._read(group, query) for group in self.groups), key=itemgetter("timestamp"))

    def _read(self, group: str, query: Query) -> Iterator[Line]:
        terms = " || ".join(f'$.schema = "{schema}/*"' for schema in query.schemas)
        pages = self.client.get_paginator("filter_log_events").paginate(
            logGroupName=group,
            startTime=_milliseconds(query.since),
            endTime=_milliseconds(query.until),
            filterPattern=f"{{ {terms} }}",
        )
        return _parsed((event["message"] for page in pages for event in page["events"]), query)


@dataclass(frozen=True)
class InsightsLog:
    """Asks CloudWatch Logs Insights, and divides a range whose lines do not fit into one answer."""

    client: Any
    groups: tuple[str, ...]
    poll_seconds: float = 1.0

    def read(self, query: Query) -> Iterator[Line]:
        """Return the lines in order of time. Raises OperatorError."""
        return self._read(query, query.since.replace(microsecond=0), query.until)

    def _read(self, query: Query, since: datetime, until: datetime) -> Iterator[Line]:
        found = self._ask(query, since, until)
        if len(found) < MOST_RESULTS:
            yield from _parsed(iter(found), query)
            return
        middle = (since + (until - since) / 2).replace(microsecond=0)
        if middle <= since:
            raise OperatorError(f"One second ({since:%Y-%m-%d %H:%M:%S}) has {MOST_RESULTS} lines: use --scan.")
        yield from self._read(query, since, middle)
        yield from self._read(query, middle, until)

    def _ask(self, query: Query, since: datetime, until: datetime) -> list[str]:
        """Return the lines of one query, whose ends are whole seconds and belong to the range."""
        last = max(since, until - _SECOND if until.microsecond == 0 else until)
        started = self.client.start_query(
            logGroupNames=list(self.groups),
            startTime=int(since.timestamp()),
            endTime=int(last.timestamp()),
            queryString=query_string(query),
            limit=MOST_RESULTS,
        )
        rows = self._wait_for(started["queryId"])
        return [cell["value"] for row in rows for cell in row if cell["field"] == "@message"]

    def _wait_for(self, query_id: str) -> list[list[dict[str, str]]]:
        over = time.monotonic() + QUERY_SECONDS
        while time.monotonic() < over:
            answer = self.client.get_query_results(queryId=query_id)
            if answer["status"] == "Complete":
                results: list[list[dict[str, str]]] = answer["results"]
                return results
            if answer["status"] not in ("Scheduled", "Running"):
                raise OperatorError(f"The query of CloudWatch ended with {answer['status']}.")
            time.sleep(self.poll_seconds)
        self.client.stop_query(queryId=query_id)
        raise OperatorError(f"CloudWatch did not answer within {QUERY_SECONDS} s: ask for a shorter time.")


def query_string(query: Query) -> str:
    """Return the query for Logs Insights. `limit` is a parameter of the request."""
    schemas = "|".join(schema.replace(".", r"\.") for schema in query.schemas)
    asked = [f"| filter schema like /^({schemas})\\//"]
    for name, values in query.fields.items():
        asked.append(f"| filter {name} in [{', '.join(map(_quoted, values))}]")
    return "\n".join(["fields @timestamp, @message", *asked, "| sort @timestamp asc"])


def _quoted(value: str) -> str:
    """Return the value as a string of the query language. Raises OperatorError for a value that no id has."""
    if not value.isprintable():
        raise OperatorError("A value to look for has characters that cannot be printed.")
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _milliseconds(when: datetime) -> int:
    return int(when.timestamp() * 1000)
