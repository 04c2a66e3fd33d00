"""Export everything that is stored of a person, page by page.

Postgres writes each row as JSON and measures it. So a page never holds more than its bound, however many rows there are
and however large they are, and this process only puts the page together.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Column,
    Integer,
    Select,
    Table,
    Text,
    bindparam,
    cast,
    func,
    literal,
    or_,
    select,
    tuple_,
    union_all,
)
from sqlmodel import Session

from taskchat import cursor
from taskchat.cursor import BadCursor
from taskchat.personal_data.tables import OWNER, key_columns, own_columns, personal_tables
from taskchat.text import is_storable

VERSION: Final = "taskchat.export/1"
"""Version of a page. A version may get new tables and columns; none changes or goes."""

MAX_ROWS: Final = 1_000
"""Rows of a page at most."""

MAX_BYTES: Final = 2**20
"""Bytes of a page at most, unless a single row takes more. Lambda returns six times as many."""

_ENVELOPE: Final = 4 * 1024
"""Bytes of a page that are no rows: the names of the tables, and the cursor."""

_COMMA: Final = 1
_BIGINT: Final = range(-(2**63), 2**63)
_PARSERS: Final[dict[type, Callable[[str], Any]]] = {
    UUID: UUID,
    date: date.fromisoformat,
    datetime: datetime.fromisoformat,
}
"""Parsers of the values in a cursor, by the Python type of the column. Any other is text."""


@dataclass(frozen=True)
class _Place:
    """The row after which a page begins: its table and its key. Without a key, before the table's first row."""

    table: Table
    key: Sequence[Any] = ()


def read_page(session: Session, user_id: str, after: str | None, limit: int) -> str:
    """Return the page that begins after the cursor, as JSON. Raises BadCursor.

    The caller's transaction sees only the person's rows. A row that is added or goes between two pages moves no other.
    """
    tables = personal_tables()
    place = _Place(tables[0]) if after is None else _read_cursor(after, tables)
    key = {f"after_{number}": value for number, value in enumerate(place.key)}
    parameters = {"of_user": user_id, "most": limit, "more": limit + 1, "bytes": MAX_BYTES - _ENVELOPE, **key}
    found = session.execute(_page_statement(tables, place), parameters).all()
    rows: dict[str, list[str]] = {table.name: [] for table in tables}
    for row in found:
        rows[row.name].append(row.content)
    more = cursor.write(found[-1].name, *json.loads(found[-1].key)) if found and found[-1].has_more else None
    return _write(user_id, rows, more)


def _write(user_id: str, rows: dict[str, list[str]], more: str | None) -> str:
    tables = ",".join(f"{json.dumps(name)}:[{','.join(contents)}]" for name, contents in rows.items())
    start = json.dumps({"version": VERSION, "user_id": user_id}, separators=(",", ":"))[:-1]
    return f'{start},"tables":{{{tables}}},"next_cursor":{json.dumps(more)}}}'


def _page_statement(tables: list[Table], place: _Place) -> Select[Any]:
    """Return the statement for the rows after the place, up to the bounds, each with its key and its table."""
    first = tables.index(place.table)
    parts = [_rows_of(table, number, place) for number, table in enumerate(tables[first:])]
    found = union_all(*parts).subquery("found")
    order = (found.c.part, found.c.number)
    size = func.sum(func.octet_length(found.c.content) + _COMMA).over(order_by=order)
    counted = select(
        *(found.c.name, found.c.key, found.c.content, size.label("size")),
        func.row_number().over(order_by=order).label("number"),
        func.lead(found.c.number).over(order_by=order).is_not(None).label("has_more"),
    ).subquery("counted")
    fits = or_(counted.c.size <= bindparam("bytes", type_=Integer), counted.c.number == 1)
    return (
        select(counted.c.name, counted.c.key, counted.c.content, counted.c.has_more)
        .where(counted.c.number <= bindparam("most", type_=Integer), fits)
        .order_by(counted.c.number)
    )


def _rows_of(table: Table, part: int, place: _Place) -> Select[Any]:
    """Return the select of a table's rows in the order of their keys, each written as JSON."""
    keys = key_columns(table)
    rows = select(*own_columns(table)).where(table.c[OWNER] == bindparam("of_user"))
    if place.key and table is place.table:
        rows = rows.where(tuple_(*keys) > tuple_(*map(_after, range(len(keys)), keys)))
    page = rows.order_by(*keys).limit(bindparam("more")).subquery("page")
    order = [page.c[column.name] for column in keys]
    return select(
        literal(part).label("part"),
        func.row_number().over(order_by=order).label("number"),
        literal(table.name).label("name"),
        cast(func.json_build_array(*order), Text).label("key"),
        cast(func.row_to_json(page.table_valued()), Text).label("content"),
    )


def _after(number: int, column: Column[Any]) -> BindParameter[Any]:
    """Return the parameter for one value of the key. A cursor may hold a number that is too large for the column."""
    kind = BigInteger() if isinstance(column.type, Integer) else column.type
    return bindparam(f"after_{number}", type_=kind)


def _read_cursor(text: str, tables: list[Table]) -> _Place:
    for table in tables:
        with suppress(BadCursor):
            parsers = [partial(_parse, column) for column in key_columns(table)]
            place = cursor.read(text, partial(_check_name, table.name), *parsers)
            if None not in place:
                return _Place(table, place[1:])
    raise BadCursor


def _check_name(name: str, value: Any) -> str:
    if value != name:
        raise ValueError("another table")
    return name


def _parse(column: Column[Any], value: Any) -> Any:
    """Return a value of the key. Raises ValueError for one that Postgres cannot compare with the column."""
    if isinstance(column.type, Integer):
        if type(value) is not int or value not in _BIGINT:
            raise ValueError("not a number")
        return value
    if not isinstance(value, str) or not is_storable(value):
        raise ValueError("not a text")
    return _PARSERS.get(column.type.python_type, str)(value)
