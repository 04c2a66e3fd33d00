"""Every statement of a turn finds its rows by the owner's index, and reads no more than it needs.

The plans are those that Postgres executed: under the runtime role, with row-level security, among enough rows that the
planner prefers an index. `bench/growth.py` checks the same among five million messages.
"""

import importlib
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from chat.app import process
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from taskchat.conversations import turns as conversations
from taskchat.conversations.lease import Lease
from taskchat.conversations.turns import Begun, Request
from taskchat.errors import TooManyRequests
from taskchat.limits import Limits
from taskchat.personal_data.erasure import BATCH
from taskchat.personal_data.export import MAX_ROWS
from taskchat.personal_data.tables import personal_tables
from taskchat.toolcalls.models import ToolCall
from taskchat.toolcalls.record import UnsettledCall
from testing import people, plans
from testing.plans import Plan, Recorder
from tests import personal_data
from tests.conftest import Person
from tests.domain import example
from tests.large_tables import PEOPLE, Executed, faults, indexes, named
from tests.test_mcp_endpoint import McpClient

PACKAGE = example.toolset.tools[0].__module__.rpartition(".")[0]

INDEXES = {
    "turns._CREATE_CONVERSATION": set(),
    "lease.ACQUIRE_LEASE": {"conversation_pkey", "message_user_id_turn_id_role_key"},
    "lease.LOCK_CONVERSATION": {"conversation_pkey"},
    "lease._REMAINING_LEASE": {"conversation_pkey"},
    "lease.LOCK_REMAINING": {"conversation_pkey"},
    "lease.HOLD_LEASE": {"conversation_pkey"},
    "lease.RENEW_LEASE": {"conversation_pkey"},
    "lease.RELEASE_LEASE": {"conversation_pkey"},
    "history._MOVE_START": {"conversation_pkey"},
    "turns._STORE_MESSAGE": {"conversation_pkey"},
    "turns._RELEASE_AND_STORE_REPLY": {"conversation_pkey"},
    "history.MESSAGES_OF_TURN": {"message_user_id_turn_id_role_key"},
    "history.EARLIER_MESSAGES": {"message_pkey", "conversation_pkey", "message_user_id_turn_id_role_key"},
    "history.CALLS_SHOWN": {
        "tool_call_pkey",
        "message_pkey",
        "conversation_pkey",
        "message_user_id_turn_id_role_key",
    },
    "history.CALLS_OF_TURN": {"tool_call_pkey"},
    "reading._PAGE": {"conversation_activity_idx"},
    "reading._CONVERSATION_WITH_MESSAGES": {"conversation_pkey", "message_pkey"},
    "reading._CALLS_ON_PAGE": {"message_pkey", "tool_call_pkey"},
    "reading._RENAME": {"conversation_pkey"},
    "running._RUNNING_TURN": {"conversation_pkey"},
    "deletion._DELETE": {"conversation_pkey", "message_pkey", "tool_call_pkey"},
    "record.STORE_RECORD": set(),
    "record._STORE_RECORD_ONCE": set(),
    "record._READ_RECORD": {"tool_call_pkey"},
    "limits._SPEND": {"allowance_pkey"},
    "limits._RECORD": {"allowance_pkey"},
    "limits._REFUSED_FOR": {"allowance_pkey"},
    "foreign key": {"conversation_pkey", "message_pkey"},
}
"""The indexes of each statement. An insert that names no conflict needs none."""

MAY_ALSO_USE = {"reading._PAGE": {"conversation_pkey"}}
"""Indexes that cost the same for a person with a few rows. A test of its own reads a long list."""

DOMAIN = {name for name, _ in plans.statements_of(importlib.import_module(PACKAGE))} | {f"update {example.table}"}
"""The domain's statements. Its own tests know their indexes."""

NO_PLAN = {
    "transaction.SET_USER": "touches no table",
    "models.POSITION_OF_TURN": "is part of the statements that begin a turn",
    "reading._NEWEST_MESSAGES": "is part of the statements that read a conversation",
    "deletion._TURNS": "is part of the statement that deletes",
    "history._CALLS_OF_PERSON": "is what those that read calls are built upon",
    "types.NOW": "is part of a table's definition",
    "erasure._END_LEASES": "reads all conversations of its owner: see TestExportAndErasure",
}


BLOCKS_PER_ROW = 5
"""Blocks of tables and indexes that an export may look at for each row of a page, in all tables together."""


@pytest.fixture(scope="module")
def database_url(grown: Postgres, recorder: Recorder) -> str:
    """Give that server's URL."""
    return grown.app_url


def use_each_tool(person: Person, conversation_id: str, standin: StandIn) -> None:
    """Add a row, then list, change, rename and delete in one turn of the conversation."""
    added = person.say(example.add("buy milk"), conversation_id).json["tool_calls"][0]["result"]["id"]
    row = [example.call_change(added), example.call_rename(added, "buy oats"), example.call_delete(added)]
    standin.fault("call", calls=[example.call_list(), *row], match="hello")
    made = person.say("hello", conversation_id).json["tool_calls"]
    assert [call["outcome"] for call in made] == ["ok"] * 4


