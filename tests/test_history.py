"""What the model reads of earlier turns: whole, bounded, and the same from its start for as long as can be."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import event

from chat.model_input import build_input
from taskchat.conversations import turns as conversations
from taskchat.conversations.history import CHARACTERS_PER_TOKEN, MAX_HISTORY_TURNS, Turn
from taskchat.conversations.turns import Begun, Request
from taskchat.database.transaction import Database

Rows = psycopg.Connection[dict[str, Any]]
BUDGET = 4_000
NOW = Turn(uuid4(), 0, "now", datetime.now(UTC), None)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database of its own."""
    database = Database(lambda: database_url)
    yield database
    database.close()


class Talk:
    """A conversation that is made without a model: only what is stored and read counts here."""

    def __init__(self, database: Database, budget: int = BUDGET) -> None:
        self.database = database
        self.budget = budget
        self.user_id = uuid4().hex
        self.id: UUID | None = None

    def begin(self, message: str) -> Begun:
        """Begin a turn, and leave it running."""
        with self.database.transaction(self.user_id) as session:
            begun = conversations.begin(session, self.user_id, uuid4(), Request(message, self.id), self.budget)
        assert isinstance(begun, Begun)
        self.id = begun.lease.conversation_id
        return begun

    def turn(self, message: str, reply: str = "Done.") -> Begun:
        """A whole turn."""
        begun = self.begin(message)
        with self.database.transaction(self.user_id) as session:
            conversations.finish(session, begun, reply, {})
        return begun

    def interrupt(self, message: str) -> Begun:
        """A turn that gets no reply."""
        begun = self.begin(message)
        with self.database.transaction(self.user_id) as session:
            begun.lease.release(session)
        return begun

    def record(self, begun: Begun, rows: Rows, result: dict[str, Any]) -> None:
        """Put a call of the turn on record."""
        rows.execute(
            "insert into tool_call (user_id, turn_id, call_id, position, conversation_id, door, tool, arguments,"
            " outcome, result, duration_ms) values (%s, %s, %s, 0, %s, 'chat', 'list_tasks', '{}', 'ok', %s, 1)",
            [self.user_id, begun.turn.turn_id, uuid4().hex, begun.lease.conversation_id, json.dumps(result)],
        )


def test_it_holds_whole_turns_in_order(database: Database) -> None:
    """Message and reply, oldest first."""
    talk = Talk(database)
    for number in range(3):
        talk.turn(f"message {number}", f"reply {number}")
    history = talk.begin("now").history
    assert [(turn.message, turn.reply) for turn in history] == [(f"message {n}", f"reply {n}") for n in range(3)]


def test_an_interrupted_turn_stays_readable(database: Database, rows: Rows) -> None:
    """Its message and its calls are there, each call with its result, and there is no reply."""
    talk = Talk(database)
    begun = talk.interrupt("cut off")
    talk.record(begun, rows, {"tasks": []})
    (turn,) = talk.begin("now").history
    assert (turn.message, turn.reply, len(turn.calls)) == ("cut off", None, 1)
    kinds = [item.get("type", item.get("role")) for item in build_input([turn], turn)[:3]]
    assert kinds == ["user", "function_call", "function_call_output"]


def test_it_stays_within_the_budget(database: Database) -> None:
    """However long the conversation and its messages."""
    talk = Talk(database)
    for number in range(60):
        begun = talk.turn(f"{number} " + "x" * 900, "y" * 900)
        assert sum(turn.tokens for turn in begun.history) <= BUDGET


def test_its_start_moves_rarely_and_far(database: Database) -> None:
    """Over 200 turns the model nearly always reads what it read before, and then something after it."""
    talk = Talk(database, budget=100_000)
    shown = [build_input(talk.turn(f"message {number}").history, NOW)[:-1] for number in range(200)]
    moves = [later[: len(earlier)] != earlier for earlier, later in pairwise(shown)]
    assert sum(moves) == (200 - MAX_HISTORY_TURNS) // (MAX_HISTORY_TURNS - MAX_HISTORY_TURNS // 2)
    assert max(map(len, shown)) == 2 * MAX_HISTORY_TURNS


