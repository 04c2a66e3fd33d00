"""Store many users with conversations and rows of the domain, for tests and measurements of large tables.

A user's number determines their ids, so that the caller knows them.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from uuid import UUID

import psycopg

from testing import tasks

TURNS: Final = 25
"""Turns of each ordinary user. Each has two messages and one tool call."""

TURNS_PER_CONVERSATION: Final = 10

ROWS: Final = 10
"""Rows of the domain of each ordinary user."""

BUSY: Final = 0
"""The number of the user who has LONG messages in one conversation, and LONG rows of the domain."""

LONG: Final = 10_000

CHUNK: Final = 10_000
"""Users stored in one statement. `say` gets the progress after each."""

# `u` is a user's number, `t` the number of one of their turns or rows.
_PEOPLE: Final = "generate_series(%(first)s::int, %(last)s - 1) u, lateral (select md5('user' || u) as user_id) p"
_TURNS: Final = f"{_PEOPLE}, generate_series(0, %(turns)s - 1) t"
_CONVERSATION: Final = "md5(user_id || (t / %(per)s))::uuid"
_STORE: Final = {
    "conversation": "insert into conversation (user_id, id, title, next_position, history_start)"
    f" select user_id, {_CONVERSATION}, 'Groceries and the rest of the week', 2 * count(*),"
    f" greatest(0, 2 * count(*) - 100) from {_TURNS} group by user_id, t / %(per)s",
    "message": "insert into message (user_id, conversation_id, position, turn_id, role, content, request_hash,"
    f" created_at) select user_id, {_CONVERSATION}, 2 * (t %% %(per)s) + r, md5(user_id || 'turn' || t)::uuid,"
    " (array['user', 'assistant'])[r + 1], 'Add call number ' || t || ' to the list, please', md5(t::text),"
    " now() - interval '400 days' + t * interval '1 day'"
    f" from {_TURNS}, generate_series(0, 1) r",
    "tool_call": "insert into tool_call (user_id, turn_id, call_id, position, conversation_id, door, tool, arguments,"
    " outcome, result, duration_ms, created_at)"
    f" select user_id, md5(user_id || 'turn' || t)::uuid, 'call_' || t, 0, {_CONVERSATION}, 'chat', {tasks.CALL}, 1,"
    f" now() - interval '400 days' + t * interval '1 day' from {_TURNS}",
    "rows of the domain": f"{tasks.ROWS} from {_PEOPLE}, generate_series(0, %(rows)s - 1) t",
    "allowance": "insert into allowance (user_id, door, full_at, day, model_tokens)"
    f" select user_id, door, now(), current_date, 3000 from {_PEOPLE}, unnest(array['chat', 'mcp']) door",
}


def user_id(number: int) -> str:
    """Return the id of a stored user."""
    return _md5(f"user{number}").hex


def conversation_id(number: int) -> UUID:
    """Return the id of the user's first conversation:

    TURNS_PER_CONVERSATION turns, or the busy user's LONG messages.
    """
    return _md5(f"{user_id(number)}0")


def _md5(text: str) -> UUID:
    return UUID(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest())


def store(superuser_url: str, first: int, last: int, say: Callable[[str], None] = lambda _: None) -> None:
    """Store the users with the numbers from `first` to before `last`, and call `say` with the progress."""
    usual = {"turns": TURNS, "per": TURNS_PER_CONVERSATION, "rows": ROWS}
    if first == BUSY:
        _store(superuser_url, {"first": 0, "last": 1, "turns": LONG // 2, "per": LONG // 2, "rows": LONG})
        first += 1
    for at in range(first, last, CHUNK):
        _store(superuser_url, {"first": at, "last": min(at + CHUNK, last), **usual})
        say(f"{min(at + CHUNK, last):,} users are stored")
    with psycopg.connect(superuser_url, autocommit=True) as database:
        database.execute("vacuum (analyze)")


def _store(superuser_url: str, values: dict[str, int]) -> None:
    def run(statement: str) -> None:
        with psycopg.connect(superuser_url, autocommit=True) as database:
            database.execute("set session_replication_role = replica")  # skip the checks of foreign keys: all are right
            database.execute(statement.encode(), values)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, sorted(_STORE.values(), key=len)))
