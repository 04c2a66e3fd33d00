"""Ask for a person's export and erasure, and read from Postgres what it holds of the person."""

import json
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import sql

from taskchat.personal_data.tables import personal_tables
from testing.callers import Caller
from testing.gateway import Handler, Response, invoke

Rows = psycopg.Connection[dict[str, Any]]
Exported = dict[str, list[dict[str, Any]]]


def erasure(person: Caller) -> dict[str, Any]:
    """Return the event of a request to erase the person."""
    return person.own("DELETE", confirm="erase")


def send(made: dict[str, Any], handler: Handler | None = None) -> Response:
    """Send the request to the handler in this process."""
    from chat.app import handler as chat

    return invoke(handler or chat, made)


def erase(person: Caller) -> Response:
    """Erase the person."""
    return send(erasure(person))


def pages(person: Caller, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield the pages of the person's export."""
    cursor, size = "", "" if limit is None else f"&limit={limit}"
    while cursor is not None:
        answer = send(person.own("GET", "/export", query=f"{cursor}{size}".removeprefix("&")))
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json"), answer.body
        yield answer.json
        cursor = answer.json["next_cursor"] and f"cursor={answer.json['next_cursor']}"


def join(exported: list[dict[str, Any]]) -> Exported:
    """Return the rows of all pages by table."""
    return {table: [row for page in exported for row in page["tables"][table]] for table in exported[0]["tables"]}


def stored(rows: Rows, user_id: str) -> Exported:
    """Return every row of the person in Postgres, without the owner, in the order of the keys."""
    return {table.name: _stored_in(rows, table.name, list(table.primary_key.columns), user_id) for table in _tables()}


def count(rows: Rows, user_id: str) -> dict[str, int]:
    """Return the number of the person's rows in each table that has any."""
    return {name: len(found) for name, found in stored(rows, user_id).items() if found}


def versions(rows: Rows, user_id: str) -> list[str]:
    """Return every row of the person as Postgres keeps it, with the transaction that wrote it and its place."""
    found = []
    for table in _tables():
        query = sql.SQL("select concat_ws(' ', xmin, ctid, t) as version from {} t where user_id = %s order by 1")
        found += rows.execute(query.format(sql.Identifier(table.name)), [user_id]).fetchall()
    return [row["version"] for row in found]


def tables_with(rows: Rows, text: str) -> list[str]:
    """Return the tables of the database in which any column of any row holds the text."""
    names = rows.execute("select relname from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace")
    query = sql.SQL("select from {} t where strpos(t::text, %s) > 0 limit 1")
    return [
        row["relname"]
        for row in names.fetchall()
        if rows.execute(query.format(sql.Identifier(row["relname"])), [text]).fetchall()
    ]


def _tables() -> list[Any]:
    return [table for table in personal_tables() if table.name != "receipt"]  # of tests/one_more_table.py


def _stored_in(rows: Rows, table: str, key: list[Any], user_id: str) -> list[dict[str, Any]]:
    query = sql.SQL("select (to_jsonb(t) - 'user_id')::text as row from {} t where user_id = %s order by {}")
    order = sql.SQL(", ").join(sql.Identifier(column.name) for column in key)
    found = rows.execute(query.format(sql.Identifier(table), order), [user_id]).fetchall()
    return [json.loads(row["row"]) for row in found]
