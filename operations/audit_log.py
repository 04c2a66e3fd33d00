"""Answer who called which tool when, from the logs or from the database: `make audit-log`."""

import argparse
import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from datetime import datetime
from itertools import islice
from typing import Any, Final
from uuid import UUID

from operations import options
from operations.call_records import Row, open_records
from operations.log_source import AUDIT, Line, OperatorError, Query, in_order, time_of
from taskchat import cursor

Entry = dict[str, Any]
Place = tuple[datetime, str, str, str]
"""The time, the user, the turn and the call."""

_FILTERS: Final = {
    "person": ("actor", "user_id"),
    "conversation": ("conversation_id", "conversation_id"),
    "turn": ("turn_id", "turn_id"),
    "tool": ("tool", "tool"),
    "outcome": ("outcome", "outcome"),
}
"""Options, with the field of the line and the column of the record."""

_SAME: Final = ("door", "tool", "outcome", "duration_ms", "turn_id", "conversation_id", "call_id", "request_id")
_TABLE: Final = ("time", "person", "door", "tool", "arguments", "outcome", "duration_ms", "turn_id")
_EVERY: Final = 1_000


def from_line(line: Line) -> Entry:
    """Return what is shown of an audit line."""
    return {
        "time": time_of(line),
        "person": line["actor"],
        **{name: line.get(name) for name in _SAME},
        "arguments": line.get("tool_arguments", {}),
    }


def from_row(row: Row) -> Entry:
    """Return what is shown of a record. The auditor's role cannot read its arguments."""
    ids = {name: None if row.get(name) is None else str(row[name]) for name in ("turn_id", "conversation_id")}
    return {
        "time": row["created_at"],
        "person": row["user_id"],
        **{name: row.get(name) for name in _SAME},
        **ids,
        "arguments": None,
    }


def place_of(entry: Entry) -> Place:
    """Return what orders the entries."""
    return entry["time"], entry["person"], entry["turn_id"], entry["call_id"]


def main(arguments: list[str] | None = None) -> int:
    """Print one page of calls, as a table or as JSON lines."""
    return options.run(lambda: _print_page(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = options.parser("Show tool calls: by person, conversation, turn, tool, outcome and time.", since="26h")
    parser.add_argument("--person", help="the user's id")
    parser.add_argument("--conversation", type=_uuid, help="the conversation's id")
    parser.add_argument("--turn", type=_uuid, help="the turn's id")
    parser.add_argument("--tool", help="the tool's name, or `unknown` for a name that no tool has")
    parser.add_argument("--outcome", choices=["ok", "error", "unknown"])
    parser.add_argument("--from-database", action="store_true", help="read the records, not the log")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    parser.add_argument("--limit", type=_positive, default=50, help="calls on a page (default: 50)")
    parser.add_argument("--cursor", help="the place where the last page ended, as that page printed it")
    return parser


def _uuid(text: str) -> str:
    return str(UUID(text))


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _print_page(given: argparse.Namespace) -> int:
    common = options.Options(given)
    place = _read_cursor(given.cursor) if given.cursor else None
    since, until = common.since, common.until
    read = _from_database if given.from_database else _from_log
    found = read(common, max(since, place[0]) if place else since, until)
    with closing(found):
        page = list(islice((entry for entry in found if place is None or place_of(entry) > place), given.limit + 1))
    shown, more = page[: given.limit], page[given.limit :]
    print_entries(shown, given.json, common.show_time)
    ending = f"more: add --cursor {_write_cursor(shown[-1])}" if more else "no more"
    print(f"{len(shown)} calls from {common.show_time(since)} to {common.show_time(until)}; {ending}", file=sys.stderr)
    return 0


def _from_log(common: options.Options, since: datetime, until: datetime) -> Generator[Entry]:
    fields = {field: (text,) for name, (field, _) in _FILTERS.items() if (text := getattr(common.given, name))}
    found = map(from_line, _counted(in_order(common.log().read(Query(since, until, (AUDIT,), fields)))))
    return _sorted_by_place(found)


def _from_database(common: options.Options, since: datetime, until: datetime) -> Generator[Entry]:
    if common.given.outcome == "unknown":
        raise OperatorError("A record's outcome is ok or error: only the log has `unknown`.")
    filters = {column: text for name, (_, column) in _FILTERS.items() if (text := getattr(common.given, name))}
    with open_records(is_local=not common.given.env) as records:
        yield from map(from_row, _counted(records.read(since, until, **filters)))


def _counted(found: Iterator[Any]) -> Iterator[Any]:
    """Return the same, and show how many there were so far."""
    progress = options.Progress()
    try:
        for count, each in enumerate(found):
            if count % _EVERY == 0:
                progress.show(f"{count} calls read")
            yield each
    finally:
        progress.clear()


def _sorted_by_place(entries: Iterable[Entry]) -> Generator[Entry]:
    """Sort the entries of the same millisecond, so that a page ends at a place that can be found again."""
    same: list[Entry] = []
    for entry in entries:
        if same and entry["time"] != same[0]["time"]:
            yield from sorted(same, key=place_of)
            same = []
        same.append(entry)
    yield from sorted(same, key=place_of)


def _write_cursor(entry: Entry) -> str:
    when, *ids = place_of(entry)
    return cursor.write(when.isoformat(), *ids)


def _read_cursor(text: str) -> Place:
    try:
        when, person, turn, call = cursor.read(text, datetime.fromisoformat, str, str, str)
    except cursor.BadCursor:
        raise OperatorError("--cursor is not one that a page printed.") from None
    return when, person, turn, call


def print_entries(entries: list[Entry], as_json: bool, show_time: Callable[[datetime], str]) -> None:
    """Print the entries as JSON lines, or as a table with the columns that fit a terminal."""
    if as_json:
        for entry in entries:
            print(json.dumps(entry | {"time": show_time(entry["time"])}))
    elif entries:
        lines = [[options.printable(_cell(name, entry, show_time)) for name in _TABLE] for entry in entries]
        widths = [max(map(len, column)) for column in zip(_TABLE, *lines, strict=True)]
        for cells in ([name.replace("_", " ") for name in _TABLE], *lines):
            print("  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip())


def _cell(name: str, entry: Entry, show_time: Callable[[datetime], str]) -> str:
    value = entry[name]
    if name == "time":
        return show_time(value)
    if name == "arguments":
        return " ".join(f"{key}={each}" for key, each in value.items()) if value else "-"
    return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
