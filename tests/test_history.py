"""Test the history that the model reads: whole turns, within a budget, with a start that moves rarely."""

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
from tests.domain import example

Rows = psycopg.Connection[dict[str, Any]]
BUDGET = 4_000
NOW = Turn(uuid4(), 0, "now", datetime.now(UTC), None)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Give a database, as one execution environment has it."""
    database = Database(lambda: database_url)
    yield database
    database.close()


class Talk:
    """A conversation without a model. Only its stored rows count here."""

    def __init__(self, database: Database, budget: int = BUDGET) -> None:
        self.database = database
        self.budget = budget
        self.user_id = uuid4().hex
        self.id: UUID | None = None

    def begin(self, message: str) -> Begun:
        """Begin a turn and leave it running."""
        with self.database.transaction(self.user_id) as session:
            begun = conversations.begin(session, self.user_id, uuid4(), Request(message, self.id), self.budget)
        assert isinstance(begun, Begun)
        self.id = begun.lease.conversation_id
        return begun

    def turn(self, message: str, reply: str = "Done.") -> Begun:
        """Begin and finish a turn."""
        begun = self.begin(message)
        with self.database.transaction(self.user_id) as session:
            conversations.finish(session, begun.lease, begun.turn, reply, {})
        return begun

    def interrupt(self, message: str) -> Begun:
        """Begin a turn and end it without a reply."""
        begun = self.begin(message)
        with self.database.transaction(self.user_id) as session:
            begun.lease.release(session)
        return begun

    def record(self, begun: Begun, rows: Rows, result: dict[str, Any]) -> None:
        """Record a call of the turn."""
        rows.execute(
            "insert into tool_call (user_id, turn_id, call_id, position, conversation_id, door, tool, arguments,"
            " outcome, result, duration_ms) values (%s, %s, %s, 0, %s, 'chat', %s, '{}', 'ok', %s, 1)",
            [
                *(self.user_id, begun.turn.turn_id, uuid4().hex, begun.lease.conversation_id),
                *(example.list_tool, json.dumps(result)),
            ],
        )


def listing(text: str, length: int) -> dict[str, Any]:
    """Return a result of the list tool with so many things."""
    return {example.page: [{example.text: text}] * length}


def test_it_holds_whole_turns_in_order(database: Database) -> None:
    """A turn is a message and a reply. The oldest comes first."""
    talk = Talk(database)
    for number in range(3):
        talk.turn(f"message {number}", f"reply {number}")
    history = talk.begin("now").history
    assert [(turn.message, turn.reply) for turn in history] == [(f"message {n}", f"reply {n}") for n in range(3)]


def test_an_interrupted_turn_stays_readable(database: Database, rows: Rows) -> None:
    """It holds the message and each call with its result, but no reply."""
    talk = Talk(database)
    begun = talk.interrupt("cut off")
    talk.record(begun, rows, listing("", 0))
    (turn,) = talk.begin("now").history
    assert (turn.message, turn.reply, len(turn.calls)) == ("cut off", None, 1)
    kinds = [item.get("type", item.get("role")) for item in build_input([turn], turn)[:3]]
    assert kinds == ["user", "function_call", "function_call_output"]


def test_it_stays_within_the_budget(database: Database) -> None:
    """The conversation and its messages may be of any length."""
    talk = Talk(database)
    for number in range(60):
        begun = talk.turn(f"{number} " + "x" * 900, "y" * 900)
        assert sum(turn.tokens for turn in begun.history) <= BUDGET


def test_its_start_moves_rarely_and_in_large_steps(database: Database) -> None:
    """In most of 200 turns, the input begins with the whole input of the turn before."""
    talk = Talk(database, budget=100_000)
    shown = [build_input(talk.turn(f"message {number}").history, NOW)[:-1] for number in range(200)]
    moves = [later[: len(earlier)] != earlier for earlier, later in pairwise(shown)]
    assert sum(moves) == (200 - MAX_HISTORY_TURNS) // (MAX_HISTORY_TURNS - MAX_HISTORY_TURNS // 2)
    assert max(map(len, shown)) == 2 * MAX_HISTORY_TURNS


def test_a_turn_larger_than_its_share_is_shortened(database: Database, rows: Rows) -> None:
    """The turn is neither dropped nor sent whole. Its message stays whole, and each cut gives the same bytes."""
    talk = Talk(database)
    begun = talk.turn("list everything", "z" * 50_000)
    talk.record(begun, rows, listing("x" * 190, 300))
    first, second = talk.interrupt("one").history, talk.interrupt("two").history
    assert first[0].message == "list everything"
    assert 0 < first[0].tokens <= BUDGET // 2
    assert first[0] == second[0]


@pytest.mark.parametrize(
    "letter", ["x", "ж", "漢", "🥛", '"', "\n", "<"], ids=["ascii", "cyrillic", "cjk", "emoji", "quote", "line", "tag"]
)
@pytest.mark.parametrize("budget", [500, BUDGET])
def test_the_last_turn_is_always_shown(database: Database, rows: Rows, letter: str, budget: int) -> None:
    """It may be in any script and of any length."""
    talk = Talk(database, budget)
    talk.turn("before")
    begun = talk.turn(f"a{letter * 3998}b", letter * 5000)
    talk.record(begun, rows, listing(letter * 200, 50))
    history = talk.begin("now").history
    assert history
    assert history[-1].turn_id == begun.turn.turn_id
    assert history[-1].message.startswith("a")
    assert history[-1].reply
    assert sum(turn.tokens for turn in history) <= budget
    assert sent(history) <= budget * CHARACTERS_PER_TOKEN


@pytest.mark.parametrize("letter", ["x", "<", '"'], ids=["ascii", "tag", "quote"])
def test_the_budget_counts_the_sent_characters(database: Database, rows: Rows, letter: str) -> None:
    """A letter that is sent as an escape counts as long as the escape."""
    talk = Talk(database)
    for number in range(12):
        talk.record(talk.turn(f"message {number}"), rows, listing(letter * 1_000, 1))
        assert sent(talk.begin("now").history) <= BUDGET * CHARACTERS_PER_TOKEN
        rows.execute("update conversation set lease_until = null where user_id = %s", [talk.user_id])


def sent(turns: list[Turn]) -> int:
    """Return the number of characters that these turns send to the model, without the fixed text around them."""
    texts = [item.get("content") or item.get("output") or item["arguments"] for item in build_input(turns, NOW)]
    fixed = len("[context: Wednesday 2026-01-01 12:00, UTC]\n") + len("<tool_data></tool_data>")
    return sum(map(len, texts)) - fixed * len(texts)


def test_a_long_conversation_reads_as_many_rows_as_a_short_one(database: Database, rows: Rows) -> None:
    """Of 5,000 messages, Postgres reads no more rows than the longest history needs."""
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


def test_a_turn_that_is_resumed_late_reads_only_earlier_turns(database: Database) -> None:
    """Turns that came after it are not in its history."""
    talk = Talk(database)
    talk.turn("before")
    begun = talk.interrupt("cut off")
    talk.turn("after")
    with database.transaction(talk.user_id) as session:
        again = conversations.begin(session, talk.user_id, begun.turn.turn_id, Request("cut off", talk.id), talk.budget)
        assert isinstance(again, Begun)
        conversations.finish(session, again.lease, again.turn, "late", {})
    assert [turn.message for turn in again.history] == ["before"]
    now = talk.begin("now")
    assert now.turn.position == 6  # the resumed turn has kept its position, and takes no other
    assert [(turn.message, turn.reply) for turn in now.history] == [
        ("before", "Done."),
        ("cut off", "late"),
        ("after", "Done."),
    ]
