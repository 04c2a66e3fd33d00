"""Check what Postgres holds of a turn, as its superuser and with psycopg, which the program does not use."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg

from dev import processes
from testing.gateway import Response
from tests.domain import example

Rows = psycopg.Connection[dict[str, Any]]

# Postgres logs every change to a thing by itself, independently of the program and its records.
_WATCH: Final = f"""
create schema if not exists watch;
create table if not exists watch.effect (n bigserial, user_id text, kind text, text text, was text);
create index if not exists effect_user_id_idx on watch.effect (user_id);
create or replace function watch.note() returns trigger language plpgsql security definer as $$
begin
    insert into watch.effect (user_id, kind, text, was) values (
        coalesce(new.user_id, old.user_id), lower(tg_op), new.{example.text}, old.{example.text});
    return null;
end $$;
create or replace trigger watch after insert or update or delete on {example.table}
    for each row execute function watch.note();
"""  # noqa: S608  (the domain's own names)
_UNWATCH: Final = f"drop trigger if exists watch on {example.table}; drop schema if exists watch cascade"
SETTLED: Final = 15
"""Seconds within which Postgres ends the work of a connection that was cut."""


@contextmanager
def watched(rows: Rows) -> Iterator[None]:
    """Have Postgres log every change to a thing inside the block."""
    rows.execute(_WATCH)
    try:
        yield
    finally:
        rows.execute(_UNWATCH)


def effects(rows: Rows, user_id: str) -> list[str]:
    """Return every committed change to the user's things, in order: `insert milk`."""
    found = rows.execute(
        "select kind, coalesce(text, was) as text from watch.effect where user_id = %s order by n", [user_id]
    )
    return [f"{row['kind']} {row['text']}" for row in found]


def messages(rows: Rows, user_id: str, turn_id: str) -> list[tuple[str, str]]:
    """Return role and text of the turn's messages, in order of position."""
    found = rows.execute(
        "select role, content from message where user_id = %s and turn_id = %s order by conversation_id, position",
        [user_id, turn_id],
    )
    return [(row["role"], row["content"]) for row in found]


def positions(rows: Rows, user_id: str, conversation_id: str) -> list[int]:
    """Return the positions of all messages in the conversation."""
    found = rows.execute(
        "select position from message where user_id = %s and conversation_id = %s order by position",
        [user_id, conversation_id],
    )
    return [row["position"] for row in found]


def calls(rows: Rows, user_id: str, turn_id: str) -> list[dict[str, Any]]:
    """Return the turn's recorded calls as an answer shows them, in order of position."""
    found = rows.execute(
        "select call_id, tool, arguments, outcome, result, duration_ms from tool_call"
        " where user_id = %s and turn_id = %s order by position",
        [user_id, turn_id],
    )
    return found.fetchall()


def call_positions(rows: Rows, user_id: str, turn_id: str) -> list[int]:
    """Return the positions of the turn's recorded calls."""
    found = rows.execute(
        "select position from tool_call where user_id = %s and turn_id = %s order by position", [user_id, turn_id]
    )
    return [row["position"] for row in found]


def lease(rows: Rows, user_id: str, conversation_id: str) -> dict[str, Any] | None:
    """Return the conversation's lease, if it has not ended: its turn, its end and its fencing token."""
    return rows.execute(
        "select turn_id, lease_until, fence from conversation"
        " where user_id = %s and id = %s and lease_until > clock_timestamp()",
        [user_id, conversation_id],
    ).fetchone()


def let_leases_run_out(rows: Rows, user_id: str) -> int:
    """End the user's leases, as if their time were over, and return how many there were."""
    done = rows.execute(
        "update conversation set lease_until = clock_timestamp() - interval '1 second'"
        " where user_id = %s and lease_until > clock_timestamp()",
        [user_id],
    )
    return done.rowcount


def settle(rows: Rows) -> None:
    """Wait until Postgres has ended the work of connections that are gone."""
    for _ in processes.attempts(SETTLED):
        busy = rows.execute("select from pg_stat_activity where usename = 'taskchat_app' and state <> 'idle'")
        if not busy.fetchall():
            return
    raise AssertionError("Postgres is still busy")


def check_turn(rows: Rows, user_id: str, message: str, response: Response) -> None:
    """Check that the turn was stored once and completely, and that the answer equals it."""
    assert response.status == 200, response.body
    answer = response.json
    turn_id, conversation_id = answer["turn_id"], answer["conversation_id"]
    assert messages(rows, user_id, turn_id) == [("user", message), ("assistant", answer["response"])]
    kept = calls(rows, user_id, turn_id)
    assert json.dumps(answer["tool_calls"], sort_keys=True) == json.dumps(kept, sort_keys=True)
    assert call_positions(rows, user_id, turn_id) == list(range(len(kept)))
    assert len({call["call_id"] for call in kept}) == len(kept)
    assert lease(rows, user_id, conversation_id) is None
    stored = positions(rows, user_id, conversation_id)
    assert stored == list(range(len(stored)))
