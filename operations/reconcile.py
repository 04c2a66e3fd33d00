"""Compare the audit lines in the logs with the records in Postgres, one to one: `make reconcile`.

Lines and records come in order of time, and a pair is at most MARGIN apart. So memory holds the calls of that time
only, and the range may be as long as the log.
"""

import argparse
import heapq
import json
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from operations import options
from operations.call_records import CallRecords, Kind, Row, open_records
from operations.log_source import AUDIT, MARGIN, Line, LogSource, OperatorError, Query, in_order, time_of

_EVERY: Final = 1_000

Key = tuple[str, str, str]
"""User, turn and call."""


@dataclass
class Call:
    """One call, as the logs and the database have it."""

    key: Key
    first_seen: datetime
    row: Row | None = None
    lines: list[Line] = field(default_factory=list)

    @property
    def at(self) -> datetime:
        """Return the time that decides which run compares the call."""
        return self.row["created_at"] if self.row else time_of(self.lines[0])

    @property
    def known(self) -> list[Line]:
        """Return the lines that say how the call ended."""
        return [line for line in self.lines if line["outcome"] != "unknown"]


@dataclass
class Report:
    """The result of a run."""

    checked: int = 0
    mismatches: list[dict[str, Any]] = field(default_factory=list)
    """The first MOST_SHOWN of them."""
    found: int = 0
    resolved: int = 0
    """Calls whose only line says `unknown`, and whose record says how they ended."""
    without_effect: int = 0
    """Calls whose only line says `unknown`, and which have no record: they had no effect, or were erased since."""
    erased: int = 0
    """Lines without a record that the erasure of a person explains."""
    expired: int = 0
    """Lines without a record that may have been deleted for their age."""

    @property
    def summary(self) -> str:
        """Return the numbers in one line."""
        return (
            f"{self.checked} calls compared: {self.found} mismatches; "
            f"outcome unknown in the log: {self.resolved} found in the database, {self.without_effect} without effect; "
            f"lines without a record: {self.erased} of erased persons, {self.expired} past retention"
        )


@dataclass
class Reconciliation:
    """Compares the calls from `since`, before `until`."""

    log: LogSource
    records: CallRecords
    since: datetime
    until: datetime
    retention_limit: datetime | None = None
    """Retention may have deleted older records."""
    tell: Callable[[dict[str, Any]], None] = lambda _mismatch: None
    """Gets each mismatch when it is found."""
    progress: Callable[[str], None] = lambda _line: None
    report: Report = field(default_factory=Report)
    _near: OrderedDict[Key, Call] = field(default_factory=OrderedDict)
    _rowless: dict[Kind, list[Call]] = field(default_factory=dict)
    """Calls with a line and no record, of persons without an earlier record: an erasure may explain them."""

    def run(self) -> Report:
        """Compare everything. Raises OperatorError when the log is not in order of time."""
        for count, (when, found) in enumerate(self._read()):
            self._add(found, when)
            self._judge_before(when - MARGIN)
            if count % _EVERY == 0:
                self.progress(f"{when:%Y-%m-%d %H:%M} · {self.report.checked} calls · {self.report.found} mismatches")
        self._judge_before(None)
        self._explain_by_erasures()
        return self.report

    def _read(self) -> Iterator[tuple[datetime, Row]]:
        """Return lines and records in order of time, with those of a margin around the range."""
        since, until = self.since - MARGIN, self.until + MARGIN
        lines = ((time_of(line), line) for line in in_order(self.log.read(Query(since, until, (AUDIT,)))))
        rows = ((row["created_at"], row) for row in self.records.read(since, until))
        return heapq.merge(lines, rows, key=lambda pair: pair[0])

    def _add(self, found: Row, when: datetime) -> None:
        is_line = "schema" in found
        user_id = found["actor" if is_line else "user_id"]
        key = (user_id, str(found["turn_id"]), found["call_id"])
        call = self._near.setdefault(key, Call(key, when))
        if is_line:
            call.lines.append(found)
        else:
            call.row = found

    def _judge_before(self, limit: datetime | None) -> None:
        """Judge and forget the calls that were first seen before the limit."""
        while self._near and (limit is None or next(iter(self._near.values())).first_seen < limit):
            _, call = self._near.popitem(last=False)
            if self.since <= call.at < self.until:
                self._judge(call)

    def _judge(self, call: Call) -> None:
        self.report.checked += 1
        if call.row is None:
            self._judge_rowless(call)
        elif not call.lines:
            self._add_mismatch("record without a line", call)
        elif not call.known:
            self.report.resolved += 1
            self._compare(call, call.lines[-1], call.row)
        elif len(call.known) > 1:
            self._add_mismatch(f"{len(call.known)} lines for one call", call)
        else:
            self._compare(call, call.known[0], call.row)

    def _compare(self, call: Call, line: Line, row: Row) -> None:
        """Compare the fields that both have."""
        names = ("conversation_id", "request_id", "door", "tool", "outcome")
        differing = [name for name in names if _differs(name, line, row)]
        if differing:
            self._add_mismatch(f"line and record differ in {', '.join(differing)}", call)

    def _judge_rowless(self, call: Call) -> None:
        if not call.known:
            self.report.without_effect += 1
        elif self.retention_limit and call.at < self.retention_limit:
            self.report.expired += 1
        elif self.records.has_earlier(call.key[0], call.at):
            self._add_mismatch("line without a record", call)
        else:
            line = call.known[-1]
            self._rowless.setdefault((line["door"], line["tool"], line["outcome"]), []).append(call)

    def _explain_by_erasures(self) -> None:
        """Count lines without a record as erased, as far as there are erased calls of the same kind."""
        erased = self.records.count_erased(self.since, self.until) if self._rowless else Counter[Kind]()
        for kind, calls in self._rowless.items():
            if len(calls) <= erased[kind]:
                self.report.erased += len(calls)
                continue
            for call in calls:
                but = f" ({erased[kind]} of these {len(calls)} may be erased)" if erased[kind] else ""
                self._add_mismatch(f"line without a record{but}", call)

    def _add_mismatch(self, problem: str, call: Call) -> None:
        mismatch = {"problem": problem, **describe(call)}
        self.report.found += 1
        self.report.mismatches.append(mismatch)
        del self.report.mismatches[MOST_KEPT:]
        self.tell(mismatch)


