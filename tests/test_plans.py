"""Every statement of a turn finds its rows by the owner's index, and reads no more than it needs.

The plans are those that Postgres executed: under the runtime role, with row-level security, among enough rows that an
index is worth its while to the planner. `bench/growth.py` asks the same of five million messages.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from bench import people, plans
from bench.plans import Plan, Recorder
from chat.app import process
from dev import postgres
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from taskchat.conversations import turns as conversations
from taskchat.conversations.lease import Lease
from taskchat.conversations.turns import Begun, Request
from taskchat.errors import TooManyRequests
from taskchat.limits import Limits
from taskchat.toolcalls.models import ToolCall
from taskchat.toolcalls.record import UnsettledCall
from tests.conftest import Person, migrate
from tests.test_mcp_door import McpClient

PEOPLE = 401
"""Twenty thousand messages, and the busy person's ten thousand."""

INDEXES = {
    "turns._CREATE_CONVERSATION": set(),
    "lease.ACQUIRE_LEASE": {"conversation_pkey", "message_user_id_turn_id_role_key"},
    "lease.LOCK_CONVERSATION": {"conversation_pkey"},
    "lease._REMAINING_LEASE": {"conversation_pkey"},
    "lease.HOLD_LEASE": {"conversation_pkey"},
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
    "record.STORE_RECORD": set(),
    "record._STORE_RECORD_ONCE": set(),
    "record._READ_RECORD": {"tool_call_pkey"},
    "queries._INSERT": set(),
    "queries._PAGE": {"task_pkey"},
    "queries._PAGE_BY_STATE": {"task_completed_idx"},
    "queries._DELETE": {"task_pkey"},
    "update task": {"task_pkey"},
    "limits._SPEND": {"allowance_pkey"},
    "limits._RECORD": {"allowance_pkey"},
    "limits._REFUSED_FOR": {"allowance_pkey"},
    "foreign key": {"conversation_pkey"},
}
"""The index each statement looks its rows up in; an insert that names no conflict needs none."""

NO_PLAN = {
    "transaction.SET_USER": "touches no table",
    "history._SAID": "is part of the statements that begin a turn",
    "history._CALLS_OF_PERSON": "is what those that read calls are built upon",
    "types.NOW": "is part of a table's definition",
    "queries._UPDATE": "is what `update task` is built upon, column by column",
}


@pytest.fixture(scope="module")
def grown() -> Iterator[Postgres]:
    """A server of its own, full of people."""
    with postgres.temporary() as running:
        done = migrate(running.owner_url, running.app_url)
        assert done.returncode == 0, done.stderr
        people.store(running.superuser_url, people.BUSY, PEOPLE)
        yield running


@pytest.fixture(scope="module")
def superuser(grown: Postgres) -> Iterator[psycopg.Connection[Any]]:
    """That server's superuser."""
    with psycopg.connect(grown.superuser_url, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="module")
def recorder(grown: Postgres) -> Recorder:
    """What is executed there, from now on."""
    return Recorder(grown)


@pytest.fixture(scope="module")
def database_url(grown: Postgres, recorder: Recorder) -> str:
    """Where the environment of each test leads to."""
    return grown.app_url


@pytest.fixture
def busy(environment: None, issuer: Issuer) -> Person:
    """Who has ten thousand messages in one conversation, and as many tasks."""
    return Person(people.user_id(people.BUSY), issuer)


