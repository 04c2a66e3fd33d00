"""Everybody sees only what is theirs: each layer is tested as if the others were gone."""

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
from tests.conftest import Person, databases, variables
from tests.domain import example
from tests.environments import Environment, Fleet, ForkServer
from tests.example_domain import Call, Rows
from tests.test_mcp_endpoint import McpClient

TABLES = sorted(SQLModel.metadata.tables)
OWNER_FILTER = re.compile(r"(?:\w+\.)?user_id = (%s(?:::\w+)?)")
PEOPLE = 20
TRANSACTIONS = 1_200


def about(statement: LiteralString, table: str) -> sql.Composed:
    """The statement with the table's name in its place."""
    return sql.SQL(statement).format(sql.Identifier(table))


@contextmanager
def owner_filters_removed(databases: list[Database]) -> Iterator[set[str]]:
    """Send every statement without its owner filter; gives the statements that had one, by verb and table."""
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
    """The other layer gone."""
    for table in TABLES:
        rows.execute(about("alter table {} disable row level security", table))
    try:
        yield
    finally:
        for table in TABLES:
            rows.execute(about("alter table {} enable row level security", table))


def everything_of(rows: Rows, person: Person) -> dict[str, list[dict[str, Any]]]:
    """All rows of a person's."""
    return {
        table: rows.execute(
            about("select * from {} where user_id = %s order by 1, 2, 3", table), [person.id]
        ).fetchall()
        for table in TABLES
    }


@dataclass(frozen=True)
class Intruder:
    """Somebody who tries all there is to try against what is another's, through both doors."""

    person: Person
    thing: int
    """What they try to get at."""
    conversation_id: str

    def attack(self) -> list[str]:
        """Everything that was answered."""
        say, mcp, thing = self.person.say, McpClient(self.person.mcp_token), str(self.thing)
        wishes = (example.show(), example.change(thing), example.rename(thing, "stolen"), example.delete(thing))
        answers = [say(wish).body for wish in wishes]
        intruding = say("what did I just say?", self.conversation_id)
        assert intruding.status == 404
        answers.append(intruding.body)
        calls = example.call_change, partial(example.call_rename, text="stolen"), example.call_delete
        for call in (make(self.thing) for make in calls):
            result = mcp.call(call["name"], **call["arguments"])
            assert result["isError"], call
            answers.append(str(result))
        return [*answers, str(mcp.call(example.list_tool))]


class TestOneLayerGone:
    """Either of the two is enough."""

    @pytest.fixture
    def victim(self, alice: Person) -> Person:
        """Somebody with a thing, a conversation and a turn under a key."""
        assert alice.say(example.add("secretplan"), key="k").status == 200
        return alice

    @pytest.fixture
    def intruder(self, victim: Person, bob: Person, rows: Rows) -> Intruder:
        """Somebody else, who knows every id there is."""
        assert bob.say(example.add("ownplan"), key="k").status == 200
        McpClient(bob.mcp_token).call(example.list_tool)  # over a connection that is made now
        (thing,) = example.ids_of(rows, victim.id)
        (talk,) = rows.execute("select id::text from conversation where user_id = %s", [victim.id]).fetchall()
        return Intruder(bob, thing, talk["id"])

    def test_without_any_owner_filter_rows_are_safe(self, victim: Person, intruder: Intruder, rows: Rows) -> None:
        """Row-level security alone: not one row of another's is seen or changed, and one's own still are."""
        before = everything_of(rows, victim)
        with owner_filters_removed(databases()) as removed:
            answers = intruder.attack()
            assert intruder.person.say(example.add("ownplan"), key="k").headers["idempotent-replayed"] == "true"
        assert removed >= {
            f"FROM {example.table}",
            f"UPDATE {example.table}",
            f"DELETE FROM {example.table}",  # noqa: S608  (compared, not run)
            "FROM message",
            "FROM tool_call",
            "UPDATE conversation",
            "FROM conversation",
        }
        assert "secretplan" not in str(answers)
        assert "ownplan" in answers[0]
        assert everything_of(rows, victim) == before

    def test_without_row_level_security_rows_are_safe(self, victim: Person, intruder: Intruder, rows: Rows) -> None:
        """The owner filters alone, on a connection that was made before somebody switched the security off."""
        before = everything_of(rows, victim)
        with row_level_security_off(rows):
            answers = intruder.attack()
        assert "secretplan" not in str(answers)
        assert "ownplan" in answers[0]
        assert everything_of(rows, victim) == before

    def test_without_both_they_are_not(self, victim: Person, intruder: Intruder, rows: Rows) -> None:
        """So the two tests above do remove what they say they remove."""
        with row_level_security_off(rows), owner_filters_removed(databases()):
            assert "secretplan" in intruder.person.say(example.change(str(intruder.thing))).body


class TestNobodySet:
    """Row-level security is closed when nobody is named."""

    @pytest.mark.parametrize("table", TABLES)
    @pytest.mark.parametrize("setting", [None, ""])
    def test_no_row_is_seen(self, server: Postgres, alice: Person, table: str, setting: str | None) -> None:
        """With the setting unset, and with the empty one that a transaction leaves behind."""
        alice.say(example.add("one"))
        with psycopg.connect(server.app_url) as connection:
            if setting is not None:
                connection.execute("select set_config('app.user_id', %s, true)", [setting])
            assert connection.execute(about("select count(*) from {}", table)).fetchone() == (0,)

    @pytest.mark.parametrize("table", TABLES)
    def test_each_table_forces_it(self, rows: Rows, table: str) -> None:
        """On the owner too, and for every command."""
        (found,) = rows.execute(
            "select relrowsecurity and relforcerowsecurity as forced, (select array_agg(polcmd::text) from pg_policy"
            " where polrelid = pg_class.oid) as commands from pg_class where oid = %s::regclass",
            [table],
        ).fetchall()
        assert found == {"forced": True, "commands": ["*"]}


def test_interleaved_transactions_do_not_mix(
    server: Postgres, pooler: PgBouncer, rows: Rows, report: Callable[[str], None]
) -> None:
    """20 people, 8 environments at once, 1,200 transactions that read without any filter: each sees what is theirs."""
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
    """A person who uses both doors."""

    @classmethod
    def new(cls, issuer: Issuer) -> "Guest":
        """Somebody new to the service."""
        return cls(uuid4().hex, issuer)

    @property
    def mark(self) -> str:
        """What every text of theirs holds, and nobody else's."""
        return f"x{self.id[:12]}x"

    def call(self, call: Call) -> dict[str, Any]:
        """A tool call through the MCP door, as the gateway hands it over."""
        token = self.issuer.mint_for_mcp(self.id, issuer=AUTH, resource=RESOURCE)
        headers = {
            "authorization": f"Bearer {token}",
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": "2025-11-25",
        }
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        return event("POST", "/mcp", headers=headers, body=json.dumps(message).encode())


def test_both_doors_at_once_do_not_mix(
    warm_fork_server: ForkServer,
    server: Postgres,
    pooler: PgBouncer,
    running_model: StandIn,
    issuer: Issuer,
    rows: Rows,
    report: Callable[[str], None],
) -> None:
    """20 people chat and call tools over MCP from 8 processes, 1,200 transactions and more: no mark of another's."""
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
    report(f"{answered} requests of {PEOPLE} people through both doors, {made} transactions: no leak")


def visit(environment: Environment, order: random.Random, guests: list[Guest]) -> int:
    """A turn and three calls by some of the people; how many requests were answered without a foreign mark."""
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
    """How many the pooler has seen."""
    return sum(int(str(row["total_xact_count"])) for row in pooler.show("stats"))
