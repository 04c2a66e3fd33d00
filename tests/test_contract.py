"""The handler answers each HTTP request as the contract says, and does nothing for a refused one."""

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
from tests.domain import example

Rows = psycopg.Connection[dict[str, Any]]
Counts = Callable[[], list[int]]

CANARY = "zanzibarquux"
"""A word in the requests that no answer and no log line may hold."""

ADD, OTHER = example.add("buy milk"), example.add("buy bread")
BODY = json.dumps({"message": ADD}).encode()

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
    "confirmation-required": 428,
    "too-many-requests": 429,
    "internal": 500,
    "model-failed": 502,
    "unavailable": 503,
    "database-unavailable": 503,
    "key-set-unavailable": 503,
    "out-of-time": 504,
}
"""Clients tell problems apart by these. A type may be added, but never renamed, reused or given another status."""


@pytest.fixture(scope="session")
def database_url(server: Postgres) -> str:
    """Use Postgres directly: the HTTP contract does not depend on the pooler."""
    return server.app_url


@pytest.fixture
def counts(rows: Rows) -> Counts:
    """Give a function that counts the rows of each table, of all users."""
    tables = ["conversation", "message", "tool_call", example.table, "allowance"]
    return lambda: [rows.execute(f"select count(*) from {table}").fetchone()["count"] for table in tables]  # type: ignore[index]  # noqa: S608


@pytest.fixture
def no_writes(counts: Counts) -> Iterator[None]:
    """Check that the test leaves the number of rows in each table as it was."""
    before = counts()
    yield
    assert counts() == before


