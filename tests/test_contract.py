"""The HTTP contract, through the real handler: the answer to each request, and that a refused one does nothing."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from testing.callers import AUTH, RESOURCE
from testing.gateway import Response, event, invoke, runtime_log
from tests.conftest import ROOT, Logs, Person, run

Rows = psycopg.Connection[dict[str, Any]]
Counts = Callable[[], list[int]]

CANARY = "zanzibarquux"
"""A word that no answer and no log line may hold, in whatever a caller sends."""

MAX_BODY = 32 * 1024

TYPES = {
    "malformed": 400,
    "not-json": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "origin-refused": 403,
    "not-found": 404,
    "method-not-allowed": 405,
    "not-acceptable": 406,
    "turn-in-progress": 409,
    "body-too-large": 413,
    "unsupported-media-type": 415,
    "misdirected": 421,
    "invalid-input": 422,
    "idempotency-key-reused": 422,
    "too-many-requests": 429,
    "internal": 500,
    "model-failed": 502,
    "unavailable": 503,
    "database-unavailable": 503,
    "key-set-unavailable": 503,
    "out-of-time": 504,
}
"""Clients tell problems apart by these: a type may be added, never renamed, reused or given another status."""


@pytest.fixture(scope="session")
def database_url(server: Postgres) -> str:
    """Postgres itself: what is answered over HTTP does not depend on the way to it."""
    return server.app_url


@pytest.fixture
def counts(rows: Rows) -> Counts:
    """How many rows each of the tables holds, everybody's."""
    tables = ["conversation", "message", "tool_call", "task", "allowance"]
    return lambda: [rows.execute(f"select count(*) from {table}").fetchone()["count"] for table in tables]  # type: ignore[index]  # noqa: S608


@pytest.fixture
def unmoved(counts: Counts) -> Iterator[None]:
    """At the end of the test, the tables hold what they held before it."""
    before = counts()
    yield
    assert counts() == before


