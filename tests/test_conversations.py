"""A person lists, reads, renames and deletes their conversations, and reaches those of no other person.

Postgres itself says what is left after each deletion.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import httpx2
import psycopg
import pytest

from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from taskchat import cursor
from taskchat.conversations.deletion import DELETED
from taskchat.toolcalls.models import UNKNOWN_TOOL
from testing import counting_proxy
from testing.gateway import Response, event, invoke
from tests import db_assertions
from tests.conftest import Logs, Person, reset_processes, serving
from tests.domain import example
from tests.test_contract import CANARY, MAX_BODY, assert_problem

Rows = psycopg.Connection[dict[str, Any]]

ADD, OTHER = example.add("buy milk"), example.add("buy bread")
CONVERSATION = {"id", "title", "created_at", "updated_at", "running"}
TURN = {"turn_id", "status", "message", "response", "tool_calls", "created_at", "finished_at"}
UNKNOWN = "/conversations/00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="session")
def database_url(server: Postgres) -> str:
    """Use Postgres directly: the routes do not depend on the pooler."""
    return server.app_url


def begin(person: Person, *messages: str) -> str:
    """Have the turns of one conversation, and return the path of its route."""
    conversation_id = None
    for message in messages or (ADD,):
        answer = person.say(message, conversation_id)
        assert answer.status == 200
        conversation_id = answer.json["conversation_id"]
    return f"/conversations/{conversation_id}"


def id_in(path: str) -> str:
    """Return the conversation's id."""
    return path.rpartition("/")[2]


def read_all(person: Person, path: str, field: str, limit: int) -> list[dict[str, Any]]:
    """Read all pages of a list, and return its rows."""
    found: list[dict[str, Any]] = []
    place: dict[str, Any] = {}
    while True:
        page = person.get(path, limit=limit, **place).json
        assert len(page[field]) <= limit
        found += page[field]
        if page["next_cursor"] is None:
            return found
        place = {"cursor": page["next_cursor"]}


def stored(rows: Rows, person: Person) -> dict[str, int]:
    """Return how many rows a person has in each table of the engine."""
    tables = ("conversation", "message", "tool_call")
    count = "select count(*) as n from {} where user_id = %s"
    found = {table: rows.execute(count.format(table).encode(), [person.id]).fetchone() for table in tables}
    return {table: row["n"] for table, row in found.items() if row}


def hold(rows: Rows, path: str, seconds: int, turn_id: str | UUID | None = None) -> None:
    """Give the conversation's lease to a turn, for this time from now."""
    lease = "update conversation set turn_id = %s, lease_until = now() + %s * interval '1 second' where id = %s"
    rows.execute(lease, [turn_id or uuid4(), seconds, id_in(path)])


class TestList:
    """The list has each conversation once, by last activity."""

    def test_the_newest_activity_comes_first(self, alice: Person) -> None:
        """A new turn brings an old conversation to the front."""
        first, second = begin(alice), begin(alice, OTHER)
        assert alice.say("hello", id_in(first)).status == 200
        page = alice.get("/conversations")
        assert (page.status, page.json["next_cursor"]) == (200, None)
        assert [row["id"] for row in page.json["conversations"]] == [id_in(first), id_in(second)]
        assert [row["title"] for row in page.json["conversations"]] == [ADD, OTHER]
        assert all(row.keys() == CONVERSATION and not row["running"] for row in page.json["conversations"])

    def test_nobody_has_conversations_at_first(self, alice: Person, bob: Person) -> None:
        """Another person's are not there."""
        begin(bob)
        assert alice.get("/conversations").json == {"conversations": [], "next_cursor": None}

    @pytest.mark.parametrize("limit", [1, 2, 3, 4, 100])
    def test_pages_hold_each_once(self, alice: Person, rows: Rows, limit: int) -> None:
        """Also those whose last activity is the same moment."""
        made = {id_in(begin(alice, "hello")) for _ in range(4)}
        rows.execute("update conversation set updated_at = now() where user_id = %s", [alice.id])
        found = [row["id"] for row in read_all(alice, "/conversations", "conversations", limit)]
        assert (len(found), set(found)) == (4, made)
        assert found == sorted(found, reverse=True)

    def test_pages_are_stable_while_conversations_get_turns(self, alice: Person) -> None:
        """One that was read moves, a new one begins, and one is deleted: the others come once, in their order."""
        made = [id_in(begin(alice, "hello")) for _ in range(5)]
        first = alice.get("/conversations", limit=2).json
        assert [row["id"] for row in first["conversations"]] == made[:2:-1]
        alice.say("hello", made[3])
        begin(alice, "hello")
        assert alice.call("DELETE", f"/conversations/{made[2]}").status == 204
        second = alice.get("/conversations", limit=2, cursor=first["next_cursor"]).json
        assert [row["id"] for row in second["conversations"]] == [made[1], made[0]]
        assert second["next_cursor"] is None

    def test_a_running_turn_shows(self, alice: Person, rows: Rows) -> None:
        """A lease that has run out is no running turn."""
        path = begin(alice)
        for seconds, running in ((60, True), (-1, False)):
            hold(rows, path, seconds)
            (row,) = alice.get("/conversations").json["conversations"]
            assert row["running"] is alice.get(path).json["running"] is running