MOST_KEPT: Final = 1_000
"""Mismatches that a report keeps. Every one is printed."""


def _differs(name: str, line: Line, row: Row) -> bool:
    stored, logged = row[name], line.get(name)
    if name == "request_id" and stored is None:  # a record from before the column
        return False
    if name == "outcome" and logged == "unknown":
        return False
    return (None if stored is None else str(stored)) != logged


def describe(call: Call) -> dict[str, Any]:
    """Return everything that is known of the call, so that an operator can account for it without another query."""
    line = call.known[-1] if call.known else (call.lines or [{}])[-1]
    row = call.row or {}
    same = ("turn_id", "call_id", "conversation_id", "request_id", "door", "tool", "outcome", "duration_ms")
    parts = {
        "record": {
            name: row[name] if isinstance(row[name], float | None) else str(row[name]) for name in same if name in row
        },
        "line": {name: line[name] for name in same if name in line},
    }
    return {"at": call.at, "person": call.key[0], **{name: part for name, part in parts.items() if part}}


def show(mismatch: dict[str, Any], given: options.Options) -> str:
    """Return the mismatch as one line."""
    parts = {name: mismatch[name] for name in ("record", "line") if name in mismatch}
    person = options.printable(mismatch["person"])
    return f"{given.show_time(mismatch['at'])}  {mismatch['problem']}: person {person} {json.dumps(parts)}"


def main(arguments: list[str] | None = None) -> int:
    """Reconcile, and return 1 if there is a mismatch."""
    parser = options.parser("Compare the audit lines in the logs with the records in Postgres.", since="26h")
    parser.add_argument("--json", action="store_true", help="print each mismatch as a JSON line")
    parser.add_argument(
        "--metrics", action="store_true", help="put ReconcileChecked and ReconcileMismatches (needs --env)"
    )
    parser.add_argument("--settle", type=int, default=5, help="minutes that calls have to reach the log (default: 5)")
    parser.add_argument("--retention-days", type=int, help="age of rows that may be deleted (default: RetentionDays)")
    return options.run(lambda: _reconcile(parser.parse_args(arguments)))


def _reconcile(given: argparse.Namespace) -> int:
    common, progress = options.Options(given), options.Progress()
    if given.metrics and not common.deployment:
        raise OperatorError("--metrics needs --env: the metrics are the deployment's.")
    until = min(common.until, common.now - timedelta(minutes=given.settle))
    if common.since >= until:
        raise OperatorError(f"The range must begin before the last {given.settle} minutes, which still settle.")
    days = _retention_days(common)
    limit = common.now - timedelta(days=days) if days else None

    def tell(mismatch: dict[str, Any]) -> None:
        progress.clear()
        print(json.dumps(mismatch, default=str) if given.json else show(mismatch, common), flush=True)

    with open_records(is_local=not given.env) as records:
        work = Reconciliation(common.log(), records, common.since, until, limit, tell, progress.show)
        report = work.run()
    progress.clear()
    if given.metrics and common.deployment:
        put_metrics(common.deployment.session.client("cloudwatch"), common.deployment.service, report)
    times = f"{common.show_time(work.since)} to {common.show_time(work.until)}"
    print(f"{times}: {report.summary}", file=sys.stderr if given.json else sys.stdout)
    return 1 if report.found else 0


def _retention_days(common: options.Options) -> int:
    if common.given.retention_days is not None:
        return int(common.given.retention_days)
    return int(common.deployment.parameters.get("RetentionDays", 0)) if common.deployment else 0


def put_metrics(cloudwatch: Any, service: str, report: Report) -> None:
    """Put the numbers of the run as metrics, for the alarm."""
    numbers = {"ReconcileChecked": report.checked, "ReconcileMismatches": report.found}
    dimensions = [{"Name": "service", "Value": service}]
    data = [
        {"MetricName": name, "Dimensions": dimensions, "Unit": "Count", "Value": value}
        for name, value in numbers.items()
    ]
    cloudwatch.put_metric_data(Namespace="taskchat", MetricData=data)


if __name__ == "__main__":
    sys.exit(main())