@pytest.fixture
def silent(logs: Logs, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Nothing that is logged or printed while the test runs, at the level that Lambda logs at, holds the canary."""
    with runtime_log() as written:
        yield
    assert CANARY not in json.dumps(logs()) + written.getvalue() + "".join(capfd.readouterr())


def send(method: str, path: str, *, headers: dict[str, str] | None = None, body: bytes = b"") -> Response:
    """Any request at all, through the handler."""
    from chat.app import handler

    return invoke(handler, event(method, path, headers=headers, body=body))


def bearer(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"authorization": f"Bearer {token}"}


def assert_problem(answer: Response, slug: str, *members: str) -> None:
    """The answer is this problem and nothing but: type, title, status, and the `members` named."""
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["type"] == f"urn:taskchat:problem:{slug}"
    assert answer.json["status"] == answer.status == TYPES[slug]
    assert answer.json["title"].endswith(".")
    assert answer.json.keys() == {"type", "title", "status", *members}
    assert CANARY not in answer.body + json.dumps(answer.headers)


class TestAnswer:
    """200: what was done, and nothing besides."""

    def test_its_shape(self, alice: Person) -> None:
        """Four members; of each call six, its arguments as the model sent them."""
        answer = alice.say("Add buy milk")
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json.keys() == {"conversation_id", "turn_id", "response", "tool_calls"}
        (call,) = answer.json["tool_calls"]
        assert call.keys() == {"call_id", "tool", "arguments", "outcome", "result", "duration_ms"}
        assert (call["tool"], call["arguments"], call["outcome"]) == ("add_task", {"title": "buy milk"}, "ok")
        assert call["duration_ms"] > 0

    def test_nothing_names_the_person(self, alice: Person) -> None:
        """The person's id is in no part of the answer."""
        answer = alice.say("Add buy milk")
        assert alice.id not in answer.body + json.dumps(answer.headers)

    def test_the_first_answer_is_no_replay(self, alice: Person) -> None:
        """The header that marks a replay is on none but a replay."""
        assert "idempotent-replayed" not in alice.say("hello", key="k").headers

    @pytest.mark.parametrize(
        "body",
        [
            {"message": "hello", "conversation_id": None, "timezone": None},
            {"message": "hello", "timezone": "America/Argentina/Buenos_Aires"},
            {"message": "hello", "timezone": "Etc/GMT+12"},
            {"message": "x" * 4000},
            {"message": "  padded  " + " " * 4000},
            {"message": "\U0001f95b" * 4000},
            {"message": "two\nlines\tand a tab"},
        ],
        ids=["nulls", "three-part zone", "zone with a sign", "longest", "padded", "longest in bytes", "layout"],
    )
    def test_what_fits_is_taken(self, alice: Person, body: dict[str, Any]) -> None:
        """Every field at its limit, and null where a field may be left out."""
        assert alice.post(json.dumps(body, ensure_ascii=False).encode()).status == 200

    @pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", "Application/JSON", "application/json;"])
    def test_json_under_its_other_spellings(self, alice: Person, media_type: str) -> None:
        """Parameters and case of the media type don't matter."""
        assert alice.post({"message": "hello"}, content_type=media_type).status == 200

    def test_the_largest_body(self, alice: Person) -> None:
        """Exactly 32 KiB are not too much."""
        body = json.dumps({"message": "hello"}).encode()
        assert alice.post(body + b" " * (MAX_BODY - len(body))).status == 200

    def test_a_message_in_escapes(self, alice: Person) -> None:
        """The limit in bytes comes before the one in characters: an emoji takes 12 of them, where UTF-8 takes 4."""
        body = b'{"message": "' + b"\\ud83e\\udd5b" * 2_729 + b'"}'
        assert alice.post(body).status == 200
        assert_problem(alice.post(body.replace(b'"}', b'\\ud83e\\udd5b"}')), "body-too-large")

    def test_a_body_in_pieces(self, alice: Person) -> None:
        """A server that hands the body over byte by byte gets the same answer."""
        from chat.app import app

        status, answer = run(_post_in_pieces(app, alice, json.dumps({"message": "Add buy milk"}).encode()))
        assert (status, answer["tool_calls"][0]["result"]["title"]) == (200, "buy milk")

    def test_health(self, environment: None, unmoved: None) -> None:
        """Whoever asks is told that this process answers."""
        answer = send("GET", "/health")
        assert (answer.status, answer.json) == (200, {"status": "ok"})


async def _post_in_pieces(app: Any, person: Person, body: bytes) -> tuple[int, Any]:
    pieces = [{"type": "http.request", "body": bytes([byte]), "more_body": True} for byte in body]
    pieces.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return pieces.pop(0)

    async def keep(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = bearer(person.token) | {"content-type": "application/json"}
    scope = {
        "type": "http",
        "method": "POST",
        "path": f"/api/{person.id}/chat",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    await app(scope, receive, keep)
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent))


@pytest.mark.usefixtures("unmoved", "silent")
class TestWhoIsCalling:
    """401 and 403, settled before anything else of the request is looked at."""

    @pytest.mark.parametrize(
        "authorization",
        [
            None,
            "",
            "Bearer",
            "Bearer ",
            f"Bearer {CANARY}",
            f"Bearer {CANARY}.{CANARY}.{CANARY}",
            f"Basic {CANARY}",
            f"{CANARY}",
            f"Bearer {CANARY}, Bearer {CANARY}",
        ],
    )
    def test_no_token_that_proves_anything(self, alice: Person, authorization: str | None) -> None:
        """401, and how to do better."""
        headers = {"content-type": "application/json"} | ({"authorization": authorization} if authorization else {})
        answer = send("POST", f"/api/{alice.id}/chat", headers=headers, body=b'{"message": "Add milk"}')
        assert_problem(answer, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"

    @pytest.mark.parametrize("body", [CANARY.encode(), b'{"message": 1}', b"x" * (MAX_BODY + 1), b""])
    def test_before_the_body(self, alice: Person, body: bytes) -> None:
        """Who has no token is not told what is wrong with the body."""
        assert_problem(send("POST", f"/api/{alice.id}/chat", body=body), "unauthenticated")

    @pytest.mark.parametrize("headers", [{"content-type": f"text/{CANARY}"}, {"idempotency-key": f" {CANARY} "}])
    def test_before_the_other_headers(self, alice: Person, headers: dict[str, str]) -> None:
        """Nor what is wrong with the other headers."""
        assert_problem(send("POST", f"/api/{alice.id}/chat", headers=headers), "unauthenticated")

    def test_a_stranger_s_signature(self, alice: Person) -> None:
        """A token in perfect order, but signed with another key under the same key id."""
        forged = Person(alice.id, Issuer.new())
        assert_problem(forged.say("Add milk"), "unauthenticated")

    def test_a_token_for_the_other_door(self, alice: Person) -> None:
        """An access token for the MCP endpoint opens nothing here."""
        token = alice.issuer.mint_for_mcp(alice.id, issuer=AUTH, resource=RESOURCE)
        assert_problem(alice.post({"message": "hello"}, authorization=f"Bearer {token}"), "unauthenticated")

    @pytest.mark.parametrize("body", [b'{"message": "Add milk"}', CANARY.encode()])
    def test_the_path_of_another(self, alice: Person, bob: Person, body: bytes) -> None:
        """403, whatever the body: the path must name whom the token names."""
        headers = bearer(alice.token) | {"content-type": "application/json"}
        assert_problem(send("POST", f"/api/{bob.id}/chat", headers=headers, body=body), "forbidden")

    def test_the_path_in_another_case(self, alice: Person) -> None:
        """Ids are compared to the letter."""
        headers = bearer(alice.issuer.mint("Alice", issuer=AUTH, audience=AUTH))
        assert_problem(send("POST", "/api/alice/chat", headers=headers), "forbidden")


@pytest.mark.usefixtures("unmoved", "silent")
class TestNothingHere:
    """404 and 405, in words that tell nothing about what else there is."""

    @pytest.mark.parametrize(
        "path",
        [
            *("/", f"/{CANARY}", "/api", "/api/", "/api/{id}", "/api/{id}/", "/api/{id}/chat/", "/api//chat"),
            *("/api/{id}//chat", "/api/{id}/chat/x", "/api/{id}/../{id}/chat", "/api/./{id}/chat", "/api/{id}/chat/."),
            *("/API/{id}/chat", "/docs", "/redoc", "/openapi.json", "/health/", "/mcp", "/%2e%2e/health"),
        ],
    )
    def test_unknown_paths(self, alice: Person, path: str) -> None:
        """404, and never a redirect."""
        answer = send("POST", path.format(id=alice.id), headers=bearer(alice.token), body=b'{"message": "Add milk"}')
        assert_problem(answer, "not-found")
        assert "location" not in answer.headers

    @pytest.mark.parametrize("odd", ["%2561lice", "a%2Fb", "al%00ice", "%20", "ali.ce", "é", CANARY + "%0A", "x" * 65])
    def test_a_user_that_cannot_be(self, alice: Person, odd: str) -> None:
        """404 for a path whose user is no id: double encoding is not undone, and no character slips through."""
        headers = bearer(alice.token) | {"content-type": "application/json"}
        assert_problem(send("POST", f"/api/{odd}/chat", headers=headers, body=b'{"message": "hello"}'), "not-found")

    def test_unknown_paths_without_a_token(self, environment: None) -> None:
        """404 for everybody: that there is nothing is no secret. Headers, cookies and query are not repeated either."""
        from chat.app import handler

        request = event("GET", f"/{CANARY}", headers={f"x-{CANARY}": CANARY, "referer": CANARY})
        odd = {"rawQueryString": f"{CANARY}={CANARY}", "cookies": [f"{CANARY}={CANARY}"]}
        assert_problem(invoke(handler, request | odd), "not-found")

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [(method, "/api/{id}/chat", "POST") for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS")]
        + [(method, "/health", "GET") for method in ("POST", "PUT", "DELETE")],
    )
    def test_another_method(self, alice: Person, method: str, path: str, allowed: str) -> None:
        """405, with the method that is allowed."""
        answer = send(method, path.format(id=alice.id), headers=bearer(alice.token))
        assert_problem(answer, "method-not-allowed")
        assert answer.headers["allow"] == allowed


def test_a_conversation_that_is_another_s(alice: Person, bob: Person, counts: Counts) -> None:
    """To the last byte what one that does not exist is answered with, and as an unknown path is."""
    theirs = bob.say("Add feed the cat").json["conversation_id"]
    before = counts()
    answer = alice.say("Add buy milk", theirs)
    assert_problem(answer, "not-found")
    assert counts() == before
    for other in (alice.say("Add buy milk", str(uuid4())), send("GET", "/nowhere")):
        assert (other.status, other.headers, other.body) == (answer.status, answer.headers, answer.body)


INVALID = {
    "no message": {},
    "null": {"message": None},
    "empty": {"message": ""},
    "blank": {"message": " \n\t "},
    "number": {"message": 1},
    "list": {"message": [CANARY]},
    "object": {"message": {CANARY: CANARY}},
    "too long": {"message": CANARY * 400},
    "NUL": {"message": f"{CANARY}\x00"},
    "escape": {"message": f"{CANARY}\x1b[31m"},
    "C1 control": {"message": f"{CANARY}\x85"},
    "carriage return": {"message": f"{CANARY}\r"},
    "id is no UUID": {"message": CANARY, "conversation_id": CANARY},
    "id is nearly a UUID": {"message": CANARY, "conversation_id": "12345678-1234-1234-1234-12345678901q"},
    "id is a number": {"message": CANARY, "conversation_id": 1},
    "id is empty": {"message": CANARY, "conversation_id": ""},
    "zone unknown": {"message": CANARY, "timezone": f"Europe/{CANARY}"},
    "zone of another kind": {"message": CANARY, "timezone": 1},
    "zone empty": {"message": CANARY, "timezone": ""},
    "zone too long": {"message": CANARY, "timezone": CANARY * 6},
    "zone is a path": {"message": CANARY, "timezone": f"../../{CANARY}"},
    "zone is a directory": {"message": CANARY, "timezone": "Europe"},
    "zone is absolute": {"message": CANARY, "timezone": "/etc/passwd"},
    "zone is a file beside the zones": {"message": CANARY, "timezone": "zone.tab"},
    "unknown field": {"message": "hello", CANARY: CANARY},
    "user_id": {"message": "hello", "user_id": CANARY},
}
AT_FAULT = {"no": "message", "id": "conversation_id", "zone": "timezone", "unknown": "unknown", "user_id": "unknown"}


@pytest.mark.usefixtures("unmoved", "silent")
class TestBody:
    """400, 413, 415 and 422: a body that breaks the contract."""

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b" ",
            CANARY.encode(),
            b'{"message": "' + CANARY.encode(),
            b'{"message": "x",}',
            b"{'message': 'x'}",
            b'\xef\xbb\xbf{"message": "x"}',
            b'{"message": "\xff\xfe"}',
            b'{"message": "\xed\xa0\x80"}',
            b'{"message": "\x00"}',
            b'{"message": "\\ud800"}',
            b"[" * 30_000,
            b'{"message": "x"} {"message": "y"}',
        ],
    )
    def test_not_json(self, alice: Person, body: bytes) -> None:
        """400: no text at all, cut off, in another notation, in another encoding, or nested without end."""
        assert_problem(alice.post(body), "not-json")

    @pytest.mark.parametrize("body", [b"1", b"null", b'"zanzibarquux"', b"[]", b'["zanzibarquux"]', b"NaN", b"1e999"])
    def test_another_kind_of_json(self, alice: Person, body: bytes) -> None:
        """422 for JSON that is no object."""
        answer = alice.post(body)
        assert_problem(answer, "invalid-input", "fields")
        assert [fault["field"] for fault in answer.json["fields"]] == ["body"]

    @pytest.mark.parametrize("name", INVALID)
    def test_a_field_at_fault(self, alice: Person, name: str) -> None:
        """422 names the field and says why, in words that hold nothing of what was sent."""
        answer = alice.post(INVALID[name])
        assert_problem(answer, "invalid-input", "fields")
        (fault,) = answer.json["fields"]
        assert fault.keys() == {"field", "message"}
        assert fault["field"] == AT_FAULT.get(name.split()[0], "message")
        assert fault["message"]

    def test_every_field_at_fault(self, alice: Person) -> None:
        """All of them at once, so that a client need not try again for each."""
        answer = alice.post({"conversation_id": CANARY, "timezone": CANARY, CANARY: 1})
        assert [fault["field"] for fault in answer.json["fields"]] == [
            "message",
            "conversation_id",
            "timezone",
            "unknown",
        ]

    @pytest.mark.parametrize("value", ["a", "#", "\u00e9", "7f"])
    def test_not_one_character_comes_back(self, alice: Person, value: str) -> None:
        """However a bad id is spelled, the answer is the same."""
        answers = {alice.post({"message": "x", "conversation_id": bad}).body for bad in (value, "zzz")}
        assert len(answers) == 1

    @pytest.mark.parametrize("number", [b"NaN", b"1e999", b"-0", b"123456789012345678901234567890"])
    def test_odd_numbers(self, alice: Person, number: bytes) -> None:
        """422: nothing that reads as a number breaks the answer about it."""
        assert_problem(alice.post(b'{"message": ' + number + b"}"), "invalid-input", "fields")

    @pytest.mark.parametrize("excess", [1, 10_000])
    def test_too_large(self, alice: Person, excess: int) -> None:
        """413 from the first byte over 32 KiB on, whether the body is JSON or not."""
        body = b'{"message": "' + CANARY.encode() + b'"}'
        assert_problem(alice.post(body + b" " * (MAX_BODY + excess - len(body))), "body-too-large")

    @pytest.mark.parametrize(
        "media_type", ["", "text/plain", f"text/{CANARY}", "application/jsonx", "application/x-www-form-urlencoded"]
    )
    def test_another_media_type(self, alice: Person, media_type: str) -> None:
        """415, even when the body would be JSON."""
        assert_problem(alice.post({"message": "Add milk"}, content_type=media_type), "unsupported-media-type")

    def test_no_media_type(self, alice: Person) -> None:
        """415: a body must say what it is."""
        path = f"/api/{alice.id}/chat"
        answer = send("POST", path, headers=bearer(alice.token), body=b'{"message": "Add milk"}')
        assert_problem(answer, "unsupported-media-type")

    @pytest.mark.parametrize(
        "key", ["", " ", f"{CANARY} {CANARY}", f"{CANARY}\u00e9", f"{CANARY}\t", "x" * 256, "\x7f"]
    )
    def test_a_bad_idempotency_key(self, alice: Person, key: str) -> None:
        """422 for a key that is empty, too long, or not visible ASCII."""
        answer = alice.post({"message": "Add milk"}, idempotency_key=key)
        assert_problem(answer, "invalid-input", "fields")
        assert [fault["field"] for fault in answer.json["fields"]] == ["Idempotency-Key"]


