"""People with conversations and tasks, as many as wanted, stored in seconds: what turns are measured among.

Ids are made from a person's number, so that whoever measures knows them.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from uuid import UUID

import psycopg

TURNS: Final = 25
"""Of each ordinary person, with two messages and one tool call each."""

TURNS_PER_CONVERSATION: Final = 10

TASKS: Final = 10
"""Of each ordinary person, every other one completed."""

BUSY: Final = 0
"""The number of the person who has LONG messages in one conversation, and LONG tasks."""

LONG: Final = 10_000

CHUNK: Final = 10_000
"""People stored in one statement: between two of them there is something to tell."""

# `u` is a person's number, `t` that of a turn or a task of theirs.
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
    """The id of a person who was stored."""
    return _md5(f"user{number}").hex


def conversation_id(number: int) -> UUID:
    """The id of their first conversation, which has TURNS_PER_CONVERSATION turns; the busy one's has LONG messages."""
    return _md5(f"{user_id(number)}0")


def _md5(text: str) -> UUID:
    return UUID(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest())


def store(superuser_url: str, first: int, last: int, say: Callable[[str], None] = lambda _: None) -> None:
    """Store the people with the numbers from `first` to before `last`, and tell `say` how far it has come."""
    usual = {"turns": TURNS, "per": TURNS_PER_CONVERSATION, "tasks": TASKS}
    if first == BUSY:
        _store(superuser_url, {"first": 0, "last": 1, "turns": LONG // 2, "per": LONG // 2, "tasks": LONG})
        first += 1
    for at in range(first, last, CHUNK):
        _store(superuser_url, {"first": at, "last": min(at + CHUNK, last), **usual})
        say(f"{min(at + CHUNK, last):,} people are stored")
    with psycopg.connect(superuser_url, autocommit=True) as database:
        database.execute("vacuum (analyze)")


def _store(superuser_url: str, values: dict[str, int]) -> None:
    def run(statement: str) -> None:
        with psycopg.connect(superuser_url, autocommit=True) as database:
            database.execute("set session_replication_role = replica")  # no foreign key is asked for: all are right
            database.execute(statement.encode(), values)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, sorted(_STORE.values(), key=len)))
