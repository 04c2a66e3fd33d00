"""Store users with conversations and tasks, many within seconds, so that turns are measured among their rows.

An id is derived from the user's number, so that the measuring code knows it.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from uuid import UUID

import psycopg

TURNS: Final = 25
"""Turns of each ordinary user, with two messages and one tool call each."""

TURNS_PER_CONVERSATION: Final = 10

TASKS: Final = 10
"""Tasks of each ordinary user, every other one completed."""

BUSY: Final = 0
"""The number of the user with LONG messages in one conversation, and LONG tasks."""

LONG: Final = 10_000

CHUNK: Final = 10_000
"""Users stored by one statement. The progress is printed after each."""

# `u` is a user's number, `t` the number of one of the user's turns or tasks.
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
    f" select user_id, md5(user_id || 'turn' || t)::uuid, 'call_' || t, 0, {_CONVERSATION}, 'chat', 'add_task',"
    ' \'{"title": "call number"}\', \'ok\', \'{"id": 17, "title": "call number", "description": "", "completed": false,'
    ' "created_at": "2026-11-01T10:00:00Z", "updated_at": "2026-11-01T10:00:00Z"}\', 1,'
    f" now() - interval '400 days' + t * interval '1 day' from {_TURNS}",
    "task": "insert into task (user_id, title, description, completed)"
    f" select user_id, 'Call number ' || t, 'after lunch', t %% 2 = 1"
    f" from {_PEOPLE}, generate_series(0, %(tasks)s - 1) t",
    "allowance": "insert into allowance (user_id, door, full_at, day, model_tokens)"
    f" select user_id, door, now(), current_date, 3000 from {_PEOPLE}, unnest(array['chat', 'mcp']) door",
}


def user_id(number: int) -> str:
    """Return the id of a stored user."""
    return _md5(f"user{number}").hex


def conversation_id(number: int) -> UUID:
    """Return the id of a user's first conversation: TURNS_PER_CONVERSATION turns, or LONG messages of the busy user."""
    return _md5(f"{user_id(number)}0")


def _md5(text: str) -> UUID:
    return UUID(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest())


def store(superuser_url: str, first: int, last: int, say: Callable[[str], None] = lambda _: None) -> None:
    """Store the users with the numbers from `first` to before `last`, and pass the progress to `say`."""
    usual = {"turns": TURNS, "per": TURNS_PER_CONVERSATION, "tasks": TASKS}
    if first == BUSY:
        _store(superuser_url, {"first": 0, "last": 1, "turns": LONG // 2, "per": LONG // 2, "tasks": LONG})
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