@pytest.fixture
def no_canary_logged(logs: Logs, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Check that no log line and no output at Lambda's log level holds the canary."""
    with runtime_log() as written:
        yield
    assert CANARY not in json.dumps(logs()) + written.getvalue() + "".join(capfd.readouterr())


def send(method: str, path: str, *, headers: dict[str, str] | None = None, body: bytes = b"") -> Response:
    """Send any request to the handler."""
    from chat.app import handler

    return invoke(handler, event(method, path, headers=headers, body=body))


def bearer(token: str) -> dict[str, str]:
    """Return the header with the token."""
    return {"authorization": f"Bearer {token}"}


def assert_problem(answer: Response, slug: str, *members: str) -> None:
    """Check that the answer is this problem, with type, title, status and these `members` only."""
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["type"] == f"urn:taskchat:problem:{slug}"
    assert answer.json["status"] == answer.status == TYPES[slug]
    assert answer.json["title"].endswith(".")
    assert answer.json.keys() == {"type", "title", "status", *members}
    assert_described(answer.json)
    assert CANARY not in answer.body + json.dumps(answer.headers)


def assert_described(problem: Any) -> None:
    """Check that the description of the type has the title, each member, and requires none that is missing."""
    from chat.description import NEVER_ANSWERED

    schemas = json.loads((ROOT / "docs" / "openapi.json").read_text())["components"]["schemas"]
    slug = problem["type"].removeprefix("urn:taskchat:problem:")
    schema = schemas.get("".join(map(str.capitalize, slug.split("-"))) + "Problem")
    if schema is None:
        assert slug in {error.slug for error in NEVER_ANSWERED}
        return
    assert set(schema["required"]) <= problem.keys() <= schema["properties"].keys()
    consts = [schema["properties"][name]["const"] for name in ("type", "status")]
    assert [*consts, *schema["properties"]["title"]["examples"]] == [problem[n] for n in ("type", "status", "title")]


class TestAnswer:
    """A 200 contains what the turn did, and nothing else."""

    def test_an_answer_has_four_members(self, alice: Person) -> None:
        """Each call has six, with the arguments as the model sent them."""
        answer = alice.say(ADD)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json.keys() == {"conversation_id", "turn_id", "response", "tool_calls"}
        (call,) = answer.json["tool_calls"]
        assert call.keys() == {"call_id", "tool", "arguments", "outcome", "result", "duration_ms"}
        assert {"name": call["tool"], "arguments": call["arguments"]} == example.call_add("buy milk")
        assert call["outcome"] == "ok"
        assert call["duration_ms"] > 0

    def test_the_user_id_is_not_in_the_answer(self, alice: Person) -> None:
        """Neither the headers nor the body hold it."""
        answer = alice.say(ADD)
        assert alice.id not in answer.body + json.dumps(answer.headers)

    def test_a_first_answer_is_not_marked_as_a_replay(self, alice: Person) -> None:
        """Only a replay has the header."""
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
    def test_values_within_the_limits_are_accepted(self, alice: Person, body: dict[str, Any]) -> None:
        """Each field has its limit, or null if it is optional."""
        assert alice.post(json.dumps(body, ensure_ascii=False).encode()).status == 200

    @pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", "Application/JSON", "application/json;"])
    def test_json_by_another_name_is_accepted(self, alice: Person, media_type: str) -> None:
        """The media type may have parameters and any case."""
        assert alice.post({"message": "hello"}, content_type=media_type).status == 200

    def test_the_largest_body_is_accepted(self, alice: Person) -> None:
        """It has exactly 32 KiB."""
        body = json.dumps({"message": "hello"}).encode()
        assert alice.post(body + b" " * (MAX_BODY - len(body))).status == 200

    def test_the_limit_in_bytes_comes_first(self, alice: Person) -> None:
        """An escaped emoji takes 12 bytes, so that the body may reach its limit before the message does."""
        body = b'{"message": "' + b"\\ud83e\\udd5b" * 2_729 + b'"}'
        assert alice.post(body).status == 200
        assert_problem(alice.post(body.replace(b'"}', b'\\ud83e\\udd5b"}')), "body-too-large")

    def test_a_body_in_pieces_is_accepted(self, alice: Person) -> None:
        """A server that passes the body on byte by byte gets the same answer."""
        from chat.app import app

        status, answer = run(_post_in_pieces(app, alice, json.dumps({"message": ADD}).encode()))
        assert (status, answer["tool_calls"][0]["result"][example.text]) == (200, "buy milk")

    def test_health_answers(self, environment: None, no_writes: None) -> None:
        """Any client may ask whether the process answers."""
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


@pytest.mark.usefixtures("no_writes", "no_canary_logged")
class TestAuthentication:
    """The handler answers 401 and 403 before it reads the rest of the request."""

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
    def test_an_invalid_token_gets_401(self, alice: Person, authorization: str | None) -> None:
        """The answer names the scheme to use."""
        headers = {"content-type": "application/json"} | ({"authorization": authorization} if authorization else {})
        answer = send("POST", f"/api/{alice.id}/chat", headers=headers, body=BODY)
        assert_problem(answer, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"

    @pytest.mark.parametrize("body", [CANARY.encode(), b'{"message": 1}', b"x" * (MAX_BODY + 1), b""])
    def test_the_token_comes_before_the_body(self, alice: Person, body: bytes) -> None:
        """A client without a token does not learn what is wrong with the body."""
        assert_problem(send("POST", f"/api/{alice.id}/chat", body=body), "unauthenticated")

    @pytest.mark.parametrize("headers", [{"content-type": f"text/{CANARY}"}, {"idempotency-key": f" {CANARY} "}])
    def test_the_token_comes_before_the_other_headers(self, alice: Person, headers: dict[str, str]) -> None:
        """A client without a token does not learn what is wrong with the other headers."""
        assert_problem(send("POST", f"/api/{alice.id}/chat", headers=headers), "unauthenticated")

    def test_another_issuers_signature_gets_401(self, alice: Person) -> None:
        """The token is valid, except that another key with the same key id signed it."""
        forger = Person(alice.id, Issuer.new())
        assert_problem(forger.say(ADD), "unauthenticated")

    def test_an_mcp_token_gets_401(self, alice: Person) -> None:
        """An access token for the MCP endpoint is not accepted."""
        token = alice.issuer.mint_for_mcp(alice.id, issuer=AUTH, resource=RESOURCE)
        assert_problem(alice.post({"message": "hello"}, authorization=f"Bearer {token}"), "unauthenticated")

    @pytest.mark.parametrize("body", [BODY, CANARY.encode()])
    def test_another_users_path_gets_403(self, alice: Person, bob: Person, body: bytes) -> None:
        """The path must name the token's user, whatever the body is."""
        headers = bearer(alice.token) | {"content-type": "application/json"}
        assert_problem(send("POST", f"/api/{bob.id}/chat", headers=headers, body=body), "forbidden")

    def test_the_path_in_another_case_gets_403(self, alice: Person) -> None:
        """Ids are case-sensitive."""
        headers = bearer(alice.issuer.mint("Alice", issuer=AUTH, audience=AUTH))
        assert_problem(send("POST", "/api/alice/chat", headers=headers), "forbidden")


@pytest.mark.usefixtures("no_writes", "no_canary_logged")
class TestUnknownPaths:
    """A 404 or 405 does not say what else exists."""

    @pytest.mark.parametrize(
        "path",
        [
            *("/", f"/{CANARY}", "/api", "/api/", "/api/{id}/", "/api/{id}/chat/", "/api//chat"),
            *("/api/{id}//chat", "/api/{id}/chat/x", "/api/{id}/../{id}/chat", "/api/./{id}/chat", "/api/{id}/chat/."),
            *("/API/{id}/chat", "/docs", "/redoc", "/openapi.json", "/health/", "/mcp", "/%2e%2e/health"),
        ],
    )
    def test_an_unknown_path_gets_404(self, alice: Person, path: str) -> None:
        """The handler never redirects."""
        answer = send("POST", path.format(id=alice.id), headers=bearer(alice.token), body=BODY)
        assert_problem(answer, "not-found")
        assert "location" not in answer.headers

    @pytest.mark.parametrize("user", ["%2561lice", "a%2Fb", "al%00ice", "%20", "ali.ce", "é", CANARY + "%0A", "x" * 65])
    def test_a_path_without_a_valid_id_gets_404(self, alice: Person, user: str) -> None:
        """The handler does not decode twice, and no character is dropped."""
        headers = bearer(alice.token) | {"content-type": "application/json"}
        assert_problem(send("POST", f"/api/{user}/chat", headers=headers, body=b'{"message": "hello"}'), "not-found")

    def test_an_unknown_path_needs_no_token(self, environment: None) -> None:
        """The answer does not repeat headers, cookies or the query."""
        from chat.app import handler

        request = event("GET", f"/{CANARY}", headers={f"x-{CANARY}": CANARY, "referer": CANARY})
        rest = {"rawQueryString": f"{CANARY}={CANARY}", "cookies": [f"{CANARY}={CANARY}"]}
        assert_problem(invoke(handler, request | rest), "not-found")

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [(method, "/api/{id}/chat", "POST") for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS")]
        + [(method, "/health", "GET") for method in ("POST", "PUT", "DELETE")]
        + [(method, "/api/{id}", "DELETE") for method in ("GET", "POST")],
    )
    def test_another_method_gets_405(self, alice: Person, method: str, path: str, allowed: str) -> None:
        """The answer names the allowed method."""
        answer = send(method, path.format(id=alice.id), headers=bearer(alice.token))
        assert_problem(answer, "method-not-allowed")
        assert answer.headers["allow"] == allowed


def test_another_users_conversation_does_not_exist(alice: Person, bob: Person, counts: Counts) -> None:
    """The answer is the same as for a conversation that does not exist, and for an unknown path, less its own id."""
    conversation = bob.say(example.add("feed the cat")).json["conversation_id"]
    before = counts()
    answer = alice.say(ADD, conversation)
    assert_problem(answer, "not-found")
    assert counts() == before
    del answer.headers["x-request-id"]
    for other in (alice.say(ADD, str(uuid4())), send("GET", "/nowhere")):
        del other.headers["x-request-id"]
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
NAMED_FIELD = {"no": "message", "id": "conversation_id", "zone": "timezone", "unknown": "unknown", "user_id": "unknown"}


@pytest.mark.usefixtures("no_writes", "no_canary_logged")
class TestBody:
    """A body that breaks the contract gets 400, 413, 415 or 422."""

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
    def test_a_body_that_is_no_json_gets_400(self, alice: Person, body: bytes) -> None:
        """It is empty, cut off, in another notation or encoding, or nested without end."""
        assert_problem(alice.post(body), "not-json")

    @pytest.mark.parametrize("body", [b"1", b"null", b'"zanzibarquux"', b"[]", b'["zanzibarquux"]', b"NaN", b"1e999"])
    def test_json_that_is_no_object_gets_422(self, alice: Person, body: bytes) -> None:
        """The answer names the body."""
        answer = alice.post(body)
        assert_problem(answer, "invalid-input", "fields")
        assert [fault["field"] for fault in answer.json["fields"]] == ["body"]

    @pytest.mark.parametrize("name", INVALID)
    def test_an_invalid_field_gets_422(self, alice: Person, name: str) -> None:
        """The answer names the field and the reason, and repeats nothing of the request."""
        answer = alice.post(INVALID[name])
        assert_problem(answer, "invalid-input", "fields")
        (fault,) = answer.json["fields"]
        assert fault.keys() == {"field", "message"}
        assert fault["field"] == NAMED_FIELD.get(name.split()[0], "message")
        assert fault["message"]

    def test_every_invalid_field_is_named(self, alice: Person) -> None:
        """A client need not send one request for each."""
        answer = alice.post({"conversation_id": CANARY, "timezone": CANARY, CANARY: 1})
        assert [fault["field"] for fault in answer.json["fields"]] == [
            "message",
            "conversation_id",
            "timezone",
            "unknown",
        ]

    @pytest.mark.parametrize("value", ["a", "#", "\u00e9", "7f"])
    def test_the_answer_does_not_depend_on_the_value(self, alice: Person, value: str) -> None:
        """Each invalid id gets the same answer."""
        answers = {alice.post({"message": "x", "conversation_id": bad}).body for bad in (value, "zzz")}
        assert len(answers) == 1

    @pytest.mark.parametrize("number", [b"NaN", b"1e999", b"-0", b"123456789012345678901234567890"])
    def test_unusual_numbers_get_422(self, alice: Person, number: bytes) -> None:
        """The answer about them is valid JSON."""
        assert_problem(alice.post(b'{"message": ' + number + b"}"), "invalid-input", "fields")

    @pytest.mark.parametrize("excess", [1, 10_000])
    def test_a_body_that_is_too_large_gets_413(self, alice: Person, excess: int) -> None:
        """The first byte over 32 KiB is too much, also in a body that is no JSON."""
        body = b'{"message": "' + CANARY.encode() + b'"}'
        assert_problem(alice.post(body + b" " * (MAX_BODY + excess - len(body))), "body-too-large")

    @pytest.mark.parametrize(
        "media_type", ["", "text/plain", f"text/{CANARY}", "application/jsonx", "application/x-www-form-urlencoded"]
    )
    def test_another_media_type_gets_415(self, alice: Person, media_type: str) -> None:
        """The body may be JSON all the same."""
        assert_problem(alice.post({"message": ADD}, content_type=media_type), "unsupported-media-type")

    def test_a_missing_media_type_gets_415(self, alice: Person) -> None:
        """A request must name its body's type."""
        path = f"/api/{alice.id}/chat"
        answer = send("POST", path, headers=bearer(alice.token), body=BODY)
        assert_problem(answer, "unsupported-media-type")

    @pytest.mark.parametrize(
        "key", ["", " ", f"{CANARY} {CANARY}", f"{CANARY}\u00e9", f"{CANARY}\t", "x" * 256, "\x7f"]
    )
    def test_an_invalid_idempotency_key_gets_422(self, alice: Person, key: str) -> None:
        """It is empty, too long, or has other characters than visible ASCII."""
        answer = alice.post({"message": ADD}, idempotency_key=key)
        assert_problem(answer, "invalid-input", "fields")
        assert [fault["field"] for fault in answer.json["fields"]] == ["Idempotency-Key"]


class TestOnce:
    """A turn happens once."""

    @pytest.mark.parametrize("key", ["a", "~" * 255, '"quoted"', "0"])
    def test_a_repeated_key_gets_the_stored_answer(self, alice: Person, counts: Counts, key: str) -> None:
        """The answer has the same bytes and is marked as a replay. Nothing happens twice."""
        first = alice.say(ADD, key=key)
        before = counts()
        again = alice.say(ADD, key=key)
        assert (again.status, again.body) == (first.status, first.body)
        assert again.headers["idempotent-replayed"] == "true"
        assert counts() == before

    def test_a_replay_does_not_call_the_model(self, alice: Person, standin: StandIn) -> None:
        """It comes from the database."""
        alice.say(ADD, key="k")
        asked = len(standin.requests())
        alice.say(ADD, key="k")
        assert len(standin.requests()) == asked

    @pytest.mark.parametrize(
        "other",
        [
            {"message": OTHER},
            {"message": ADD, "timezone": "Europe/Paris"},
            {"message": ADD, "conversation_id": str(uuid4())},
        ],
    )
    def test_a_key_with_another_body_gets_422(self, alice: Person, counts: Counts, other: dict[str, Any]) -> None:
        """Any field may differ. The turn is not run."""
        alice.say(ADD, key="k")
        before = counts()
        assert_problem(alice.post(other, key="k"), "idempotency-key-reused")
        assert counts() == before

    def test_a_key_belongs_to_its_user(self, alice: Person, bob: Person) -> None:
        """Two users may send the same key, and each gets their own turn."""
        first, second = alice.say(ADD, key="k"), bob.say(example.add("feed the cat"), key="k")
        assert "idempotent-replayed" not in second.headers
        assert first.json["turn_id"] != second.json["turn_id"]

    def test_each_request_without_a_key_is_a_turn(self, alice: Person) -> None:
        """The same message twice is two turns."""
        first, second = alice.say(ADD).json, alice.say(ADD).json
        assert first["turn_id"] != second["turn_id"]

    def test_a_busy_conversation_gets_409(self, alice: Person, rows: Rows, counts: Counts) -> None:
        """Retry-After is the time until the other turn's lease ends."""
        conversation = alice.say(ADD).json["conversation_id"]
        lease = "update conversation set turn_id = %s, lease_until = now() + interval '20 seconds' where id = %s"
        rows.execute(lease, [uuid4(), conversation])
        before = counts()
        answer = alice.say(OTHER, conversation)
        assert_problem(answer, "turn-in-progress")
        assert 1 <= int(answer.headers["retry-after"]) <= 20
        assert counts() == before


class TestInternalFailures:
    """A failure that the client did not cause gets 500 or 503, without its cause."""

    @pytest.fixture
    def no_database(self, environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """Set the URL of a database on which nothing listens."""
        monkeypatch.setenv("DATABASE_URL", f"postgresql://{CANARY}:{CANARY}@127.0.0.1:1/{CANARY}?sslmode=disable")

    @pytest.fixture
    def no_key_set(self, environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """Set the URL of a key set on which nothing listens."""
        monkeypatch.setenv("AUTH_JWKS_JSON", "")
        monkeypatch.setenv("AUTH_JWKS_URL", f"http://127.0.0.1:1/{CANARY}")

    @pytest.mark.usefixtures("no_database", "no_canary_logged", "no_writes")
    def test_an_unreachable_database_gets_503(self, alice: Person) -> None:
        """The answer says when to retry."""
        answer = alice.say(example.add(CANARY))
        assert_problem(answer, "database-unavailable")
        assert int(answer.headers["retry-after"]) >= 1

    @pytest.mark.usefixtures("no_database", "no_canary_logged")
    def test_health_does_not_need_the_database(self, environment: None) -> None:
        """A health check does not wake a suspended database."""
        assert send("GET", "/health").status == 200

    @pytest.mark.usefixtures("no_key_set", "no_writes")
    def test_an_unreachable_key_set_gets_503(self, alice: Person) -> None:
        """It is no 401, because the token may be valid."""
        answer = alice.say(ADD)
        assert_problem(answer, "key-set-unavailable")
        assert int(answer.headers["retry-after"]) >= 1

    @pytest.mark.usefixtures("no_key_set", "no_writes")
    def test_a_missing_token_needs_no_key_set(self, alice: Person) -> None:
        """The request gets 401."""
        assert_problem(send("POST", f"/api/{alice.id}/chat"), "unauthenticated")

    @pytest.mark.usefixtures("no_canary_logged", "no_writes")
    def test_an_unexpected_error_gets_500(self, alice: Person, monkeypatch: pytest.MonkeyPatch, logs: Logs) -> None:
        """The log has the error's type and place without its text, and the turn leaves nothing behind."""
        from taskchat.conversations import turns as conversations

        def fail(*_: object) -> None:
            raise KeyError(CANARY)

        monkeypatch.setattr(conversations, "keep_within", fail)
        assert_problem(alice.say(example.add(CANARY)), "internal")
        (line,) = [line for line in logs() if line["level"] == "ERROR"]
        assert line["error"] == "KeyError"
        assert any("turns.py:" in place for place in line["places"])

    @pytest.mark.usefixtures("no_canary_logged")
    def test_the_request_after_an_error_is_answered(self, alice: Person, monkeypatch: pytest.MonkeyPatch) -> None:
        """The environment stays usable."""
        from taskchat.conversations import turns as conversations

        with monkeypatch.context() as broken:
            broken.delattr(conversations, "keep_within")
            assert alice.say("hello").status == 500
        assert alice.say("hello").status == 200


class TestGateway:
    """No value that a client can put into the gateway's event crashes the handler."""

    @pytest.mark.parametrize("host", ["x:abc", "[::1]:443", "x:1:2", "", ":"])
    def test_any_host_is_accepted(self, alice: Person, host: str) -> None:
        """The host header changes nothing."""
        assert alice.post({"message": "hello"}, host=host).status == 200

    @pytest.mark.parametrize("port", ["abc", "443, 443", ""])
    def test_any_forwarded_port_is_accepted(self, alice: Person, port: str) -> None:
        """The proxy's header changes nothing."""
        assert alice.post({"message": "hello"}, x_forwarded_port=port).status == 200

    @pytest.mark.usefixtures("no_writes", "no_canary_logged")
    def test_a_surrogate_in_a_text_body_gets_400(self, alice: Person) -> None:
        """Text with a lone surrogate is no JSON."""
        assert_problem(self._post_text(alice, f'{{"message": "{CANARY}\ud800"}}', alice.token), "not-json")

    @pytest.mark.usefixtures("no_writes", "no_canary_logged")
    def test_the_token_comes_before_a_surrogate(self, alice: Person) -> None:
        """The handler answers 401 before it reads the body."""
        assert_problem(self._post_text(alice, "\ud800", CANARY), "unauthenticated")

    def test_a_text_body_is_accepted(self, alice: Person) -> None:
        """The gateway passes JSON on as text. Every character arrives."""
        answer = self._post_text(
            alice, json.dumps({"message": example.add("caf\u00e9 \U0001f95b")}, ensure_ascii=False), alice.token
        )
        assert answer.json["tool_calls"][0]["result"][example.text] == "caf\u00e9 \U0001f95b"

    def test_an_event_without_a_body_is_accepted(self, alice: Person) -> None:
        """A GET has none."""
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
    """The table holds every problem type."""

    def test_every_error_has_its_type(self) -> None:
        """Each of the program's errors stands there with its status."""
        from taskchat import errors

        kinds = [errors.TaskchatError, *_descendants(errors.TaskchatError)]
        found = {
            kind.slug: kind.status
            for kind in kinds
            if kind is not errors.ToolFailure and kind.__module__ == errors.__name__
        }
        assert found == TYPES


def _descendants(kind: Any) -> list[Any]:
    return [each for child in kind.__subclasses__() for each in (child, *_descendants(child))]


class TestDescription:
    """The OpenAPI description tells a client's developer the whole contract."""

    @pytest.fixture
    def route(self) -> Any:
        """Return the description of the chat route."""
        return self.description()["paths"]["/api/{user_id}/chat"]["post"]

    def description(self) -> Any:
        """Return the whole description."""
        from chat.app import app

        return app.openapi()

    def schema(self, content: Any) -> Any:
        """Return the schema of one media type."""
        return self.description()["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]

    def test_the_file_is_up_to_date(self) -> None:
        """After a change of the contract, `make openapi` writes docs/openapi.json."""
        assert json.loads((ROOT / "docs" / "openapi.json").read_text()) == self.description()

    def test_every_reference_has_a_schema(self) -> None:
        """No reference points to a missing schema."""
        names = self.description()["components"]["schemas"]
        referred = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(self.description())))
        assert referred <= names.keys()

    def test_the_chat_route_needs_a_bearer_token(self, route: Any) -> None:
        """The token is a JSON Web Token. `/health` needs none."""
        scheme = self.description()["components"]["securitySchemes"]["bearer"]
        assert (scheme["type"], scheme["scheme"], scheme["bearerFormat"]) == ("http", "bearer", "JWT")
        assert route["security"] == [{"bearer": []}]
        assert self.description()["paths"]["/health"]["get"]["security"] == []

    def test_the_headers_of_answers_are_described(self, route: Any) -> None:
        """They say how to authenticate, when to retry, and that an answer is a replay. Each answer has an id."""
        named = {status: set(answer["headers"]) for status, answer in route["responses"].items()}
        assert all("X-Request-Id" in headers for headers in named.values())
        found = {status: headers - {"X-Request-Id"} for status, headers in named.items()}
        again = {status: {"Retry-After"} for status in ("409", "429", "502", "503")}
        expected = {
            "200": {"Idempotent-Replayed", "x-vercel-ai-ui-message-stream"},
            "401": {"WWW-Authenticate"},
        } | again
        assert {status: headers for status, headers in found.items() if headers} == expected

    def test_the_types_of_problems_are_described(self, route: Any) -> None:
        """Each status has its problem types, each with its own schema."""
        found = {
            int(status): set(answer["content"]["application/problem+json"]["examples"])
            for status, answer in route["responses"].items()
            if status != "200"
        }
        assert found == {
            400: {"not-json"},
            401: {"unauthenticated"},
            403: {"forbidden"},
            404: {"not-found"},
            409: {"turn-in-progress"},
            413: {"body-too-large"},
            415: {"unsupported-media-type"},
            422: {"invalid-input", "idempotency-key-reused"},
            429: {"too-many-requests"},
            500: {"internal"},
            502: {"model-failed"},
            503: {"database-unavailable", "key-set-unavailable", "unavailable"},
            504: {"out-of-time"},
        }

    def test_the_request_is_described(self, route: Any) -> None:
        """One body for each protocol. Our own has three fields, one of them required, and no other."""
        body = route["requestBody"]
        ours, ag_ui, ai_sdk = (
            self.schema({"schema": schema}) for schema in body["content"]["application/json"]["schema"]["anyOf"]
        )
        assert body["required"]
        assert ours["properties"].keys() == {"message", "conversation_id", "timezone"}
        assert (ours["required"], ours["additionalProperties"]) == (["message"], False)
        assert ag_ui["required"] == ["threadId", "runId", "messages"]
        assert ai_sdk["required"] == ["id", "messages"]

    def test_the_example_of_each_body_is_valid(self, route: Any) -> None:
        """It asks for the same turn in each protocol."""
        from chat.openapi import CHAT_BODIES

        examples = route["requestBody"]["content"]["application/json"]["examples"].values()
        ours, *others = (
            model.model_validate(example["value"]) for model, example in zip(CHAT_BODIES, examples, strict=True)
        )
        asked = [other.asked("alice").request for other in others]
        assert {(each.message, each.timezone) for each in asked} == {(ours.message, ours.timezone)}

    def test_the_parameters_are_described(self, route: Any) -> None:
        """The path has the user, and the headers have the key."""
        places = {(parameter["name"], parameter["in"]) for parameter in route["parameters"]}
        assert places == {("user_id", "path"), ("Idempotency-Key", "header")}

    def test_every_status_is_described(self, route: Any) -> None:
        """Each status of the contract is there. All but 200 are problem+json."""
        contract = {200, 400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 502, 503, 504}
        assert set(map(int, route["responses"])) == contract
        kinds = {status: set(answer["content"]) for status, answer in route["responses"].items()}
        assert kinds.pop("200") == {"application/json", "text/event-stream"}
        assert set().union(*kinds.values()) == {"application/problem+json"}

    def test_the_description_is_not_served(self, environment: None) -> None:
        """It is a file of the repository."""
        assert {send("GET", path).status for path in ("/openapi.json", "/docs", "/redoc")} == {404}