@pytest.fixture
def usual(environment: None, issuer: Issuer) -> Person:
    """Somebody with a few conversations and tasks."""
    return Person(people.user_id(PEOPLE // 2), issuer)


def use_every_tool(person: Person, conversation_id: str) -> None:
    """In one conversation: each tool once or more, on a task of the turns themselves."""
    task = person.say("Add buy milk", conversation_id).json["tool_calls"][0]["result"]["id"]
    for message in (f"Finish {task}", f"Rename {task} to buy oat milk", f"Describe {task} as soon", f"Delete {task}"):
        assert person.say(message, conversation_id).json["tool_calls"][0]["outcome"] == "ok"


def begin_and_repeat(person: Person, standin: StandIn) -> None:
    """A new conversation, its answer asked for again, and a turn that is interrupted after a call and taken up."""
    for number in range(2):
        answer = person.say("Add buy bread", key="bread")
        assert (answer.status, answer.headers.get("idempotent-replayed")) == (200, "true" if number else None)
    standin.fault("server_error", match="eggs", after_calls=1, times=None)
    assert person.say("Add buy eggs", key="eggs").status == 502
    standin.reset()
    assert person.say("Add buy eggs", key="eggs").status == 200


def meet_a_running_turn(person: Person, conversation_id: str, superuser: psycopg.Connection[Any]) -> None:
    """Speak into a conversation in which another turn runs."""
    lease = "update conversation set lease_until = now() + %s * interval '1 hour' where user_id = %s and id = %s"
    superuser.execute(lease, [1, person.id, conversation_id])
    assert person.say("Add buy milk", conversation_id).status == 409
    superuser.execute(lease, [-1, person.id, conversation_id])


def begin_again(person: Person, conversation_id: str) -> None:
    """Take a turn up whose beginning was not answered, and settle a call that was not answered either."""
    request, turn_id, own = Request("Add buy milk", UUID(conversation_id)), uuid4(), list[Lease]()
    for _ in range(2):
        with process.database.transaction(person.id) as session:
            begun = conversations.begin(session, person.id, turn_id, request, history_tokens=100, own=own)
            assert isinstance(begun, Begun)
            own.append(begun.lease)
    with process.database.transaction(person.id) as session:
        UnsettledCall(recorded(person, turn_id), {}).settle(session)
        begun.lease.release(session)


def recorded(person: Person, turn_id: UUID) -> dict[str, Any]:
    """What is kept of a call, if it is kept."""
    call = ToolCall(
        user_id=person.id,
        turn_id=turn_id,
        call_id="call",
        position=0,
        door="chat",
        tool="add_task",
        arguments={},
        outcome="ok",
        result={},
        duration_ms=1.0,
    )
    return call.model_dump(exclude_unset=True)


def page_from_outside(person: Person) -> None:
    """List and add through the MCP door, from the middle of the list too."""
    client = McpClient(person.mcp_token)
    task = client.do("add_task", title="buy salt")["id"]
    for status in ("all", "pending", "completed"):
        for cursor in (None, task // 2, task - 100):
            client.do("list_tasks", status=status, cursor=cursor)


def use_up_an_allowance(person: Person) -> None:
    """Ask for more than there is, and count what a model took."""
    allowance = Limits("chat", burst=1, per_minute=1, daily_model_tokens=10**6)
    with process.database.transaction(person.id) as session:
        allowance.record(session, person.id, 10)
        allowance.spend(session, person.id)
    with pytest.raises(TooManyRequests), process.database.transaction(person.id) as session:
        allowance.spend(session, person.id)


Executed = dict[str, list[Plan]]


@pytest.fixture
def executed(
    usual: Person, busy: Person, standin: StandIn, recorder: Recorder, superuser: psycopg.Connection[Any]
) -> Executed:
    """All that a person can make the program do, by the name of each statement it led to."""
    here = str(people.conversation_id(PEOPLE // 2))
    recorder.skip()
    with plans.naming() as names:
        use_every_tool(usual, here)
        use_every_tool(busy, str(people.conversation_id(people.BUSY)))  # its history is cut
        begin_and_repeat(usual, standin)
        meet_a_running_turn(usual, here, superuser)
        begin_again(usual, here)
        page_from_outside(busy)
        use_up_an_allowance(usual)
    return named(recorder.read(), names)


def named(found: list[Plan], names: dict[str, str]) -> Executed:
    """The plans by the names of their statements. What foreign keys look up is Postgres's own."""
    result: Executed = defaultdict(list)
    for plan in found:
        own = plan.text.startswith("SELECT 1 FROM ONLY")
        result["foreign key" if own else names.get(plan.text, plan.text)].append(plan)
    return result


def faults(executed: Executed, recorder: Recorder) -> dict[str, list[str]]:
    """What is wrong with the plans, by statement."""
    found = {
        name: [f for plan in plans for f in plan.faults(recorder.first_columns)] for name, plans in executed.items()
    }
    return {name: faults for name, faults in found.items() if faults}


def test_every_statement_stays_on_its_index(executed: Executed, recorder: Recorder) -> None:
    """One that begins with the owner, and it reads about the rows it gives: a bounded number of them."""
    assert faults(executed, recorder) == {}
    used = {name: set().union(*(plan.indexes for plan in plans)) for name, plans in executed.items()}
    assert used == INDEXES


def test_every_statement_is_known() -> None:
    """A new one must be executed here, or say why it has no plan."""
    assert set(plans.STATEMENTS) == {name for name in {*INDEXES, *NO_PLAN} if "." in name}


BROKEN = {
    "an index is gone": (
        "drop index task_completed_idx",
        "create index task_completed_idx on task (user_id, completed, id)",
        {"queries._PAGE_BY_STATE"},
    ),
    "the owner comes last in a key": (
        "alter table message drop constraint message_user_id_turn_id_role_key, add constraint"
        " message_user_id_turn_id_role_key unique (turn_id, role, user_id)",
        "alter table message drop constraint message_user_id_turn_id_role_key, add constraint"
        " message_user_id_turn_id_role_key unique (user_id, turn_id, role)",
        {"history.MESSAGES_OF_TURN", "lease.ACQUIRE_LEASE", "history.EARLIER_MESSAGES", "history.CALLS_SHOWN"},
    ),
    "the primary key is gone": (
        "alter table task drop constraint task_pkey",
        "alter table task add primary key (user_id, id)",
        {"queries._PAGE"},
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_statement_that_leaves_its_index_is_noticed(
    how: str, busy: Person, grown: Postgres, superuser: psycopg.Connection[Any]
) -> None:
    """The check itself can fail: it names the statement that would get slower, and none else."""
    breaking, mending, expected = BROKEN[how]
    superuser.execute(breaking.encode())
    try:
        recorder = Recorder(grown)
        with plans.naming() as names:
            assert busy.say("Add buy milk").status == 200
            page_from_outside(busy)
        assert set(faults(named(recorder.read(), names), recorder)) == expected
    finally:
        superuser.execute(mending.encode())


def test_what_belongs_to_a_deleted_conversation_is_found_by_index(grown: Postgres, recorder: Recorder) -> None:
    """Its messages, and its calls among those of its owner: an operator may delete thousands."""
    options = " ".join(f"-c {name}={value}" for name, value in plans.SETTINGS.items())
    recorder.skip()
    with psycopg.connect(grown.superuser_url, options=options, autocommit=True) as operator:
        operator.execute("delete from conversation where user_id = %s", [people.user_id(1)])
    deleted = recorder.read()
    assert set().union(*(plan.indexes for plan in deleted)) == {"conversation_pkey", "message_pkey", "tool_call_pkey"}
    faults = {fault for plan in deleted for fault in plan.faults(recorder.first_columns)}
    assert {fault for fault in faults if "thrown away" not in fault} == set()