class TestOnce:
    """A turn happens once."""

    @pytest.mark.parametrize("key", ["a", "~" * 255, '"quoted"', "0"])
    def test_a_key_that_comes_back(self, alice: Person, counts: Counts, key: str) -> None:
        """The same bytes again, marked as such, and no second effect."""
        first = alice.say("Add buy milk", key=key)
        before = counts()
        again = alice.say("Add buy milk", key=key)
        assert (again.status, again.body) == (first.status, first.body)
        assert again.headers["idempotent-replayed"] == "true"
        assert counts() == before

    def test_the_model_is_not_asked_again(self, alice: Person, standin: StandIn) -> None:
        """A replay comes from the database alone."""
        alice.say("Add buy milk", key="k")
        asked = len(standin.requests())
        alice.say("Add buy milk", key="k")
        assert len(standin.requests()) == asked

    @pytest.mark.parametrize(
        "other",
        [
            {"message": "Add buy bread"},
            {"message": "Add buy milk", "timezone": "Europe/Paris"},
            {"message": "Add buy milk", "conversation_id": str(uuid4())},
        ],
    )
    def test_a_key_with_another_body(self, alice: Person, counts: Counts, other: dict[str, Any]) -> None:
        """422, whichever field differs, and nothing is done."""
        alice.say("Add buy milk", key="k")
        before = counts()
        assert_problem(alice.post(other, key="k"), "idempotency-key-reused")
        assert counts() == before

    def test_a_key_is_its_owner_s(self, alice: Person, bob: Person) -> None:
        """Two people may use the same key, and each gets their own turn."""
        hers, his = alice.say("Add buy milk", key="k"), bob.say("Add feed the cat", key="k")
        assert "idempotent-replayed" not in his.headers
        assert hers.json["turn_id"] != his.json["turn_id"]

    def test_without_a_key_each_request_is_a_turn(self, alice: Person) -> None:
        """The same words twice are meant twice."""
        first, second = alice.say("Add buy milk").json, alice.say("Add buy milk").json
        assert first["turn_id"] != second["turn_id"]

    def test_a_turn_in_progress(self, alice: Person, rows: Rows, counts: Counts) -> None:
        """409 while another turn holds the conversation, with the seconds until that one must be over."""
        conversation = alice.say("Add buy milk").json["conversation_id"]
        lease = "update conversation set turn_id = %s, lease_until = now() + interval '20 seconds' where id = %s"
        rows.execute(lease, [uuid4(), conversation])
        before = counts()
        answer = alice.say("Add buy bread", conversation)
        assert_problem(answer, "turn-in-progress")
        assert 1 <= int(answer.headers["retry-after"]) <= 20
        assert counts() == before


