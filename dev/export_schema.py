"""Write the JSON Schema of an export's pages to docs/export.schema.json (`make openapi`)."""

import json
from typing import Any, Final

from sqlalchemy import JSON, BigInteger, Boolean, Column, Date, DateTime, Double, Integer, Table, Text, Uuid
from sqlalchemy import types as sqltypes

import chat.app  # noqa: F401  (it imports every table)
from dev import state
from taskchat.cursor import MAX_CURSOR
from taskchat.http.auth import USER_ID
from taskchat.personal_data.export import VERSION
from taskchat.personal_data.tables import own_columns, personal_tables

_KINDS: Final[dict[type[Any], dict[str, Any]]] = {
    Boolean: {"type": "boolean"},
    BigInteger: {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    Integer: {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    Double: {"type": "number"},
    Date: {"type": "string", "format": "date"},
    DateTime: {"type": "string", "format": "date-time"},
    Uuid: {"type": "string", "format": "uuid"},
    Text: {"type": "string"},
    sqltypes.String: {"type": "string"},
    JSON: {"type": "object"},
}
"""Columns as Postgres writes them in JSON. The first kind that fits a column is its."""


def describe() -> dict[str, Any]:
    """Return the schema."""
    tables = {table.name: {"type": "array", "items": _row(table)} for table in personal_tables()}
    cursor = {"type": ["string", "null"], "minLength": 1, "maxLength": MAX_CURSOR}
    page = {
        "version": {"const": VERSION},
        "user_id": {"type": "string", "pattern": f"^{USER_ID.pattern}$"},
        "tables": _object(tables),
        "next_cursor": cursor | {"description": "Null on the last page."},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A page of everything that taskchat stores of a person",
        **_object(page),
    }


def _row(table: Table) -> dict[str, Any]:
    return _object({column.name: _value(column) for column in own_columns(table)})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _value(column: Column[Any]) -> dict[str, Any]:
    kind = column.type.impl_instance if isinstance(column.type, sqltypes.TypeDecorator) else column.type
    described = next(described for known, described in _KINDS.items() if isinstance(kind, known))
    return described | {"type": [described["type"], "null"]} if column.nullable else described


def main() -> None:
    """Write the file."""
    path = state.ROOT / "docs" / "export.schema.json"
    path.write_text(json.dumps(describe(), indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
