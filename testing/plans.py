"""Read the plan of each statement that Postgres executed for the program.

The server's auto_explain logs the plans, also those of foreign keys. They belong to the statements as the program sends
them: with their values, under the runtime role and with row-level security.
"""

import contextlib
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

import psycopg
from sqlalchemy import Engine, SelectBase, TextClause, UpdateBase, event
from sqlalchemy.orm import FromStatement
from sqlmodel import Session, SQLModel

import taskchat
from dev.postgres import APP, Postgres

MOST_DISCARDED: Final = 2
"""Rows that a scan may read and discard: a conversation with a lease, and a little more."""

MOST_ROWS: Final = 500
"""Rows that a scan may return. The query of a history reads at most 200, whatever a user has stored."""

SETTINGS: Final = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_buffers": "on",
    "auto_explain.log_timing": "off",  # timing each node would cost more than the statement
    "auto_explain.log_format": "json",
    "auto_explain.log_nested_statements": "on",  # the lookups of foreign keys
}
_INDEX_SCANS: Final = {"Index Scan", "Index Only Scan", "Bitmap Index Scan"}
_OTHER_SCANS: Final = {"Seq Scan", "Sample Scan", "Tid Scan", "Tid Range Scan"}
_FIRST_COLUMNS: Final = """
select i.indexrelid::regclass::text, a.attname from pg_index i
join pg_attribute a on a.attrelid = i.indexrelid and a.attnum = 1
"""
_ENTRY: Final = re.compile(r"LOG:  duration: ([0-9.]+) ms  plan:$")


def _statements() -> Iterator[tuple[str, Any]]:
    """Yield each statement under its module's name for it. Skip what a module imports."""
    for found in pkgutil.walk_packages(taskchat.__path__, "taskchat."):
        module = importlib.import_module(found.name)
        defined = set(re.findall(r"^(\w+)(?:: Final.*)? =", inspect.getsource(module), re.MULTILINE))
        for name, value in vars(module).items():
            if name in defined and isinstance(value, UpdateBase | SelectBase | FromStatement | TextClause):
                yield f"{found.name.rpartition('.')[2]}.{name}", value


STATEMENTS: Final = dict(_statements())
"""Every statement of the program's modules, by name."""


@dataclass(frozen=True)
class Plan:
    """One execution of one statement."""

    text: str
    """The statement, with ? for each value."""
    milliseconds: float
    root: dict[str, Any]

    @property
    def pages(self) -> int:
        """Return the number of pages of tables and indexes that were read, from memory or not."""
        return int(self.root["Shared Hit Blocks"] + self.root["Shared Read Blocks"])

    @property
    def indexes(self) -> set[str]:
        """Return the indexes in use."""
        found = {node["Index Name"] for node in self._nodes if "Index Name" in node}
        return found.union(*(node.get("Conflict Arbiter Indexes", ()) for node in self._nodes))

    @property
    def touches_tables(self) -> bool:
        """Return True if the plan reads or writes a table of the program."""
        return any(node.get("Relation Name") in SQLModel.metadata.tables for node in self._nodes)

    def faults(self, first_columns: dict[str, str]) -> list[str]:
        """Return what makes the plan slower as tables grow. `first_columns` names the first column of each index."""
        scans = [node for node in self._nodes if node.get("Relation Name", "") in {*SQLModel.metadata.tables, ""}]
        faults = [fault for node in scans for fault in _faults(node)]
        ownerless = sorted(index for index in self.indexes if first_columns.get(index) != "user_id")
        return faults + [f"{index} does not begin with the owner" for index in ownerless]

    @property
    def _nodes(self) -> list[dict[str, Any]]:
        return list(_walk(self.root))


def _walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _walk(child)


def _faults(node: dict[str, Any]) -> Iterator[str]:
    kind, where = node["Node Type"], node.get("Index Name") or node.get("Relation Name")
    if kind in _OTHER_SCANS:
        yield f"{kind} of {where}"
    if kind in _INDEX_SCANS and "(user_id = " not in node.get("Index Cond", ""):
        yield f"{where} is not searched by the owner"
    if node.get("Rows Removed by Filter", 0) > MOST_DISCARDED:
        yield f"{node['Rows Removed by Filter']:.0f} rows of {where} are read and discarded"
    if kind in _INDEX_SCANS and node["Actual Rows"] * node["Actual Loops"] > MOST_ROWS:
        yield f"{node['Actual Rows'] * node['Actual Loops']:.0f} rows of {where} are read"


class Recorder:
    """Reads the plans that auto_explain writes into the server's log."""

    def __init__(self, postgres: Postgres) -> None:
        """Turn auto_explain on for new connections of the runtime role."""
        self._log = postgres.log
        with psycopg.connect(postgres.superuser_url, autocommit=True) as database:
            for name, value in SETTINGS.items():
                database.execute(f"alter role {APP} set {name} = '{value}'".encode())
            self.first_columns: dict[str, str] = dict(database.execute(_FIRST_COLUMNS).fetchall())
        self.skip()

    def skip(self) -> None:
        """Skip the plans in the log until now."""
        self._at = self._log.stat().st_size

    def read(self) -> list[Plan]:
        """Return the plans since the last read that touch a table of the program."""
        with self._log.open("rb") as log:
            log.seek(self._at)
            written = log.read()
        self._at += len(written)
        plans = _parse(written.decode().splitlines())
        return [plan for plan in plans if plan.touches_tables]


def _parse(lines: list[str]) -> Iterator[Plan]:
    for number, line in enumerate(lines):
        if entry := _ENTRY.search(line):
            body = takewhile(lambda line: line.startswith("\t"), lines[number + 1 :])
            explained = json.loads("\n".join(body))
            yield Plan(_bare(explained["Query Text"]), float(entry[1]), explained["Plan"])


def _bare(text: str) -> str:
    """Return the statement with ? for each value, in place of the driver's own placeholder."""
    return re.sub(r"\$\d+|%s", "?", text)


@contextlib.contextmanager
def naming() -> Iterator[dict[str, str]]:
    """Collect the names of the statements that run inside the block, by their texts.

    A statement without a name of its own is named after its verb and its table.
    """
    names: dict[str, str] = {}
    current = ""

    def remember(state: Any) -> None:
        nonlocal current
        current = _name(state.statement)

    def note(_connection: Any, _cursor: Any, text: str, *_: Any) -> None:
        names[_bare(text)] = current

    event.listen(Session, "do_orm_execute", remember)
    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield names
    finally:
        event.remove(Session, "do_orm_execute", remember)
        event.remove(Engine, "before_cursor_execute", note)


def _name(statement: Any) -> str:
    for name, value in STATEMENTS.items():
        if hash(value) == hash(statement):  # the session annotates a copy, which keeps the hash
            return name
    return f"{statement.__visit_name__} {getattr(statement, 'table', '')}".strip()
