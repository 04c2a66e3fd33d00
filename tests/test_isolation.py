"""Each user reaches only their own rows. Each layer is tested with the other layer removed."""

import json
import random
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import text
from sqlmodel import SQLModel

import taskchat.conversations.models
import taskchat.limits  # noqa: F401  # with those before and the domain: fills the metadata
from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from taskchat.database.transaction import Database
from testing.callers import AUTH, RESOURCE, Caller
from testing.gateway import event
from tests import personal_data
from tests.conftest import ROOT, Person, databases, variables
from tests.domain import example
from tests.environments import Environment, Fleet, ForkServer
from tests.example_domain import Call, Rows
from tests.test_mcp_endpoint import McpClient

TABLES = sorted(name for name, table in SQLModel.metadata.tables.items() if "user_id" in table.columns)
OWNER_FILTER = re.compile(r"(?:\w+\.)?user_id = (%s(?:::\w+)?)")
PEOPLE = 20
TRANSACTIONS = 1_200


def about(statement: LiteralString, table: str) -> sql.Composed:
    """Return the statement with the table's name in its place."""
    return sql.SQL(statement).format(sql.Identifier(table))


@contextmanager
def owner_filters_removed(databases: list[Database]) -> Iterator[set[str]]:
    """Send every statement without its owner filter. Give the statements that had one, by verb and table."""
    removed: set[str] = set()

    def strip(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
        bare, count = OWNER_FILTER.subn(r"(\1 is not null)", statement)
        if count:
            found = re.search(r"\b(UPDATE|DELETE FROM|FROM) (\w+)", statement)
            assert found, statement
            removed.add(f"{found[1]} {found[2]}")
        assert not re.search(r"user_id\s*(=|in\b|is\b)", bare, re.IGNORECASE), f"a filter of another kind: {bare}"
        return bare, parameters

    for database in databases:
        sqlalchemy_event.listen(database.engine, "before_cursor_execute", strip, retval=True)
    try:
        yield removed
    finally:
        for database in databases:
            sqlalchemy_event.remove(database.engine, "before_cursor_execute", strip)


@contextmanager
def row_level_security_off(rows: Rows) -> Iterator[None]:
    """Turn off row-level security on every table."""
    for table in TABLES:
        rows.execute(about("alter table {} disable row level security", table))
    try:
        yield
    finally:
        for table in TABLES:
            rows.execute(about("alter table {} enable row level security", table))


def everything_of(rows: Rows, person: Person) -> dict[str, list[dict[str, Any]]]:
    """Return all rows of a user, by table."""
    return {
        table: rows.execute(
            about("select * from {} where user_id = %s order by 1, 2, 3", table), [person.id]
        ).fetchall()
        for table in TABLES
    }


LISTS = [
    path.removeprefix("/api/{user_id}")
    for path, methods in json.loads((ROOT / "docs" / "openapi.json").read_text())["paths"].items()
    if any(parameter["name"] == "cursor" for parameter in methods.get("get", {}).get("parameters", []))
    and "{conversation_id}" not in path
]
"""The routes that are read in pages, the domain's too, without a conversation's."""


def cursors_of(person: Person, conversation_id: str) -> list[str]:
    """Return the cursor of each place in all lists of a user."""
    found = []
    for path in [*LISTS, f"/conversations/{conversation_id}"]:
        page = person.get(path, limit=1).json
        assert page["next_cursor"], f"{path} has a single page"
        while page["next_cursor"]:
            found.append(page["next_cursor"])
            page = person.get(path, limit=1, cursor=found[-1]).json
    return found


@dataclass(frozen=True)
class Intruder:
    """A user who tries to reach another user's rows through both entry points."""

    person: Person
    thing: int
    """The id of the other user's thing."""
    conversation_id: str
    cursors: list[str]
    """The cursors of all lists of the other user."""

    def attack(self) -> list[str]:
        """Use every tool on the thing and return all answers."""
        say, mcp, thing = self.person.say, McpClient(self.person.mcp_token), str(self.thing)
        messages = (example.show(), example.change(thing), example.rename(thing, "stolen"), example.delete(thing))
        answers = [say(message).body for message in messages]
        intruding = say("what did I just say?", self.conversation_id)
        assert intruding.status == 404
        answers.append(intruding.body)
        answers += self.attack_conversation() + self.attack_lists()
        calls = example.call_change, partial(example.call_rename, text="stolen"), example.call_delete
        for call in (make(self.thing) for make in calls):
            result = mcp.call(call["name"], **call["arguments"])
            assert result["isError"], call
            answers.append(str(result))
        return [*answers, str(mcp.call(example.list_tool))]

    def attack_conversation(self) -> list[str]:
        """Read, rename and delete the conversation, and return all answers and the list."""
        path = f"/conversations/{self.conversation_id}"
        tries = [("GET", b""), ("PATCH", {"title": "stolen"}), ("DELETE", b"")]
        answers = [self.person.call(method, path, body) for method, body in tries]
        answers.append(self.person.get(path, cursor=self.cursors[-1]))
        assert [answer.status for answer in answers] == [404, 404, 404, 404]
        return [answer.body for answer in answers] + [self.person.get("/conversations").body]

    def attack_lists(self) -> list[str]:
        """Read each list from each place in the other user's lists, and return the pages."""
        answers = [self.person.get(path, cursor=cursor) for path in LISTS for cursor in self.cursors]
        assert {answer.status for answer in answers} == {200, 422}
        return [answer.body for answer in answers]


class TestOneLayerAlone:
    """Owner filters or row-level security: one of the two is enough."""

    @pytest.fixture
    def victim(self, alice: Person) -> Person:
        """Return a user with things, conversations and a turn with a key."""
        first = alice.say(example.add("secretplan"), key="k").json
        assert alice.say(example.add("secretplan"), first["conversation_id"]).status == 200
        assert alice.say(example.add("secretplan")).status == 200
        return alice

    @pytest.fixture
    def intruder(self, victim: Person, bob: Person, rows: Rows) -> Intruder:
        """Return another user, who knows every id."""
        assert bob.say(example.add("ownplan"), key="k").status == 200
        McpClient(bob.mcp_token).call(example.list_tool)  # over a connection that is made now
        thing, *_ = example.ids_of(rows, victim.id)
        conversation, _ = rows.execute(
            "select id::text from conversation where user_id = %s order by created_at", [victim.id]
        ).fetchall()
        return Intruder(bob, thing, conversation["id"], cursors_of(victim, conversation["id"]))

    def test_without_any_owner_filter_rows_are_safe(self, victim: Person, intruder: Intruder, rows: Rows) -> None:
        """Row-level security alone shows users their own rows and hides the others."""
        before = everything_of(rows, victim)
        with owner_filters_removed(databases()) as removed:
            answers = intruder.attack()
            assert intruder.person.say(example.add("ownplan"), key="k").headers["idempotent-replayed"] == "true"
            (own,) = intruder.person.get("/conversations", limit=100).json["conversations"][-1:]
            assert intruder.person.call("DELETE", f"/conversations/{own['id']}").status == 204
            assert personal_data.erase(intruder.person).status == 204
        assert removed >= {
            f"FROM {example.table}",
            f"UPDATE {example.table}",
            f"DELETE FROM {example.table}",  # noqa: S608  (compared, not run)
            "FROM message",
            "FROM tool_call",
            "UPDATE conversation",
            "FROM conversation",
            "FROM allowance",
            "UPDATE allowance",
            "DELETE FROM conversation",
        }
        assert "secretplan" not in str(answers)
        assert "ownplan" in answers[0]
        assert everything_of(rows, victim) == before

    def test_without_row_level_security_rows_are_safe(self, victim: Person, intruder: Intruder, rows: Rows) -> None:
        """The owner filters alone hide them, on a connection that is older than the change."""
        before = everything_of(rows, victim)
        with row_level_security_off(rows):
            answers = intruder.attack()
            assert personal_data.erase(intruder.person).status == 204
        assert "secretplan" not in str(answers)
        assert "ownplan" in answers[0]
        assert everything_of(rows, victim) == before
        assert personal_data.count(rows, intruder.person.id) == {}

    def test_without_both_layers_rows_are_not_safe(self, victim: Person, intruder: Intruder, rows: Rows) -> None:
        """So the two tests above do remove a layer."""
        with row_level_security_off(rows), owner_filters_removed(databases()):
            assert "secretplan" in intruder.person.say(example.change(str(intruder.thing))).body
            assert "secretplan" in str(intruder.attack_lists())


class TestNoUserSet:
    """Row-level security hides every row while no user is set."""

    @pytest.mark.parametrize("table", TABLES)
    @pytest.mark.parametrize("setting", [None, ""])
    def test_no_row_is_seen(self, server: Postgres, alice: Person, table: str, setting: str | None) -> None:
        """The setting is unset, or empty as a transaction leaves it behind."""
        alice.say(example.add("one"))
        with psycopg.connect(server.app_url) as connection:
            if setting is not None:
                connection.execute("select set_config('app.user_id', %s, true)", [setting])
            assert connection.execute(about("select count(*) from {}", table)).fetchone() == (0,)

    @pytest.mark.parametrize("table", TABLES)
    def test_each_table_forces_it(self, rows: Rows, table: str) -> None:
        """It binds the owner too, and every command."""
        (found,) = rows.execute(
            "select relrowsecurity and relforcerowsecurity as forced, (select array_agg(polcmd::text) from pg_policy"
            " where polrelid = pg_class.oid) as commands from pg_class where oid = %s::regclass",
            [table],
        ).fetchall()
        assert found == {"forced": True, "commands": ["*"]}


def test_interleaved_transactions_do_not_mix(
    server: Postgres, pooler: PgBouncer, rows: Rows, report: Callable[[str], None]
) -> None:
    """20 users, 8 environments, 1,200 transactions that read without a filter: each returns its own user's rows."""
    people, at_once = [uuid4().hex for _ in range(PEOPLE)], 8
    databases = [Database(lambda: pooler.url(server.app_url)) for _ in range(at_once)]
    owners = text(f"select distinct user_id from {example.table}")  # noqa: S608
    texts = text(f"select {example.text} from {example.table}")  # noqa: S608
    for person in people:
        example.put(rows, person, person)

    def work(number: int) -> list[tuple[int, str]]:
        order, served = random.Random(number), []  # noqa: S311
        for _ in range(TRANSACTIONS // at_once):
            person = order.choice(people)
            with databases[number].transaction(person) as session:
                pid = session.execute(text("select pg_backend_pid()")).scalar_one()
                for _statement in range(2):
                    assert session.execute(owners).scalars().all() == [person]
                assert session.execute(texts).scalars().all() == [person]
            served.append((pid, person))
        return served

    with ThreadPoolExecutor(at_once) as pool:
        served = [one for done in pool.map(work, range(at_once)) for one in done]
    for database in databases:
        database.close()
    shared = {pid: len({person for at, person in served if at == pid}) for pid, _ in served}
    assert len(served) == TRANSACTIONS
    assert min(shared.values()) > PEOPLE // 2, "the connections were not shared"
    report(f"{len(served)} interleaved transactions of {PEOPLE} people on {len(shared)} server connections: no leak")


@dataclass(frozen=True)
class Guest(Caller):
    """A user of both entry points."""

    @classmethod
    def new(cls, issuer: Issuer) -> "Guest":
        """Return a user that the service does not know yet."""
        return cls(uuid4().hex, issuer)

    @property
    def mark(self) -> str:
        """Return a word that is in every text of this user and in no other user's."""
        return f"x{self.id[:12]}x"

    def call(self, call: Call) -> dict[str, Any]:
        """Return the event of a tool call at the MCP entry point."""
        token = self.issuer.mint_for_mcp(self.id, issuer=AUTH, resource=RESOURCE)
        headers = {
            "authorization": f"Bearer {token}",
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": "2025-11-25",
        }
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        return event("POST", "/mcp", headers=headers, body=json.dumps(message).encode())


def test_both_entry_points_at_once_do_not_mix(
    warm_fork_server: ForkServer,
    server: Postgres,
    pooler: PgBouncer,
    running_model: StandIn,
    issuer: Issuer,
    rows: Rows,
    report: Callable[[str], None],
) -> None:
    """20 users chat and call tools over MCP from 8 processes, with 1,200 transactions and more: no mark of another."""
    guests = [Guest.new(issuer) for _ in range(PEOPLE)]
    fleet = Fleet(warm_fork_server, variables(pooler.url(server.app_url), running_model, issuer))
    environments = [fleet.start() for _ in range(8)]
    before = transactions(pooler)

    def work(number: int) -> int:
        return sum(visit(environments[number], random.Random(number * 100 + step), guests) for step in range(36))  # noqa: S311

    try:
        with ThreadPoolExecutor(len(environments)) as pool:
            answered = sum(pool.map(work, range(len(environments))))
    finally:
        fleet.stop()
    made = transactions(pooler) - before
    for guest in guests:
        assert all(guest.mark in held for held, _ in example.rows_of(rows, guest.id))
    assert made >= TRANSACTIONS
    report(f"{answered} requests of {PEOPLE} people through both entry points, {made} transactions: no leak")


def visit(environment: Environment, order: random.Random, guests: list[Guest]) -> int:
    """Run a turn and three calls of some users, and check each answer for other users' marks. Return their number."""
    chatting, calling = order.choice(guests), order.choice(guests)
    requests = [
        (chatting, chatting.request({"message": example.add(chatting.mark).then(example.show())})),
        (calling, calling.call(example.call_add(calling.mark))),
        (calling, calling.call(example.call_list())),
        (chatting, chatting.call(example.call_list())),
    ]
    for guest, request in requests:
        answer = environment.ask(request).answer
        assert answer.status == 200, answer.body
        assert '"isError":true' not in answer.body
        assert [other for other in guests if other.mark in answer.body] == [guest]
    return len(requests)


def transactions(pooler: PgBouncer) -> int:
    """Return the number of the pooler's transactions."""
    return sum(int(str(row["total_xact_count"])) for row in pooler.show("stats"))