def test_a_turn_larger_than_its_share_is_shortened(database: Database, rows: Rows) -> None:
    """Neither dropped nor sent whole; its message stays whole; and it is cut to the same bytes each time."""
    talk = Talk(database)
    begun = talk.turn("list everything", "z" * 50_000)
    talk.record(begun, rows, {"tasks": [{"title": "x" * 190}] * 300})
    first, second = talk.interrupt("one").history, talk.interrupt("two").history
    assert first[0].message == "list everything"
    assert 0 < first[0].tokens <= BUDGET // 2
    assert first[0] == second[0]


@pytest.mark.parametrize(
    "letter", ["x", "ж", "漢", "🥛", '"', "\n", "<"], ids=["ascii", "cyrillic", "cjk", "emoji", "quote", "line", "tag"]
)
@pytest.mark.parametrize("budget", [500, BUDGET])
def test_the_last_turn_is_always_shown(database: Database, rows: Rows, letter: str, budget: int) -> None:
    """Whatever script it is written in, and however much of it there is."""
    talk = Talk(database, budget)
    talk.turn("before")
    begun = talk.turn(f"a{letter * 3998}b", letter * 5000)
    talk.record(begun, rows, {"tasks": [{"title": letter * 200}] * 50})
    history = talk.begin("now").history
    assert history
    assert history[-1].turn_id == begun.turn.turn_id
    assert history[-1].message.startswith("a")
    assert history[-1].reply
    assert sum(turn.tokens for turn in history) <= budget
    assert sent(history) <= budget * CHARACTERS_PER_TOKEN


@pytest.mark.parametrize("letter", ["x", "<", '"'], ids=["ascii", "tag", "quote"])
def test_the_budget_is_of_what_is_sent(database: Database, rows: Rows, letter: str) -> None:
    """Letters that travel in a longer spelling count as long as that."""
    talk = Talk(database)
    for number in range(12):
        talk.record(talk.turn(f"message {number}"), rows, {"tasks": [{"title": letter * 1_000}]})
        assert sent(talk.begin("now").history) <= BUDGET * CHARACTERS_PER_TOKEN
        rows.execute("update conversation set lease_until = null where user_id = %s", [talk.user_id])


def sent(turns: list[Turn]) -> int:
    """Characters that the model is sent of these turns: what was said, called and told, without what frames it."""
    told = [item.get("content") or item.get("output") or item["arguments"] for item in build_input(turns, NOW)]
    frames = sum(len("[context: Wednesday 2026-01-01 12:00, UTC]\n") + len("<tool_data></tool_data>") for _ in told)
    return sum(map(len, told)) - frames


def test_a_long_conversation_opens_like_a_short_one(database: Database, rows: Rows) -> None:
    """Of 5,000 messages no more rows are read than of a conversation as long as the history may be."""
    talk = Talk(database)
    talk.turn("first")
    rows.execute(
        "insert into message (user_id, conversation_id, position, turn_id, role, content)"
        " select %s, %s, n, md5((n / 2)::text || %s)::uuid, case n %% 2 when 0 then 'user' else 'assistant' end, 'x'"
        " from generate_series(2, 5001) n",
        [talk.user_id, talk.id, talk.user_id],
    )
    rows.execute("update conversation set next_position = 5002 where user_id = %s", [talk.user_id])
    read: list[int] = []
    event.listen(database.engine, "after_cursor_execute", lambda _c, cursor, *_: read.append(cursor.rowcount))
    history = talk.turn("now").history
    assert len(history) == MAX_HISTORY_TURNS // 2
    assert max(read) <= 4 * MAX_HISTORY_TURNS
    read.clear()
    talk.turn("and now")
    assert max(read) <= MAX_HISTORY_TURNS + 2


def test_a_turn_taken_up_late_reads_only_what_was_before_it(database: Database) -> None:
    """A turn that was interrupted and is resumed after others does not see its own future."""
    talk = Talk(database)
    talk.turn("before")
    begun = talk.interrupt("cut off")
    talk.turn("after")
    with database.transaction(talk.user_id) as session:
        again = conversations.begin(session, talk.user_id, begun.turn.turn_id, Request("cut off", talk.id), talk.budget)
        assert isinstance(again, Begun)
        conversations.finish(session, again, "late", {})
    assert [turn.message for turn in again.history] == ["before"]
    now = talk.begin("now")
    assert now.turn.position == 6  # of nought: the one that was taken up again has kept its place, and takes no other
    assert [(turn.message, turn.reply) for turn in now.history] == [
        ("before", "Done."),
        ("cut off", "late"),
        ("after", "Done."),
    ]