class TestRead:
    """A conversation shows its turns as they were answered."""

    def test_a_turn_shows_as_it_was_answered(self, alice: Person) -> None:
        """The newest comes first."""
        answer = alice.say(ADD)
        path = f"/conversations/{answer.json['conversation_id']}"
        alice.say("hello", id_in(path))
        found = alice.get(path)
        assert found.json.keys() == CONVERSATION | {"turns", "next_cursor"}
        newest, turn = found.json["turns"]
        assert turn.keys() == TURN
        assert (turn["message"], turn["status"], newest["message"]) == (ADD, "done", "hello")
        assert {name: turn[name] for name in ("turn_id", "response", "tool_calls")} == {
            name: answer.json[name] for name in ("turn_id", "response", "tool_calls")
        }
        assert found.json["created_at"] <= turn["created_at"] < turn["finished_at"] < newest["created_at"]
        assert newest["finished_at"] == max(newest["finished_at"], newest["created_at"])
        assert alice.id not in found.body

    def test_a_failed_turn_is_interrupted(self, alice: Person, standin: StandIn) -> None:
        """It shows the call that took effect and no response. A retry with its key makes it done."""
        standin.fault("server_error", match=ADD, times=None, after_calls=1)
        failed = alice.say(ADD, key="k").json
        path = f"/conversations/{failed['conversation_id']}"
        (turn,) = alice.get(path).json["turns"]
        assert (turn["status"], turn["response"], turn["finished_at"]) == ("interrupted", None, None)
        assert turn["tool_calls"] == failed["tool_calls"] != []
        standin.reset()
        alice.say(ADD, key="k")
        (turn,) = alice.get(path).json["turns"]
        assert (turn["status"], turn["tool_calls"]) == ("done", failed["tool_calls"])

    def test_only_the_turn_that_holds_the_lease_is_running(self, alice: Person, rows: Rows, standin: StandIn) -> None:
        """Another one without a reply stays interrupted."""
        standin.fault("server_error", match="hello", times=None)
        path = f"/conversations/{alice.say('hello').json['conversation_id']}"
        hold(rows, path, 60)
        assert [turn["status"] for turn in alice.get(path).json["turns"]] == ["interrupted"]
        hold(rows, path, 60, alice.get(path).json["turns"][0]["turn_id"])
        assert [turn["status"] for turn in alice.get(path).json["turns"]] == ["running"]

    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
    def test_pages_hold_each_turn_once(self, alice: Person, standin: StandIn, limit: int) -> None:
        """Interrupted turns, which have no reply, are among them."""
        path = begin(alice, "hello 0")
        standin.fault("server_error", match="odd", times=None)
        said = ["hello 0"]
        for number in range(1, 7):
            said.append(f"odd {number}" if number % 2 else f"hello {number}")
            alice.say(said[-1], id_in(path))
        turns = read_all(alice, path, "turns", limit)
        assert [turn["message"] for turn in turns] == said[::-1]
        assert [turn["status"] for turn in turns] == ["interrupted" if "odd" in text else "done" for text in said[::-1]]

    def test_pages_are_stable_while_turns_come(self, alice: Person) -> None:
        """The older pages do not change."""
        path = begin(alice, "hello 0", "hello 1", "hello 2")
        first = alice.get(path, limit=1).json
        alice.say("hello 3", id_in(path))
        second = alice.get(path, cursor=first["next_cursor"]).json
        assert [turn["message"] for turn in second["turns"]] == ["hello 1", "hello 0"]

    def test_a_page_of_long_turns_ends_early(self, alice: Person, monkeypatch: pytest.MonkeyPatch) -> None:
        """It has at least one turn, and the next page goes on."""
        from chat import conversation_routes

        path = begin(alice, "hello 0", "hello 1", "hello 2")
        size = len(json.dumps(alice.get(path).json["turns"][0]))
        for bytes_on_page, expected in ((1, 1), (size * 5 // 2, 2)):
            monkeypatch.setattr(conversation_routes, "MAX_PAGE_BYTES", bytes_on_page)
            assert len(alice.get(path).json["turns"]) == expected
            assert len(read_all(alice, path, "turns", 3)) == 3


class TestRename:
    """A title is plain text of 1 to 200 characters."""

    @pytest.mark.parametrize(
        ("title", "kept"),
        [
            ("Groceries", "Groceries"),
            ("  padded ", "padded"),
            ("\U0001f95b" * 200, "\U0001f95b" * 200),
            ("a\u00adb\u200bc", "abc"),
            ("e\u0301", "\u00e9"),
            ("<b>'; drop table conversation; --", "<b>'; drop table conversation; --"),
        ],
    )
    def test_a_title_is_kept_as_plain_text(self, alice: Person, title: str, kept: str) -> None:
        """The answer is the conversation, with the same activity as before."""
        path = begin(alice)
        before = alice.get("/conversations").json["conversations"][0]
        answer = alice.call("PATCH", path, {"title": title})
        assert (answer.status, answer.json) == (200, before | {"title": kept})
        assert alice.get("/conversations").json["conversations"] == [before | {"title": kept}]

    @pytest.mark.parametrize(
        "body",
        [
            b"{}",
            b'{"title": null}',
            b'{"title": 1}',
            b'{"title": ["a"]}',
            b'{"title": ""}',
            b'{"title": "   "}',
            b'{"title": "\\u200b"}',
            b'{"title": "a\\u0000b"}',
            b'{"title": "\\u001b[31m"}',
            json.dumps({"title": "x" * 201}).encode(),
            json.dumps({"title": "\U0001f95b" * 201}).encode(),
            json.dumps({"title": "a", CANARY: 1}).encode(),
            b'["title"]',
            b'"title"',
            b"null",
        ],
    )
    def test_another_body_gets_422(self, alice: Person, body: bytes) -> None:
        """The answer names the field, and not its value."""
        path = begin(alice)
        assert_problem(alice.call("PATCH", path, body), "invalid-input", "fields")
        assert alice.get(path).json["title"] == ADD

    @pytest.mark.parametrize("body", [b"", b"{", b"title=a", b"\xff", CANARY.encode(), b'{"title": "\\ud800"}'])
    def test_a_body_that_is_no_json_gets_400(self, alice: Person, body: bytes) -> None:
        """A lone surrogate is no JSON text either."""
        assert_problem(alice.call("PATCH", begin(alice), body), "not-json")

    def test_a_body_that_is_too_large_gets_413(self, alice: Person) -> None:
        """It has one byte more than 32 KiB."""
        body = b'{"title": "a"}'
        assert_problem(alice.call("PATCH", UNKNOWN, body.ljust(MAX_BODY + 1)), "body-too-large")
        assert_problem(alice.call("PATCH", UNKNOWN, body.ljust(MAX_BODY)), "not-found")

    def test_another_media_type_gets_415(self, alice: Person) -> None:
        """The body must be declared as JSON."""
        headers = {"authorization": f"Bearer {alice.token}", "content-type": f"text/{CANARY}"}
        answer = send("PATCH", f"/api/{alice.id}{UNKNOWN}", headers, b'{"title": "a"}')
        assert_problem(answer, "unsupported-media-type")

    def test_a_conversation_may_be_renamed_while_a_turn_runs(self, alice: Person, rows: Rows) -> None:
        """The lease stays as it is."""
        path = begin(alice)
        hold(rows, path, 60)
        before = db_assertions.lease(rows, alice.id, id_in(path))
        assert alice.call("PATCH", path, {"title": "Groceries"}).json["running"]
        assert db_assertions.lease(rows, alice.id, id_in(path)) == before


def send(method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Response:
    """Send any request to the handler."""
    from chat.app import handler

    return invoke(handler, event(method, path, headers=headers, body=body))


class TestDelete:
    """A deleted conversation leaves its tool calls, without any text."""

    def test_the_calls_stay_as_audit_only(self, alice: Person, rows: Rows, logs: Logs) -> None:
        """Messages go. The calls keep tool, outcome and times, and say why they hold nothing else."""
        kept, gone = begin(alice, OTHER), begin(alice, ADD, example.fail())
        before = rows.execute("select * from tool_call where user_id = %s order by 2, 3", [alice.id]).fetchall()
        answer = alice.call("DELETE", gone)
        assert (answer.status, answer.body) == (204, "")
        after = rows.execute("select * from tool_call where user_id = %s order by 2, 3", [alice.id]).fetchall()
        assert after == [
            row | {"arguments": {}, "result": DELETED} if str(row["conversation_id"]) == id_in(gone) else row
            for row in before
        ]
        assert stored(rows, alice) == {"conversation": 1, "message": 2, "tool_call": len(before)}
        assert [row["id"] for row in alice.get("/conversations").json["conversations"]] == [id_in(kept)]
        (line,) = [line for line in logs() if line["message"] == "conversation deleted"]
        assert {name: line[name] for name in ("schema", "actor", "conversation_id", "turns", "tool_calls")} == {
            "schema": "taskchat.upkeep/1",
            "actor": alice.id,
            "conversation_id": id_in(gone),
            "turns": 2,
            "tool_calls": len(before) - 1,
        }

    def test_a_name_that_no_tool_has_goes_too(self, alice: Person, rows: Rows, standin: StandIn) -> None:
        """A model may have written the person's words there."""
        standin.fault("call", calls=[{"name": "call_my_lawyer", "arguments": {}}, example.call_list()], match="hello")
        assert alice.call("DELETE", begin(alice, "hello")).status == 204
        found = rows.execute("select tool from tool_call where user_id = %s", [alice.id])
        assert {row["tool"] for row in found} == {UNKNOWN_TOOL, example.list_tool}

    def test_a_second_deletion_finds_nothing(self, alice: Person) -> None:
        """So do all other requests."""
        path = begin(alice)
        alice.call("DELETE", path)
        for method, body in (("DELETE", b""), ("GET", b""), ("PATCH", {"title": "a"})):
            assert_problem(alice.call(method, path, body), "not-found")
        assert_problem(alice.say(OTHER, id_in(path)), "not-found")

    def test_a_running_turn_keeps_its_conversation(self, alice: Person, rows: Rows) -> None:
        """The answer says when to try again, and nothing is gone."""
        path = begin(alice)
        hold(rows, path, 60)
        before = stored(rows, alice)
        answer = alice.call("DELETE", path)
        assert_problem(answer, "turn-in-progress")
        assert 1 <= int(answer.headers["retry-after"]) <= 2
        assert stored(rows, alice) == before
        assert alice.get(path).json["turns"][0]["tool_calls"][0]["arguments"] != {}

    @pytest.mark.parametrize("after_calls", [0, 1])
    def test_an_interrupted_turn_goes_with_its_conversation(
        self, alice: Person, rows: Rows, standin: StandIn, after_calls: int
    ) -> None:
        """The call that it made stays without text, and its effect stays too."""
        standin.fault("server_error", match=ADD, times=None, after_calls=after_calls)
        path = f"/conversations/{alice.say(ADD).json['conversation_id']}"
        assert alice.call("DELETE", path).status == 204
        assert stored(rows, alice) == {"conversation": 0, "message": 0, "tool_call": after_calls}
        assert len(example.rows_of(rows, alice.id)) == after_calls

    @pytest.mark.parametrize("is_first", [True, False], ids=["that began it", "in it"])
    @pytest.mark.parametrize("fails", [True, False], ids=["interrupted", "done"])
    def test_a_retry_of_a_deleted_turn_does_nothing(
        self, alice: Person, rows: Rows, standin: StandIn, *, is_first: bool, fails: bool
    ) -> None:
        """The request with its key gets 404, no model is asked, and nothing is done twice."""
        place = None if is_first else id_in(begin(alice, "hello"))
        if fails:
            standin.fault("server_error", match=ADD, times=None, after_calls=1)
        answer = alice.say(ADD, place, key="k")
        assert alice.call("DELETE", f"/conversations/{answer.json['conversation_id']}").status == 204
        standin.reset()
        before = stored(rows, alice)
        for message in (ADD, OTHER):
            assert_problem(alice.say(message, place, key="k"), "not-found")
        assert (stored(rows, alice), standin.requests()) == (before, [])
        assert example.rows_of(rows, alice.id) == [example.row("buy milk")]

    def test_of_two_deletions_at_once_one_finds_it(self, alice: Person, rows: Rows, server: Postgres) -> None:
        """Both wait for the same lock. Then the second finds nothing."""
        from chat.app import app

        path = begin(alice)
        reset_processes()
        with serving(app) as url, ThreadPoolExecutor(4) as pool:
            statuses = sorted(pool.map(lambda _: request(url, alice, "DELETE", path).status_code, range(4)))
        assert statuses == [204, 404, 404, 404]
        assert stored(rows, alice) == {"conversation": 0, "message": 0, "tool_call": 1}

    def test_a_deletion_that_waited_sees_that_it_is_gone(self, alice: Person, rows: Rows, server: Postgres) -> None:
        """Another process deletes the conversation while this one waits for its lock."""
        path = begin(alice)
        with psycopg.connect(server.superuser_url) as other, ThreadPoolExecutor(1) as pool:
            other.execute("delete from conversation where id = %s", [id_in(path)])
            waiting = pool.submit(_commit_once_awaited, rows, other)
            assert_problem(alice.call("DELETE", path), "not-found")
            waiting.result()


def _commit_once_awaited(rows: Rows, other: psycopg.Connection[Any]) -> None:
    """Commit when another transaction waits for a lock."""
    from dev import processes

    for _ in processes.attempts(20):
        if rows.execute("select from pg_locks where not granted").fetchall():
            return other.commit()
    raise AssertionError("no transaction waits")


def request(url: str, person: Person, method: str, path: str, **options: Any) -> httpx2.Response:
    """Send a request over HTTP."""
    headers = {"authorization": f"Bearer {person.token}"}
    return httpx2.request(method, f"{url}/api/{person.id}{path}", headers=headers, timeout=30, **options)


class TestRunningTurn:
    """A turn runs in one process while other requests come."""

    @pytest.fixture
    def url(self, alice: Person) -> Iterator[str]:
        """Serve the app over HTTP."""
        from chat.app import app

        with serving(app) as url:
            yield url

    @pytest.fixture
    def running(self, url: str, alice: Person, standin: StandIn) -> Iterator[Callable[[int], Any]]:
        """Give a function that begins a turn which waits for its model after some calls, and returns its answer."""
        with ThreadPoolExecutor(1) as pool:

            def run(after_calls: int) -> Any:
                standin.fault("hang", match=ADD, after_calls=after_calls)
                turn = pool.submit(request, url, alice, "POST", "/chat", json={"message": ADD})
                standin.waiting(at_least=1)
                return turn

            yield run
            standin.release()

    def test_it_shows_and_keeps_its_conversation(
        self, url: str, alice: Person, standin: StandIn, running: Callable[[int], Any]
    ) -> None:
        """A deletion gets 409 while it runs, and 204 afterwards."""
        turn = running(1)
        (found,) = request(url, alice, "GET", "/conversations").json()["conversations"]
        path = f"/conversations/{found['id']}"
        assert found["running"]
        (shown,) = request(url, alice, "GET", path).json()["turns"]
        assert (shown["status"], shown["response"], len(shown["tool_calls"])) == ("running", None, 1)
        assert request(url, alice, "DELETE", path).status_code == 409
        standin.release()
        assert turn.result().status_code == 200
        (shown,) = request(url, alice, "GET", path).json()["turns"]
        assert (shown["status"], shown["response"]) == ("done", turn.result().json()["response"])
        assert request(url, alice, "DELETE", path).status_code == 204

    @pytest.mark.parametrize("after_calls", [0, 1])
    def test_without_its_conversation_it_writes_nothing(
        self, url: str, alice: Person, rows: Rows, standin: StandIn, running: Callable[[int], Any], after_calls: int
    ) -> None:
        """Its lease ran out and the person deleted the conversation. What it wants to write then is refused."""
        turn = running(after_calls)
        db_assertions.let_leases_run_out(rows, alice.id)
        (found,) = request(url, alice, "GET", "/conversations").json()["conversations"]
        path = f"/conversations/{found['id']}"
        assert [shown["status"] for shown in request(url, alice, "GET", path).json()["turns"]] == ["interrupted"]
        assert request(url, alice, "DELETE", path).status_code == 204
        before = stored(rows, alice), example.rows_of(rows, alice.id)
        assert before[0] == {"conversation": 0, "message": 0, "tool_call": after_calls}
        standin.release()
        assert turn.result().status_code == 409
        assert (stored(rows, alice), example.rows_of(rows, alice.id)) == before
        found = rows.execute("select arguments, result from tool_call where user_id = %s", [alice.id]).fetchall()
        assert found == [{"arguments": {}, "result": DELETED}] * after_calls


ROUTES = [("GET", "/conversations"), ("GET", UNKNOWN), ("PATCH", UNKNOWN), ("DELETE", UNKNOWN)]


class TestAccess:
    """The routes check the caller as the chat does, and give no hint of what others have."""

    @pytest.mark.parametrize(("method", "path"), ROUTES)
    @pytest.mark.parametrize("authorization", [None, "Bearer x.y.z", f"Basic {CANARY}"])
    def test_an_invalid_token_gets_401(self, alice: Person, method: str, path: str, authorization: str | None) -> None:
        """It comes before the query and the body."""
        headers = {"authorization": authorization} if authorization else {}
        answer = send(method, f"/api/{alice.id}{path}", headers, b"{")
        assert_problem(answer, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"

    @pytest.mark.parametrize(("method", "path"), ROUTES)
    def test_another_users_path_gets_403(self, alice: Person, bob: Person, method: str, path: str) -> None:
        """So it does with a bad query."""
        assert_problem(alice.call(method, path, b"{", of=bob.id, limit=CANARY), "forbidden")

    @pytest.mark.parametrize(("method", "body"), [("GET", b""), ("PATCH", {"title": "stolen"}), ("DELETE", b"")])
    def test_anothers_conversation_is_like_none(
        self, alice: Person, bob: Person, rows: Rows, method: str, body: Any
    ) -> None:
        """The bytes of the answers are the same, and nothing happens."""
        path = begin(bob)
        before = bob.get(path).body, stored(rows, bob)
        known, unknown = alice.call(method, path, body), alice.call(method, UNKNOWN, body)
        assert_problem(known, "not-found")
        assert known.headers.pop("x-request-id") != unknown.headers.pop("x-request-id")
        assert (known.body, known.headers) == (unknown.body, unknown.headers)
        assert (bob.get(path).body, stored(rows, bob)) == before

    @pytest.mark.parametrize(
        "odd",
        [
            "x",
            CANARY,
            "null",
            "%00",
            "..",
            "%2e%2e",
            "a" * 4000,
            "{00000000-0000-4000-8000-000000000000}",
            "urn:uuid:00000000-0000-4000-8000-000000000000",
            "00000000000040008000000000000000",
            "\u0661" * 8 + "-0000-4000-8000-000000000000",
            "' or true --",
            "\U0001f95b",
        ],
    )
    def test_an_odd_id_gets_404(self, alice: Person, odd: str) -> None:
        """It is no other form of an id either."""
        for method, body in (("GET", b""), ("PATCH", {"title": "a"}), ("DELETE", b"")):
            assert_problem(alice.call(method, f"/conversations/{odd}", body), "not-found")

    def test_other_methods_get_405(self, alice: Person) -> None:
        """`Allow` has every method of the path."""
        for method in ("HEAD", "PUT", "POST", "OPTIONS", "QUERY"):
            answer = alice.call(method, UNKNOWN)
            assert (answer.status, answer.headers["allow"]) == (405, "GET, PATCH, DELETE")
            assert alice.call(method, "/conversations").headers["allow"] == "GET"
        assert_problem(alice.call("PUT", UNKNOWN), "method-not-allowed")


BAD_QUERIES = {
    "limit": ["0", "-1", "101", "1.5", "", "x", "null", "1e3", "9" * 5000, "\u0661", CANARY],
    "cursor": ["", "x", "W10", CANARY, "null", "a" * 1001, "\x00", "\U0001f95b", "W251bGxd", "W251bGwsbnVsbF0"],
    "offset": ["1"],
}


class TestQuery:
    """A query that does not fit is refused by the name of its parameter."""

    @pytest.mark.parametrize(
        ("name", "value"), [(name, value) for name, found in BAD_QUERIES.items() for value in found]
    )
    @pytest.mark.parametrize("path", ["/conversations", "one"])
    def test_a_bad_parameter_gets_422(self, alice: Person, name: str, value: str, path: str) -> None:
        """The answer has neither its value nor an unknown name."""
        answer = alice.get(begin(alice, "hello") if path == "one" else path, **{name: value})
        assert_problem(answer, "invalid-input", "fields")
        assert [fault["field"] for fault in answer.json["fields"]] == ["unknown" if name == "offset" else name]
        assert "offset" not in answer.body

    @pytest.mark.parametrize(
        "place",
        [
            (None, None),
            ("2026-11-23T08:00:00", str(uuid4())),
            ("2026-11-23T08:00:00+14:00", str(uuid4())),
            ("0001-01-01T00:00:00+23:59", str(uuid4())),
            ("10000-01-01T00:00:00+00:00", str(uuid4())),
            ("infinity", str(uuid4())),
            (1, 2),
            ("2026-11-23T08:00:00+00:00", "x"),
            ("2026-11-23T08:00:00+00:00", 5),
            ("2026-11-23T08:00:00+00:00",),
            ("2026-11-23T08:00:00+00:00", str(uuid4()), 1),
        ],
    )
    def test_a_made_up_place_gets_422(self, alice: Person, place: tuple[Any, ...]) -> None:
        """The cursor is well written, and no list wrote it."""
        assert_problem(alice.get("/conversations", cursor=cursor.write(*place)), "invalid-input", "fields")

    @pytest.mark.parametrize("place", [None, -1, 2**31, 2**63, 10**400, "1", True, 1.5])
    def test_a_made_up_position_gets_422(self, alice: Person, place: Any) -> None:
        """A number that Postgres cannot hold is among them."""
        path = begin(alice, "hello")
        assert_problem(alice.get(path, cursor=cursor.write(place)), "invalid-input", "fields")

    @pytest.mark.parametrize("place", ["0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59.999999+00:00"])
    def test_any_place_in_time_is_accepted(self, alice: Person, place: str) -> None:
        """The page is empty or the first."""
        begin(alice, "hello")
        answer = alice.get("/conversations", cursor=cursor.write(place, str(uuid4())))
        assert (answer.status, len(answer.json["conversations"])) == (200, int(place > "2"))

    def test_a_cursor_gives_nobody_anothers_rows(self, alice: Person, bob: Person) -> None:
        """It holds a place and no owner."""
        for _ in range(2):
            begin(alice, "hello")
        place = alice.get("/conversations", limit=1).json["next_cursor"]
        assert bob.get("/conversations", cursor=place).json == {"conversations": [], "next_cursor": None}

    def test_a_query_of_any_bytes_is_answered(self, alice: Person) -> None:
        """Bytes that are no UTF-8, and half an escape."""
        from chat.app import handler

        headers = {"authorization": f"Bearer {alice.token}"}
        for query in ("cursor=%ff", "cursor=%", "limit=%00", "&&=", "%ff=1", "cursor=" + quote("\u202e")):
            sent = event("GET", f"/api/{alice.id}/conversations", headers=headers, query=query)
            assert invoke(handler, sent).status in (200, 422), query


def shape(value: Any) -> Any:
    """Return the names of all members, and the kinds of the other values, without those of the domain's own."""
    if isinstance(value, dict):
        return {name: name in ("arguments", "result") or shape(item) for name, item in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else type(value)


def test_the_examples_are_answers(alice: Person) -> None:
    """Each request of the description gets an answer with the members of its example. The lists have a second page."""
    from chat.app import app

    path = begin(alice, "hello", ADD)
    begin(alice, ADD)
    paths = app.openapi()["paths"]
    for place, route, query in (("", "/conversations", {"limit": 1}), ("/{conversation_id}", path, {"limit": 1})):
        described = paths[f"/api/{{user_id}}/conversations{place}"]
        for method, operation in described.items():
            example = (
                operation["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("example")
            )
            sent = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example", b"")
            if example:
                answer = alice.call(method.upper(), route, sent, **(query if method == "get" else {}))
                assert (answer.status, shape(answer.json)) == (200, shape(example)), (route, method)
    assert sum("example" in str(operation) for path in paths.values() for operation in path.values()) >= 4


def test_every_route_is_described(alice: Person) -> None:
    """It has a summary, a unique id, and each of its problems as problem+json."""
    from chat.app import app

    operations = [
        (path, method, operation)
        for path, found in app.openapi()["paths"].items()
        for method, operation in found.items()
    ]
    assert len({operation["operationId"] for _, _, operation in operations}) == len(operations)
    common = {"401", "403", "404", "422", "429", "500", "503", "504"}
    more = {"patch": {"400", "413", "415"}, "delete": {"409"}}
    for path, method, operation in operations:
        if not path.startswith("/api/{user_id}/conversations"):
            continue
        problems = {status: found for status, found in operation["responses"].items() if int(status) >= 400}
        assert operation["summary"]
        assert set(problems) == common | more.get(method, set())
        assert {kind for found in problems.values() for kind in found["content"]} == {"application/problem+json"}


def test_each_request_takes_three_roundtrips_at_most(
    alice: Person, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process has prepared the statements, as on Lambda."""
    from chat.app import process

    path = begin(alice)
    roundtrips = {}
    with counting_proxy.running(server.app_url) as between:
        monkeypatch.setenv("DATABASE_URL", between.url(server.app_url))
        reset_processes()
        process.connect()
        requests = [("GET", "/conversations", b""), ("GET", path, b""), ("PATCH", path, {"title": "a"})]
        for method, route, body in [*requests, ("DELETE", path, b"")]:
            between.reset()
            assert alice.call(method, route, body).status < 300
            roundtrips[f"{method} {route.replace(path, 'one')}"] = between.roundtrips
        reset_processes()
    assert roundtrips == {"GET /conversations": 2, "GET one": 2, "PATCH one": 2, "DELETE one": 3}