class TestTrouble:
    """500 and 503: not the caller's fault, and said without a word of what went wrong inside."""

    @pytest.fixture
    def no_database(self, environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """A database that nothing listens for."""
        monkeypatch.setenv("DATABASE_URL", f"postgresql://{CANARY}:{CANARY}@127.0.0.1:1/{CANARY}?sslmode=disable")

    @pytest.fixture
    def no_key_set(self, environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """A key set at an address that nothing listens at."""
        monkeypatch.setenv("AUTH_JWKS_JSON", "")
        monkeypatch.setenv("AUTH_JWKS_URL", f"http://127.0.0.1:1/{CANARY}")

    @pytest.mark.usefixtures("no_database", "silent", "unmoved")
    def test_no_database(self, alice: Person) -> None:
        """503, and when to come back."""
        answer = alice.say(f"Add {CANARY}")
        assert_problem(answer, "database-unavailable")
        assert int(answer.headers["retry-after"]) >= 1

    @pytest.mark.usefixtures("no_database", "silent")
    def test_health_without_a_database(self, environment: None) -> None:
        """As good as ever: anybody may ask, and nobody is to keep a sleeping database awake by asking."""
        assert send("GET", "/health").status == 200

    @pytest.mark.usefixtures("no_key_set", "unmoved")
    def test_no_key_set(self, alice: Person) -> None:
        """503 rather than 401: nobody can tell whether the token is good."""
        answer = alice.say("Add milk")
        assert_problem(answer, "key-set-unavailable")
        assert int(answer.headers["retry-after"]) >= 1

    @pytest.mark.usefixtures("no_key_set", "unmoved")
    def test_no_key_set_needed(self, alice: Person) -> None:
        """A request without a token is a 401 all the same."""
        assert_problem(send("POST", f"/api/{alice.id}/chat"), "unauthenticated")

    @pytest.mark.usefixtures("silent", "unmoved")
    def test_the_unexpected(self, alice: Person, monkeypatch: pytest.MonkeyPatch, logs: Logs) -> None:
        """A plain 500 for the caller; kind and place, but no text, for the log; and nothing half done."""
        from taskchat.conversations import turns as conversations

        def fail(*_: object) -> None:
            raise KeyError(CANARY)

        monkeypatch.setattr(conversations, "keep_within", fail)
        assert_problem(alice.say(f"Add {CANARY}"), "internal")
        (line,) = [line for line in logs() if line["level"] == "ERROR"]
        assert line["error"] == "KeyError"
        assert any("turns.py:" in place for place in line["places"])

    @pytest.mark.usefixtures("silent")
    def test_the_next_request_is_served(self, alice: Person, monkeypatch: pytest.MonkeyPatch) -> None:
        """An environment survives what it did not expect."""
        from taskchat.conversations import turns as conversations

        with monkeypatch.context() as broken:
            broken.delattr(conversations, "_new_message")
            assert alice.say("hello").status == 500
        assert alice.say("hello").status == 200


class TestGateway:
    """What a caller can make of the gateway's event does not crash the handler."""

    @pytest.mark.parametrize("host", ["x:abc", "[::1]:443", "x:1:2", "", ":"])
    def test_an_odd_host(self, alice: Person, host: str) -> None:
        """Which host the caller named changes nothing."""
        assert alice.post({"message": "hello"}, host=host).status == 200

    @pytest.mark.parametrize("port", ["abc", "443, 443", ""])
    def test_an_odd_port(self, alice: Person, port: str) -> None:
        """Nor which port a proxy did."""
        assert alice.post({"message": "hello"}, x_forwarded_port=port).status == 200

    @pytest.mark.usefixtures("unmoved", "silent")
    def test_a_surrogate_in_a_text_body(self, alice: Person) -> None:
        """A body that is no Unicode is no JSON."""
        assert_problem(self._post_text(alice, f'{{"message": "{CANARY}\ud800"}}', alice.token), "not-json")

    @pytest.mark.usefixtures("unmoved", "silent")
    def test_a_surrogate_without_a_token(self, alice: Person) -> None:
        """Who is calling comes first here too."""
        assert_problem(self._post_text(alice, "\ud800", CANARY), "unauthenticated")

    def test_a_text_body(self, alice: Person) -> None:
        """The gateway hands JSON over as text, and every character of it arrives."""
        answer = self._post_text(alice, '{"message": "Add caf\u00e9 \U0001f95b"}', alice.token)
        assert answer.json["tool_calls"][0]["result"]["title"] == "caf\u00e9 \U0001f95b"

    def test_no_body(self, alice: Person) -> None:
        """An event may have none."""
        request = event("GET", "/health")
        del request["body"], request["isBase64Encoded"]
        assert self._invoke(request).status == 200

    def _post_text(self, person: Person, body: str, token: str) -> Response:
        headers = bearer(token) | {"content-type": "application/json"}
        request = event("POST", f"/api/{person.id}/chat", headers=headers)
        return self._invoke(request | {"body": body, "isBase64Encoded": False})

    def _invoke(self, request: dict[str, Any]) -> Response:
        from chat.app import handler

        return invoke(handler, request)


class TestTypes:
    """The problem types."""

    def test_they_are_these(self) -> None:
        """Every error of the program has its type in the table, under its status."""
        from taskchat import errors

        kinds = [errors.TaskchatError, *_descendants(errors.TaskchatError)]
        found = {
            kind.slug: kind.status
            for kind in kinds
            if kind is not errors.ToolFailure and kind.__module__ == errors.__name__
        }
        assert found == TYPES


def _descendants(kind: Any) -> list[Any]:
    return [one for child in kind.__subclasses__() for one in (child, *_descendants(child))]


class TestDescription:
    """The OpenAPI description, for whoever writes a client."""

    @pytest.fixture
    def route(self) -> Any:
        """What it says of the chat route."""
        return self.description()["paths"]["/api/{user_id}/chat"]["post"]

    def description(self) -> Any:
        """All of it."""
        from chat.app import app

        return app.openapi()

    def schema(self, content: Any) -> Any:
        """What it says of a body of one media type."""
        return self.description()["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]

    def test_it_is_kept(self) -> None:
        """The file is what the program says: after a change of the contract, `make openapi` writes it anew."""
        assert json.loads((ROOT / "docs" / "openapi.json").read_text()) == self.description()

    def test_every_reference_leads_somewhere(self) -> None:
        """Nothing is described by a schema that is not there."""
        names = self.description()["components"]["schemas"]
        referred = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(self.description())))
        assert referred <= names.keys()

    def test_who_may_call(self, route: Any) -> None:
        """Whoever has a bearer token, which is a JSON Web Token; of `/health` anybody."""
        scheme = self.description()["components"]["securitySchemes"]["bearer"]
        assert (scheme["type"], scheme["scheme"], scheme["bearerFormat"]) == ("http", "bearer", "JWT")
        assert route["security"] == [{"bearer": []}]
        assert "security" not in self.description()["paths"]["/health"]["get"]

    def test_the_headers_of_the_answers(self, route: Any) -> None:
        """How to authenticate, when to come back, and whether it is a replay."""
        found = {status: set(answer.get("headers", {})) for status, answer in route["responses"].items()}
        again = {status: {"Retry-After"} for status in ("409", "429", "502", "503")}
        told = {"200": {"Idempotent-Replayed"}, "401": {"WWW-Authenticate"}} | again
        assert {status: headers for status, headers in found.items() if headers} == told

    def test_the_members_of_the_problems(self, route: Any) -> None:
        """What clients tell problems apart by, the fields at fault, and how far an interrupted turn came."""
        problems = {
            status: set(self.schema(answer["content"]["application/problem+json"])["properties"])
            for status, answer in route["responses"].items()
            if status != "200"
        }
        common = {"type", "title", "status", "detail"}
        turn = {"conversation_id", "turn_id", "tool_calls"}
        more = {"422": {"fields"}, "429": turn, "502": turn, "503": turn, "504": turn}
        assert problems == {status: common | more.get(status, set()) for status in problems}

    def test_the_request(self, route: Any) -> None:
        """The body's schema: the three fields, no other, and which is required."""
        body = route["requestBody"]
        schema = self.schema(body["content"]["application/json"])
        assert body["required"]
        assert schema["properties"].keys() == {"message", "conversation_id", "timezone"}
        assert (schema["required"], schema["additionalProperties"]) == (["message"], False)

    def test_the_parameters(self, route: Any) -> None:
        """The user in the path, the key in the headers."""
        places = {(parameter["name"], parameter["in"]) for parameter in route["parameters"]}
        assert places == {("user_id", "path"), ("Idempotency-Key", "header")}

    def test_every_status(self, route: Any) -> None:
        """All that the contract names, each but 200 as problem+json and nothing else."""
        contract = {200, 400, 401, 403, 404, 409, 413, 415, 422, 429, 502, 503, 504}
        assert set(map(int, route["responses"])) == contract
        kinds = {status: set(answer["content"]) for status, answer in route["responses"].items()}
        assert kinds.pop("200") == {"application/json"}
        assert set().union(*kinds.values()) == {"application/problem+json"}

    def test_it_is_not_served(self, environment: None) -> None:
        """It lies with the code; nobody is handed it over HTTP."""
        assert {send("GET", path).status for path in ("/openapi.json", "/docs", "/redoc")} == {404}