def begin_and_repeat(person: Person, standin: StandIn) -> None:
    """Begin a conversation, repeat its request, and resume a turn that failed after a call."""
    for number in range(2):
        answer = person.say(example.add("buy bread"), key="bread")
        assert (answer.status, answer.headers.get("idempotent-replayed")) == (200, "true" if number else None)
    standin.fault("server_error", match="eggs", after_calls=1, times=None)
    assert person.say(example.add("buy eggs"), key="eggs").status == 502
    standin.reset()
    assert person.say(example.add("buy eggs"), key="eggs").status == 200


def meet_a_running_turn(person: Person, conversation_id: str, superuser: psycopg.Connection[Any]) -> None:
    """Send a message to a conversation in which another turn runs."""
    lease = "update conversation set lease_until = now() + %s * interval '1 hour' where user_id = %s and id = %s"
    superuser.execute(lease, [1, person.id, conversation_id])
    assert person.say(example.add("buy milk"), conversation_id).status == 409
    superuser.execute(lease, [-1, person.id, conversation_id])


def begin_again(person: Person, conversation_id: str) -> None:
    """Begin a turn again after a lost answer, settle a call in the same way, and renew the lease."""
    request, turn_id, own = Request(example.add("buy milk"), UUID(conversation_id)), uuid4(), list[Lease]()
    for _ in range(2):
        with process.database.transaction(person.id) as session:
            begun = conversations.begin(session, person.id, turn_id, request, history_tokens=100, own=own)
            assert isinstance(begun, Begun)
            own.append(begun.lease)
    with process.database.transaction(person.id) as session:
        UnsettledCall(record_of_call(person, turn_id), {}).settle(session)
        begun.lease.extended().renew(session).release(session)


def record_of_call(person: Person, turn_id: UUID) -> dict[str, Any]:
    """Return the record of a call."""
    call = ToolCall(
        user_id=person.id,
        turn_id=turn_id,
        call_id="call",
        position=0,
        door="chat",
        tool=example.add_tool,
        arguments={},
        outcome="ok",
        result={},
        duration_ms=1.0,
    )
    return call.model_dump(exclude_unset=True)


def call_over_mcp(person: Person) -> None:
    """Add a row and list as an MCP client."""
    client = McpClient(person.mcp_token)
    for call in (example.call_add("buy salt"), example.call_list()):
        client.do(call["name"], **call["arguments"])


def use_up_an_allowance(person: Person) -> None:
    """Ask for more requests than are left, and record the tokens of a model call."""
    allowance = Limits("chat", burst=1, per_minute=1, daily_model_tokens=10**6)
    with process.database.transaction(person.id) as session:
        allowance.spend(session, person.id)
        allowance.record(session, person.id, 10)
    with pytest.raises(TooManyRequests), process.database.transaction(person.id) as session:
        allowance.spend(session, person.id)


def read_and_rename(person: Person, conversation_id: str) -> None:
    """Read all lists from the beginning and from later pages, and rename."""
    one = f"/conversations/{conversation_id}"
    for path in ("/conversations", one):
        later = person.get(path, limit=1).json["next_cursor"]
        for place in ({}, {"cursor": later} if later else {}):
            assert person.get(path, limit=100, **place).status == 200
    assert person.call("PATCH", one, {"title": "Groceries"}).status == 200


def delete_one(person: Person) -> None:
    """Delete a conversation among those of a person with a few."""
    found = person.get("/conversations", limit=100).json["conversations"]
    assert person.call("DELETE", f"/conversations/{found[-1]['id']}").status == 204


