"""Read the plan of each statement that Postgres executed for the program.

The server's own auto_explain writes the plans to its log: of the statements as the program sends them, with their
values, under the runtime role and with row-level security. The plans of foreign keys' checks are among them. Nothing
runs a second time.
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
from types import ModuleType
from typing import Any, Final

import psycopg
from sqlalchemy import Engine, SelectBase, TextClause, UpdateBase, event
from sqlalchemy.orm import FromStatement
from sqlmodel import Session, SQLModel

import taskchat
from dev.postgres import APP, Postgres

MOST_DISCARDED: Final = 2
"""Rows that a scan may read and discard, such as a conversation that has a lease."""

MOST_ROWS: Final = 500
"""Rows that a scan may return. A history has at most 200 messages."""

SETTINGS: Final = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_buffers": "on",
    "auto_explain.log_timing": "off",  # the time of each node costs more than the statement
    "auto_explain.log_format": "json",
    "auto_explain.log_nested_statements": "on",  # the checks of foreign keys
}
_INDEX_SCANS: Final = {"Index Scan", "Index Only Scan", "Bitmap Index Scan"}
_OTHER_SCANS: Final = {"Seq Scan", "Sample Scan", "Tid Scan", "Tid Range Scan"}
_FIRST_COLUMNS: Final = """
select i.indexrelid::regclass::text, a.attname from pg_index i
join pg_attribute a on a.attrelid = i.indexrelid and a.attnum = 1
"""
_ENTRY: Final = re.compile(r"LOG:  duration: ([0-9.]+) ms  plan:$")


def statements_of(package: ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield each statement in the package's modules with its name. Skip imported names."""
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        module = importlib.import_module(found.name)
        defined = set(re.findall(r"^(\w+)(?:: Final.*)? =", inspect.getsource(module), re.MULTILINE))
        for name, value in vars(module).items():
            if name in defined and isinstance(value, UpdateBase | SelectBase | FromStatement | TextClause):
                yield f"{found.name.rpartition('.')[2]}.{name}", value


STATEMENTS: Final = dict(statements_of(taskchat))
"""Every statement in a module of the program, by name."""


@dataclass(frozen=True)
class Plan:
    """Hold one execution of one statement."""

    text: str
    """The statement, with ? for each value."""
    milliseconds: float
    root: dict[str, Any]

    @property
    def pages(self) -> int:
        """Return the pages of tables and indexes that the statement looked at, in memory or not."""
        return int(self.root["Shared Hit Blocks"] + self.root["Shared Read Blocks"])

    @property
    def indexes(self) -> set[str]:
        """Return the indexes that the statement used."""
        found = {node["Index Name"] for node in self._nodes if "Index Name" in node}
        return found.union(*(node.get("Conflict Arbiter Indexes", ()) for node in self._nodes))

    @property
    def scans(self) -> set[str]:
        """Return the kinds of scans of the program's tables."""
        return {node["Node Type"] for node in self._nodes if node.get("Relation Name") in SQLModel.metadata.tables}

    @property
    def most_rows_read(self) -> float:
        """Return the most rows that one scan of a table returned or discarded."""
        scans = [node for node in self._nodes if node.get("Relation Name") in SQLModel.metadata.tables]
        read = (node["Actual Rows"] * node["Actual Loops"] + node.get("Rows Removed by Filter", 0) for node in scans)
        return float(max(read))

    @property
    def touches_tables(self) -> bool:
        """Return whether the statement reads or writes a table of the program."""
        return any(node.get("Relation Name") in SQLModel.metadata.tables for node in self._nodes)

    def faults(self, first_columns: dict[str, str]) -> list[str]:
        """Return each reason why the statement gets slower as tables grow. `first_columns` are those of all indexes."""
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
    """Read the plans that auto_explain writes to the server's log."""

    def __init__(self, postgres: Postgres) -> None:
        """Switch auto_explain on for later connections of the runtime role."""
        self._log = postgres.log
        with psycopg.connect(postgres.superuser_url, autocommit=True) as database:
            for name, value in SETTINGS.items():
                database.execute(f"alter role {APP} set {name} = '{value}'".encode())
            self.first_columns: dict[str, str] = dict(database.execute(_FIRST_COLUMNS).fetchall())
        self.skip()

    def skip(self) -> None:
        """Skip the statements executed until now."""
        self._at = self._log.stat().st_size

    def read(self) -> list[Plan]:
        """Return the plans of statements on the program's tables, executed since the last read."""
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
    """Return the statement with ? for each value. Drivers write values in two ways."""
    return re.sub(r"\$\d+|%s", "?", text)


@contextlib.contextmanager
def naming() -> Iterator[dict[str, str]]:
    """Give the names of the statements that run inside the block, by their texts.

    A statement that the program builds on another is named by its kind and table.
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
