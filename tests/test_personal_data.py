"""A person takes everything that is stored of them along, and has it erased."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import jsonschema
import psycopg
import pytest

from dev import export_schema
from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from taskchat import cursor
from taskchat.personal_data import erasure as erasing
from taskchat.personal_data import export
from taskchat.personal_data.tables import personal_tables
from testing.callers import Caller
from testing.gateway import Response, event
from tests import db_assertions, personal_data
from tests.conftest import ROOT, Logs, Person, reset_processes, serving
from tests.crash_points import Trap
from tests.domain import example
from tests.environments import Fleet
from tests.privacy import LogSearch
from tests.proxy import Proxy, ThroughAProxy
from tests.test_mcp_endpoint import McpClient
from tests.test_outages import LONG_OUTAGE, before_commit, when_logged

Rows = psycopg.Connection[dict[str, Any]]

FREEZE_EVERY = 1 if "THOROUGH" in os.environ else 5
"""Points of a turn from one freeze to the next."""
WORD = "quetzalcoatlus"
NOWHERE = "8c5d9f0e-6a1b-4c3d-9e2f-7b8a9c0d1e2f"
"""The id of no conversation. It is a constant, for the workers of xdist must name the tests alike."""
ADD = example.add(f"feed the {WORD}", "call mum")


@pytest.fixture(scope="session")
def database_url(server: Postgres, pooler: PgBouncer) -> str:
    """Go through the pooler, as deployed: an erasure has many transactions, and each may get another connection."""
    return pooler.url(server.app_url)


def live(person: Person, standin: StandIn, rows: Rows, word: str = WORD) -> str:
    """Fill every table with texts that hold the word. Return the name of a tool that the model made up.

    There are turns in two conversations, a call of an MCP client, and a call of that tool.
    """
    made_up, message = f"call_{word}", example.add(f"feed the {word}", "call mum")
    first = person.post({"message": message, "timezone": "Europe/Paris"}).json
    assert person.say(example.change(f"feed the {word}"), first["conversation_id"]).status == 200
    standin.fault("call", calls=[{"name": made_up, "arguments": {"text": word}}], match="hello")
    assert person.say(f"hello {word}").status == 200
    call = example.call_add(f"groom the {word}")
    McpClient(person.mcp_token).do(call["name"], **call["arguments"])
    personal_data.send(person.own("GET", "/export"))  # it has an allowance of its own
    assert personal_data.count(rows, person.id).keys() == {table.name for table in personal_tables()}
    return made_up


def add_rows(rows: Rows, user_id: str, number: int, text: str = "hello") -> None:
    """Store so many messages, and as many calls, in one conversation."""
    here = uuid4()
    rows.execute("insert into conversation (user_id, id, title) values (%s, %s, 'many')", [user_id, here])
    rows.execute(
        "insert into message (user_id, conversation_id, position, turn_id, role, content)"
        " select %s, %s, n, gen_random_uuid(), 'user', %s from generate_series(1, %s) n",
        [user_id, here, text, number],
    )
    rows.execute(
        "insert into tool_call (user_id, turn_id, call_id, position, door, tool, arguments, outcome, result,"
        " duration_ms) select %s, gen_random_uuid(), 'c', 0, 'mcp', %s, '{}', 'ok', '{}', 1"
        " from generate_series(1, %s) n",
        [user_id, example.add_tool, number],
    )


class TestExport:
    """`GET /api/{user_id}/export` returns everything that is stored of a person, page by page."""

    def test_it_holds_every_row_with_every_column(
        self, alice: Person, bob: Person, standin: StandIn, rows: Rows
    ) -> None:
        """Of each table with rows of persons; the owner is named once. Another person's rows are not there."""
        live(alice, standin, rows)
        live(bob, standin, rows)
        (page,) = personal_data.pages(alice)
        assert page.keys() == {"version", "user_id", "tables", "next_cursor"}
        assert (page["version"], page["user_id"], page["next_cursor"]) == (export.VERSION, alice.id, None)
        assert page["tables"] == personal_data.stored(rows, alice.id)
        assert bob.id not in json.dumps(page)

    def test_columns_and_tables_are_those_of_the_schema(self, alice: Person, standin: StandIn, rows: Rows) -> None:
        """Postgres's own catalogue says which they are."""
        live(alice, standin, rows)
        (page,) = personal_data.pages(alice)
        found = rows.execute(
            "select table_name, array_agg(column_name::text) filter (where column_name <> 'user_id') as columns"
            " from information_schema.columns where table_schema = 'public' group by 1"
            " having bool_or(column_name = 'user_id')"
        ).fetchall()
        columns = {row["table_name"]: set(row["columns"]) for row in found}
        assert {name: set(table[0]) for name, table in page["tables"].items()} == columns

    def test_a_person_without_rows_has_an_export(self, alice: Person) -> None:
        """It holds the allowance that the request itself took from."""
        (page,) = personal_data.pages(alice)
        assert {name: len(found) for name, found in page["tables"].items() if found} == {"allowance": 1}

    @pytest.mark.parametrize("limit", [1, 2, 7, 1_000])
    def test_pages_of_any_size_hold_the_same_rows(
        self, alice: Person, standin: StandIn, rows: Rows, limit: int
    ) -> None:
        """Each row once, in the same order, and no page holds more than its limit."""
        live(alice, standin, rows)
        made = list(personal_data.pages(alice, limit))
        sizes = [sum(map(len, page["tables"].values())) for page in made]
        assert sizes[:-1] == [limit] * (len(made) - 1)
        assert 0 < sizes[-1] <= limit
        joined, expected = personal_data.join(made), personal_data.stored(rows, alice.id)
        assert [list(page["tables"]) for page in made] == [list(expected)] * len(made)
        assert joined.pop("allowance")  # each page takes from it
        expected.pop("allowance")
        assert joined == expected

    def test_a_page_holds_a_mebibyte_at_most(self, alice: Person, rows: Rows) -> None:
        """Postgres measures the bytes, not the characters, and a page is filled."""
        add_rows(rows, alice.id, 300, "ä\n" * 4_000)
        sizes = [
            len(json.dumps(page, ensure_ascii=False, separators=(",", ":")).encode())
            for page in personal_data.pages(alice)
        ]
        assert len(sizes) >= 300 * 16_000 // 2**20
        assert max(sizes) <= export.MAX_BYTES
        assert all(size > export.MAX_BYTES * 0.9 for size in sizes[:-1])

    def test_a_row_of_more_than_a_mebibyte_is_a_page(self, alice: Person, rows: Rows) -> None:
        """It has the page to itself, and the export goes on behind it."""
        add_rows(rows, alice.id, 2, "x" * (export.MAX_BYTES + 1))
        made = list(personal_data.pages(alice))
        assert sorted(len(page["tables"]["message"]) for page in made)[-2:] == [1, 1]
        assert len(personal_data.join(made)["message"]) == 2

    def test_it_is_stable_while_rows_come_and_go(self, alice: Person, rows: Rows) -> None:
        """A row that stays is exported once, wherever others are added or deleted between two pages."""
        add_rows(rows, alice.id, 40)
        kept = {row["turn_id"] for row in personal_data.stored(rows, alice.id)["message"] if row["position"] % 2}
        made = []
        for number, page in enumerate(personal_data.pages(alice, 3)):
            made.append(page)
            rows.execute("delete from message where user_id = %s and position = %s", [alice.id, 2 * number + 2])
            add_rows(rows, alice.id, 1)
            if number == 40:
                break
        found = [row["turn_id"] for page in made for row in page["tables"]["message"]]
        assert len(found) == len(set(found))
        seen_all = made[-1]["next_cursor"] is None or kept <= set(found)
        assert seen_all

    @pytest.mark.parametrize(
        "hostile",
        [
            *("", "__", "%00", "%ff", "e30", "W10", "a" * 1_001, "bnVsbA"),
            cursor.write("message"),
            cursor.write("message", "x", 1),
            cursor.write("message", NOWHERE, "1"),
            cursor.write("message", NOWHERE, None),
            cursor.write(None, 1),
            cursor.write("message", NOWHERE, 2**63),
            cursor.write("message", 5, 5),
            cursor.write("message", NOWHERE, 1, 1),
            cursor.write("alembic_version", "0005"),
            cursor.write("erased_call", NOWHERE, 1),
            cursor.write("allowance", "cha\x00t"),
            cursor.write("allowance", "\ud800"),
            cursor.write("allowance; drop table message", "x"),
        ],
        ids=lambda text: text[:40],
    )
    def test_a_hostile_cursor_is_refused(self, alice: Person, hostile: str) -> None:
        """The answer is 422 with the name of the field."""
        answer = personal_data.send(alice.own("GET", "/export", query=f"cursor={hostile}"))
        assert (answer.status, answer.json["type"]) == (422, "urn:taskchat:problem:invalid-input"), answer.body
        assert [fault["field"] for fault in answer.json["fields"]] == ["cursor"]
        assert not hostile or hostile not in answer.body

    @pytest.mark.parametrize(
        "place",
        [cursor.write("message", NOWHERE, 2**63 - 1), cursor.write("allowance", "")],
        ids=["number", "text"],
    )
    def test_a_place_without_a_row_is_a_place(self, alice: Person, place: str) -> None:
        """The number is beyond its column: a position has 32 bits, and a cursor may hold 64."""
        assert personal_data.send(alice.own("GET", "/export", query=f"cursor={place}")).status == 200

    @pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "page=2", "limit=1&limit=2&x"])
    def test_a_wrong_query_is_refused(self, alice: Person, query: str) -> None:
        """So is a parameter that does not exist."""
        assert personal_data.send(alice.own("GET", "/export", query=query)).status == 422

    def test_another_s_cursor_shows_nothing_of_theirs(
        self, alice: Person, bob: Person, standin: StandIn, rows: Rows
    ) -> None:
        """It names a place, and the rows behind it are the caller's own."""
        live(alice, standin, rows)
        live(bob, standin, rows)
        theirs = next(personal_data.pages(bob, 3))["next_cursor"]
        answer = personal_data.send(alice.own("GET", "/export", query=f"cursor={theirs}"))
        assert answer.status == 200
        assert {row["turn_id"] for row in answer.json["tables"]["message"]} <= {
            row["turn_id"] for row in personal_data.stored(rows, alice.id)["message"]
        }

    def test_it_takes_from_the_limits_of_the_person_s_data(
        self, alice: Person, rows: Rows, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second request at once gets 429, with the time to wait."""
        monkeypatch.setenv("DATA_BURST", "1")
        monkeypatch.setenv("DATA_REQUESTS_PER_MINUTE", "1")
        ask = alice.own("GET", "/export")
        assert personal_data.send(ask).status == 200
        refused = personal_data.send(ask)
        assert (refused.status, refused.json["type"]) == (429, "urn:taskchat:problem:too-many-requests")
        assert refused.headers["retry-after"]

    def test_100_000_rows_fit_in_256_mb(self, fleet: Fleet, issuer: Issuer, rows: Rows) -> None:
        """A process of its own exports them, and no page comes near the bounds of Lambda."""
        person, environment = Caller.new(issuer), fleet.start()
        add_rows(rows, person.id, 50_000, "x" * 300)
        place, found = "", 0
        while place is not None:
            page = environment.ask(person.own("GET", "/export", query=place)).answer
            assert page.status == 200, page.body
            found += sum(map(len, page.json["tables"].values()))
            place = page.json["next_cursor"] and f"cursor={page.json['next_cursor']}"
        assert found == 100_002  # with the conversation and the allowance
        assert environment.peak_memory < 256 * 2**20


class TestSchema:
    """docs/export.schema.json describes every page."""

    @pytest.fixture
    def schema(self) -> Any:
        """Return the published schema."""
        return json.loads((ROOT / "docs" / "export.schema.json").read_text())

    def test_the_file_is_up_to_date(self, schema: Any) -> None:
        """After a change of a table, `make openapi` writes it."""
        assert schema == export_schema.describe()

    def test_real_pages_fit_it(self, alice: Person, standin: StandIn, rows: Rows, schema: Any) -> None:
        """Small pages and a large one, with a row in every table."""
        live(alice, standin, rows)
        jsonschema.Draft202012Validator.check_schema(schema)
        check = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
        for page in (*personal_data.pages(alice, 2), *personal_data.pages(alice)):
            check.validate(page)

    @pytest.mark.parametrize(
        "change", [{"version": "taskchat.export/2"}, {"user_id": 5}, {"more": 1}, {"next_cursor": ""}, {"tables": {}}]
    )
    def test_other_documents_do_not(self, alice: Person, schema: Any, change: dict[str, Any]) -> None:
        """The schema can fail."""
        (page,) = personal_data.pages(alice)
        assert not jsonschema.Draft202012Validator(schema).is_valid(page | change)

    def test_every_personal_table_can_be_read_and_erased(self) -> None:
        """The runtime role has the rights for it."""
        for table in personal_tables():
            rights = table.info.get("rights", "select, insert, update, delete")
            assert {"select", "delete"} <= set(rights.replace(",", "").split()), table.name


class TestErasure:
    """`DELETE /api/{user_id}` erases everything that is stored of a person."""

    @pytest.mark.parametrize(
        "headers", [{}, {"confirm": "Erase"}, {"confirm": "yes"}, {"confirm": ""}, {"confirm": "erase,erase"}]
    )
    def test_it_must_be_confirmed(self, alice: Person, rows: Rows, headers: dict[str, str]) -> None:
        """Otherwise the answer is 428, and nothing is erased."""
        assert alice.say(ADD).status == 200
        before = personal_data.stored(rows, alice.id)
        answer = personal_data.send(alice.own("DELETE", **headers))
        assert (answer.status, answer.json["type"]) == (428, "urn:taskchat:problem:confirmation-required")
        assert personal_data.stored(rows, alice.id) == before

    def test_a_query_is_refused(self, alice: Person, rows: Rows) -> None:
        """A caller who hopes for a dry run gets none."""
        assert alice.say(ADD).status == 200
        answer = personal_data.send(alice.own("DELETE", query="dry_run=1", confirm="erase"))
        assert answer.status == 422
        assert personal_data.count(rows, alice.id)["message"] == 2

    def test_another_person_s_path_is_refused(self, alice: Person, bob: Person, rows: Rows) -> None:
        """With a valid token and the header."""
        assert bob.say(ADD).status == 200
        made = event("DELETE", f"/api/{bob.id}", headers={"authorization": f"Bearer {alice.token}", "confirm": "erase"})
        assert personal_data.send(made).status == 403
        assert personal_data.count(rows, bob.id)["message"] == 2

    def test_no_row_and_no_text_is_left(
        self, alice: Person, standin: StandIn, rows: Rows, logs: Logs, log_search: LogSearch
    ) -> None:
        """In no column of any table. No log line of the run holds a text."""
        word = uuid4().hex
        made_up = live(alice, standin, rows, word)
        log_search.add_texts([word, f"feed the {word}", made_up])
        assert set(personal_data.tables_with(rows, word)) == {"conversation", "message", "tool_call", example.table}
        answer = personal_data.erase(alice)
        assert (answer.status, answer.body) == (204, "")
        assert personal_data.count(rows, alice.id) == {}
        assert personal_data.tables_with(rows, word) == []
        assert personal_data.tables_with(rows, alice.id) == []
        assert word not in json.dumps(logs())

    def test_it_is_logged_without_the_person_and_the_pseudonym(
        self, alice: Person, standin: StandIn, rows: Rows, logs: Logs
    ) -> None:
        """The line has the number of rows by table."""
        live(alice, standin, rows)
        expected = personal_data.count(rows, alice.id)
        before = pseudonyms(rows)
        personal_data.erase(alice)
        (line,) = [line for line in logs() if line["message"] == "erased"]
        assert line["rows"] == expected
        (pseudonym,) = pseudonyms(rows) - before
        assert alice.id not in json.dumps(line)
        assert pseudonym not in json.dumps(logs())

    def test_erased_calls_keep_what_an_audit_needs(self, alice: Person, standin: StandIn, rows: Rows) -> None:
        """Day, entry point, tool and outcome, under one pseudonym. The name that the model made up is not kept."""
        made_up = live(alice, standin, rows)
        made = rows.execute("select door, tool, outcome from tool_call where user_id = %s", [alice.id]).fetchall()
        before = pseudonyms(rows)
        personal_data.erase(alice)
        (pseudonym,) = pseudonyms(rows) - before
        kept = rows.execute("select * from erased_call where pseudonym = %s", [pseudonym]).fetchall()
        assert all(row.keys() == {"pseudonym", "id", "door", "tool", "outcome", "made_on"} for row in kept)
        assert {row["made_on"] for row in kept} == {datetime.now(UTC).date()}
        expected = [(row["door"], row["tool"].replace(made_up, "unknown"), row["outcome"]) for row in made]
        assert sorted((row["door"], row["tool"], row["outcome"]) for row in kept) == sorted(expected)
        assert "unknown" in {row["tool"] for row in kept}
        assert "mcp" in {row["door"] for row in kept}

    def test_a_repeated_request_is_answered_alike(self, alice: Person, rows: Rows) -> None:
        """It leaves nothing either, not even an allowance."""
        assert alice.say(ADD).status == 200
        for _ in range(3):
            assert personal_data.erase(alice).status == 204
            assert personal_data.count(rows, alice.id) == {}

    def test_the_person_may_begin_anew(self, alice: Person, rows: Rows) -> None:
        """Like a person who was never there: also a key that was used before begins a turn."""
        first = alice.say(ADD, key="k").json
        assert personal_data.erase(alice).status == 204
        second = alice.say(ADD, key="k")
        assert (second.status, second.headers.get("idempotent-replayed")) == (200, None)
        assert first["turn_id"] == second.json["turn_id"]
        assert personal_data.count(rows, alice.id)["message"] == 2

    def test_another_person_s_rows_stay_byte_for_byte(
        self, alice: Person, bob: Person, fleet: Fleet, rows: Rows, standin: StandIn, issuer: Issuer
    ) -> None:
        """Also their versions and places, while a third person takes turns that all succeed."""
        live(bob, standin, rows)
        add_rows(rows, bob.id, 500)
        add_rows(rows, alice.id, 3_000)
        before, busy = personal_data.versions(rows, bob.id), Caller.new(issuer)
        eraser, chatting = fleet.start(), fleet.start()
        eraser.send(personal_data.erasure(alice))
        answers = []
        while not answers or not eraser.is_answered():
            answers.append(chatting.ask(busy.request({"message": example.add("milk")})).answer.status)
        assert eraser.outcome().answer.status == 204
        assert set(answers) == {200}
        assert personal_data.count(rows, busy.id)["message"] == 2 * len(answers)
        assert personal_data.versions(rows, bob.id) == before
        assert personal_data.count(rows, alice.id) == {}

    def test_50_000_rows_are_erased_in_batches(self, fleet: Fleet, issuer: Issuer, rows: Rows) -> None:
        """Within one request's time, each batch in a transaction of its own."""
        person = Caller.new(issuer)
        add_rows(rows, person.id, 25_000)
        outcome = fleet.start().ask(personal_data.erasure(person))
        assert outcome.answer.status == 204
        assert personal_data.count(rows, person.id) == {}
        assert outcome.passed.count("after commit") >= 2 * 25_000 / erasing.BATCH

    def test_out_of_time_it_goes_on_with_the_next_request(
        self, alice: Person, rows: Rows, logs: Logs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The answer is 504. What is erased by then stays erased."""
        add_rows(rows, alice.id, 2_500)
        left = iter([1.0] * 3)
        with monkeypatch.context() as patch:
            patch.setattr(erasing, "deadline", SimpleNamespace(remaining=lambda: next(left, 0.0)))
            answer = personal_data.erase(alice)
        assert (answer.status, answer.json["type"]) == (504, "urn:taskchat:problem:out-of-time")
        remaining = sum(personal_data.count(rows, alice.id).values())
        (line,) = [line for line in logs() if line["message"] == "erased"]
        assert sum(line["rows"].values()) == 5_002 - remaining
        assert 0 < remaining < 5_000
        assert personal_data.erase(alice).status == 204
        assert personal_data.count(rows, alice.id) == {}

    def test_two_erasures_at_once_both_succeed(self, fleet: Fleet, issuer: Issuer, rows: Rows) -> None:
        """Each call is kept once."""
        person = Caller.new(issuer)
        add_rows(rows, person.id, 5_000)
        kept = rows.execute("select count(*) as n from erased_call").fetchall()[0]["n"]
        environments = [fleet.start() for _ in range(2)]
        for environment in environments:
            environment.send(personal_data.erasure(person))
        assert [environment.outcome().answer.status for environment in environments] == [204, 204]
        assert personal_data.count(rows, person.id) == {}
        assert rows.execute("select count(*) as n from erased_call").fetchall()[0]["n"] == kept + 5_000

    def test_a_killed_process_leaves_what_the_next_request_erases(
        self, fleet: Fleet, issuer: Issuer, rows: Rows
    ) -> None:
        """Killed at any point of an erasure. Each call is kept once in all."""
        person = Caller.new(issuer)
        add_rows(rows, person.id, 3)
        points = len(fleet.start().ask(personal_data.erasure(person)).passed)
        assert points > 20
        for point in range(2, points, 3):
            add_rows(rows, person.id, 3)
            kept = rows.execute("select count(*) as n from erased_call").fetchall()[0]["n"]
            with fleet.cold() as environment:
                assert environment.ask(personal_data.erasure(person), Trap.kill(point)).response is None
            db_assertions.settle(rows)
            assert fleet.start().ask(personal_data.erasure(person)).answer.status == 204
            assert personal_data.count(rows, person.id) == {}
            assert rows.execute("select count(*) as n from erased_call").fetchall()[0]["n"] == kept + 3


def pseudonyms(rows: Rows) -> set[str]:
    """Return all pseudonyms."""
    return {str(row["pseudonym"]) for row in rows.execute("select distinct pseudonym from erased_call").fetchall()}


class TestARunningTurn:
    """A turn that runs while its person is erased ends with a problem, and writes nothing more."""

    MESSAGE = example.add("milk", "mum").then(example.change("milk"))

    @pytest.mark.parametrize("calls", [0, 1, 2])
    def test_held_at_the_model(self, fleet: Fleet, issuer: Issuer, standin: StandIn, rows: Rows, calls: int) -> None:
        """Before its first call, between two calls, and before its reply."""
        person, turn, other = Caller.new(issuer), fleet.start(), fleet.start()
        standin.fault("hang", match=self.MESSAGE, after_calls=calls)
        turn.send(person.request({"message": self.MESSAGE}))
        assert standin.waiting(at_least=1) == 1
        assert personal_data.count(rows, person.id)["message"] == 1
        assert other.ask(personal_data.erasure(person)).answer.status == 204
        standin.release()
        check_refused(turn.outcome().answer)
        assert personal_data.count(rows, person.id) == {}

    def test_that_fails_afterwards(self, fleet: Fleet, issuer: Issuer, standin: StandIn, rows: Rows) -> None:
        """It cannot release a lease that is gone, and counts its tokens in no row."""
        person, turn, other = Caller.new(issuer), fleet.start(), fleet.start()
        standin.fault("hang", match=self.MESSAGE, after_calls=1)
        standin.fault("context_length_exceeded", match=self.MESSAGE, after_calls=1, times=None)
        turn.send(person.request({"message": self.MESSAGE}))
        assert standin.waiting(at_least=1) == 1
        assert other.ask(personal_data.erasure(person)).answer.status == 204
        standin.release()
        assert turn.outcome().answer.status >= 400
        assert personal_data.count(rows, person.id) == {}

    def test_frozen_at_any_point(self, fleet: Fleet, issuer: Issuer, standin: StandIn, rows: Rows) -> None:
        """From the commit of its message to its answer. While a turn holds its row, the erasure gets no lock: 503."""
        made = fleet.start().ask(Caller.new(issuer).request({"message": self.MESSAGE}))
        assert made.answer.status == 200
        first, other = made.passed.index("after commit") + 1, fleet.start()
        erased = 0
        for point in range(first, len(made.passed), FREEZE_EVERY):
            person = Caller.new(issuer)
            with fleet.cold() as turn:
                assert turn.ask(person.request({"message": self.MESSAGE}), Trap.freeze(point)).trapped
                status = other.ask(personal_data.erasure(person)).answer.status
                turn.thaw()
                turn.outcome()
                assert status in (204, 503), status
                erased += status == 204
                assert status == 503 or personal_data.count(rows, person.id) == {}, made.passed[point]
        assert erased > 5


def check_refused(answer: Response) -> None:
    """Check that the turn ended because its lease was gone."""
    assert (answer.status, answer.json["type"]) == (409, "urn:taskchat:problem:turn-in-progress"), answer.body


class TestThroughAProxy(ThroughAProxy):
    """A proxy between program and Postgres loses answers and cuts connections."""

    @pytest.mark.parametrize("nth", range(1, 8))
    def test_a_commit_of_unknown_outcome_may_be_repeated(
        self, alice: Person, proxy: Proxy, rows: Rows, nth: int
    ) -> None:
        """The answer is 503 with the time to wait. The next request erases the rest, and each call is kept once."""
        add_rows(rows, alice.id, 3)
        kept = rows.execute("select count(*) as n from erased_call").fetchall()[0]["n"]

        def lose() -> None:
            proxy.lose_answer_to = b"commit"

        before_commit(nth, lose)
        answer = personal_data.erase(alice)
        assert (proxy.lost, answer.status, bool(answer.headers["retry-after"])) == (1, 503, True)
        assert personal_data.erase(alice).status == 204
        assert personal_data.count(rows, alice.id) == {}
        assert rows.execute("select count(*) as n from erased_call").fetchall()[0]["n"] == kept + 3

    def test_a_cut_in_the_middle_may_be_repeated(self, alice: Person, proxy: Proxy, rows: Rows) -> None:
        """Postgres is gone after any of these bytes of a request. The next request erases the rest."""
        personal_data.erase(alice)
        proxy.reset()
        personal_data.erase(alice)
        sent = proxy.sent
        for place in range(1, sent, sent // 10):
            add_rows(rows, alice.id, 3)
            proxy.reset()
            proxy.cut_sent, proxy.refuse_for = place, LONG_OUTAGE
            assert personal_data.erase(alice).status == 503
            proxy.accept_again()
            assert personal_data.erase(alice).status == 204
            assert personal_data.count(rows, alice.id) == {}

    def test_a_turn_whose_last_commit_is_lost_stores_no_reply_for_an_erased_person(
        self, alice: Person, proxy: Proxy, rows: Rows, fleet: Fleet
    ) -> None:
        """The turn looks its message up, and finds that it has gone: it does not begin anew."""
        message, other = "hello", fleet.start()

        def lose() -> None:
            proxy.cut_sent = proxy.sent + 3

        def erase() -> None:
            assert other.ask(personal_data.erasure(alice)).answer.status == 204

        before_commit(2, lose)  # the first one stores the message, this one the reply
        with when_logged("database unavailable", erase):
            check_refused(alice.say(message))
        assert proxy.lost == 1
        assert personal_data.count(rows, alice.id) == {}


class TestThePage:
    """The commands of docs/personal-data.md work as they stand."""

    PAGE = (ROOT / "docs" / "personal-data.md").read_text()
    COMMANDS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)

    @pytest.fixture(scope="class")
    @classmethod
    def database_url(cls, server: Postgres) -> str:
        """Use Postgres directly."""
        return server.app_url

    @pytest.fixture
    def paste(self, alice: Person, tmp_path: Path) -> Iterator[Callable[[str], str]]:
        """Give a function that runs commands in a shell with the three variables, and returns their output."""
        from chat.app import app

        assert alice.say(example.add("milk", "call mum")).status == 200
        reset_processes()  # the requests that follow come to another process
        with serving(app) as url:
            known = os.environ | {"URL": url, "USER_ID": alice.id, "TOKEN": alice.token}

            def run(command: str) -> str:
                shell = ["sh", "-c", command]  # of our own page
                done = subprocess.run(shell, env=known, cwd=tmp_path, capture_output=True, text=True, check=True)  # noqa: S603
                return done.stdout

            yield run

    def test_export_erase_export(self, paste: Callable[[str], str]) -> None:
        """The transcript shows what a shell prints."""
        (command,) = [each for each in self.COMMANDS if "DELETE" in each]
        (transcript,) = re.findall(r"```\n(\{.*?)```", self.PAGE, re.DOTALL)
        assert paste(command) == transcript

    def test_the_pages_are_joined(self, paste: Callable[[str], str], alice: Person, rows: Rows, tmp_path: Path) -> None:
        """The export has several pages."""
        (command,) = [each for each in self.COMMANDS if "pages.jsonl" in each]
        paste(command.replace('cursor=""', 'cursor="limit=3"').replace('f"cursor', 'f"limit=3&cursor'))
        assert len((tmp_path / "pages.jsonl").read_text().splitlines()) > 2
        joined = json.loads((tmp_path / "export.json").read_text())
        expected = personal_data.stored(rows, alice.id)
        assert joined["tables"].pop("allowance")
        expected.pop("allowance")
        assert (joined["tables"], joined["next_cursor"]) == (expected, None)

    def test_the_example_names_the_tables(self, paste: Callable[[str], str]) -> None:
        """It names all of them, and the members of a page."""
        (command,) = [each for each in self.COMMANDS if each.count("curl") == 1 and "while" not in each]
        shown = json.loads(re.findall(r"```json\n(.*?)```", self.PAGE, re.DOTALL)[0])
        page = json.loads(paste(command))
        assert (list(shown), list(shown["tables"])) == (list(page), list(page["tables"]))
        assert all(f"| `{table}` |" in self.PAGE for table in page["tables"])