@pytest.fixture
def executed(
    usual: Person, busy: Person, standin: StandIn, recorder: Recorder, superuser: psycopg.Connection[Any]
) -> Executed:
    """Do all that a user can make the program do, and return the plans by the names of their statements."""
    here = str(people.conversation_id(PEOPLE // 2))
    recorder.skip()
    with plans.naming() as names:
        use_each_tool(usual, here, standin)
        use_each_tool(busy, str(people.conversation_id(people.BUSY)), standin)  # its history is cut
        begin_and_repeat(usual, standin)
        meet_a_running_turn(usual, here, superuser)
        begin_again(usual, here)
        call_over_mcp(busy)
        use_up_an_allowance(usual)
        read_and_rename(usual, here)
        read_and_rename(busy, str(people.conversation_id(people.BUSY)))
        assert usual.get(f"/chat/{here}/stream").status == 204
        delete_one(usual)
    return named(recorder.read(), names)


def test_every_statement_stays_on_its_index(executed: Executed, recorder: Recorder) -> None:
    """The index begins with the owner, and the statement reads about as many rows as it returns."""
    assert faults(executed, recorder) == {}
    found = {name: used - MAY_ALSO_USE.get(name, set()) for name, used in indexes(executed).items()}
    assert {name: used for name, used in found.items() if name not in DOMAIN} == INDEXES


def test_a_long_list_is_read_in_its_order(alice: Person, grown: Postgres, superuser: psycopg.Connection[Any]) -> None:
    """Each page reads its own rows only, from the beginning, the middle and near the end."""
    superuser.execute(
        "insert into conversation (user_id, id, title, updated_at)"
        " select case when n %% 500 = 0 then %s else md5('user' || n %% 20000) end, gen_random_uuid(), 'a',"
        " now() - n * interval '1 minute' from generate_series(1, 100000) n order by random()",
        [alice.id],
    )
    superuser.execute("analyze conversation")
    recorder, place = Recorder(grown), dict[str, str]()
    with plans.naming() as names:
        for _ in range(10):
            place = {"cursor": alice.get("/conversations", limit=20, **place).json["next_cursor"]}
    executed = named(recorder.read(), names)
    assert place == {"cursor": None}
    assert (faults(executed, recorder), len(executed["reading._PAGE"])) == ({}, 10)
    assert indexes(executed)["reading._PAGE"] == {"conversation_activity_idx"}


def test_every_statement_is_known() -> None:
    """A new statement must run here, or be listed with the reason why it has no plan."""
    assert set(plans.STATEMENTS) - DOMAIN == {name for name in {*INDEXES, *NO_PLAN} if "." in name}


def test_a_statement_that_leaves_its_index_is_noticed(
    busy: Person, grown: Postgres, superuser: psycopg.Connection[Any]
) -> None:
    """The check can fail: with the owner last in a key, it names exactly the statements that would get slower."""
    key = "message_user_id_turn_id_role_key"
    change = f"alter table message drop constraint {key}, add constraint {key} unique"
    superuser.execute(f"{change} (turn_id, role, user_id)".encode())
    try:
        recorder = Recorder(grown)
        with plans.naming() as names:
            assert busy.say(example.add("buy milk")).status == 200
        assert set(faults(named(recorder.read(), names), recorder)) == {
            "history.MESSAGES_OF_TURN",
            "lease.ACQUIRE_LEASE",
            "history.EARLIER_MESSAGES",
            "history.CALLS_SHOWN",
        }
    finally:
        superuser.execute(f"{change} (user_id, turn_id, role)".encode())


def test_deleting_conversations_finds_their_messages_by_index(grown: Postgres, recorder: Recorder) -> None:
    """An operator may delete thousands. No statement looks for tool calls: they refer to no conversation."""
    options = " ".join(f"-c {name}={value}" for name, value in plans.SETTINGS.items())
    recorder.skip()
    with psycopg.connect(grown.superuser_url, options=options, autocommit=True) as operator:
        operator.execute("delete from conversation where user_id = %s", [people.user_id(1)])
    deleted = recorder.read()
    used = set().union(*(plan.indexes for plan in deleted))
    assert {"message_pkey"} < used <= {"message_pkey", "conversation_pkey", "conversation_activity_idx"}
    faults = {fault for plan in deleted for fault in plan.faults(recorder.first_columns)}
    assert {fault for fault in faults if "discarded" not in fault} == set()


class TestExportAndErasure:
    """They read and erase by the person's key, a bounded number of rows at a time, also among the rows of many."""

    FIRST = {table.name: table.primary_key.columns[0].name for table in personal_tables()}  # noqa: RUF012  (constant)

    def plans_of(self, recorder: Recorder) -> list[Plan]:
        """Return the plans since the last read, after a check that each finds its rows by the owner."""
        found = recorder.read()
        for plan in found:
            assert not {"Seq Scan", "Sample Scan", "Tid Range Scan"} & set(plan.scans), plan.root
            assert {recorder.first_columns[index] for index in plan.indexes} <= {"user_id"}
        return found

    def test_each_page_of_an_export_reads_a_bounded_part(self, busy: Person, recorder: Recorder) -> None:
        """In one statement. To sort the last thousands of a person's rows costs Postgres less than to walk an index."""
        recorder.skip()
        made = list(personal_data.pages(busy))
        plans = [plan for plan in self.plans_of(recorder) if "row_to_json" in plan.text]
        assert len(made) == len(plans) > 10
        for plan in plans:
            assert plan.pages <= BLOCKS_PER_ROW * MAX_ROWS

    def test_each_batch_of_an_erasure_reads_its_rows(
        self, superuser: psycopg.Connection[Any], environment: None, issuer: Issuer, recorder: Recorder
    ) -> None:
        """It finds them by the owner, and deletes them in the same statement."""
        person = Person(people.user_id(3), issuer)
        recorder.skip()
        assert personal_data.erase(person).status == 204
        plans = [plan for plan in self.plans_of(recorder) if plan.text.startswith("WITH found")]
        assert len(plans) == 2 * len(self.FIRST)
        for plan in plans:
            assert plan.most_rows_read <= BATCH
