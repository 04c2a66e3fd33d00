"""Both entry points set security headers, check host and origin, and limit bodies and events."""

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from dev.postgres import Postgres
from taskchat.http.middleware import MAX_BODY
from taskchat.settings import Settings, SettingsError, load
from testing.gateway import Handler, Response, event, invoke
from tests.conftest import Person, reset_processes
from tests.domain import example
from tests.test_mcp_endpoint import ADD, METADATA, McpClient, texts_of

Rows = psycopg.Connection[dict[str, Any]]
Send = Callable[..., Response]

EXPECTED = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "strict-transport-security": "max-age=63072000; includeSubDomains",
    "x-content-type-options": "nosniff",
}
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}


@pytest.fixture(scope="session")
def database_url(server: Postgres) -> str:
    """Use Postgres directly: none of this depends on the pooler."""
    return server.app_url


def protected(answer: Response) -> bool:
    """Return whether the answer has each security header with its value."""
    return {name: answer.headers.get(name) for name in EXPECTED} == EXPECTED


@pytest.fixture
def chat(environment: None) -> Handler:
    """Give the chat function's handler."""
    from chat.app import handler

    return handler


@pytest.fixture
def mcp(environment: None) -> Handler:
    """Give the MCP function's handler."""
    from mcp_tools.app import handler

    return handler


class TestHeaders:
    """Each answer has the security headers and no-store."""

    def test_chat_answers_have_them(self, alice: Person, bob: Person, chat: Handler) -> None:
        """The answers are a turn, its replay, each kind of refusal, and those to unknown paths and methods."""
        first, replay = (alice.say(example.add("buy milk"), key="k") for _ in range(2))
        answers = [
            first,
            replay,
            alice.say(example.add("buy bread"), key="k"),
            alice.say("x", "no id"),
            alice.post(b"{"),
        ]
        answers += [alice.post(b" " * (MAX_BODY + 1)), alice.post({}, content_type="text/plain")]
        answers += [alice.post({}, authorization="Bearer x"), alice.say("x", authorization=f"Bearer {bob.token}")]
        asked = [("GET", "/health"), ("GET", "/"), ("GET", f"/api/{alice.id}/chat"), ("OPTIONS", "/health")]
        answers += [invoke(chat, event(method, path)) for method, path in asked]
        statuses = [200, 200, 422, 422, 400, 413, 415, 401, 403, 200, 404, 405, 405]
        assert [answer.status for answer in answers] == statuses
        assert all(map(protected, answers))

    def test_mcp_answers_have_them(self, alice: Person, mcp: Handler) -> None:
        """The answers are a result, protocol errors, refusals, the metadata and its preflight."""
        client = McpClient(alice.mcp_token)
        answers = [client.send(LIST), client.send(b"{"), McpClient("").send(LIST), client.send(b" " * (MAX_BODY + 1))]
        answers += [client.send(LIST, host="evil.example.com"), client.send(LIST, origin="https://evil.example.com")]
        preflight = {"origin": "https://evil.example.com", "access-control-request-method": "GET"}
        asked = [("GET", METADATA), ("GET", f"{METADATA}/mcp"), ("GET", "/"), ("GET", "/mcp"), ("OPTIONS", "/mcp")]
        answers += [invoke(mcp, event(method, path)) for method, path in asked]
        answers += [invoke(mcp, event("OPTIONS", METADATA, headers=preflight))]
        assert [answer.status for answer in answers] == [200, 400, 401, 413, 421, 403, 200, 200, 404, 405, 405, 200]
        assert all(map(protected, answers))

    def test_an_answer_without_a_database_has_them(self, alice: Person, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is a 503."""
        monkeypatch.setenv("DATABASE_URL", "postgresql://u:p@127.0.0.1:1/d?sslmode=disable")
        answer = alice.say("hello")
        assert (answer.status, protected(answer)) == (503, True)

    def test_an_answer_to_an_unexpected_error_has_them(self, alice: Person, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is a 500."""
        from chat import app

        monkeypatch.delattr(app, "turn_id_for")
        answer = alice.say("hello")
        assert (answer.status, protected(answer)) == (500, True)


class TestHost:
    """The MCP endpoint accepts only the host of MCP_RESOURCE_URL, as a defence against DNS rebinding."""

    @pytest.mark.parametrize("host", ["api.example.com", "API.Example.com", "api.example.com:443"])
    def test_its_own_host_is_accepted(self, alice: Person, host: str) -> None:
        """It may have any case, and the default port."""
        assert McpClient(alice.mcp_token).send(LIST, host=host).status == 200

    @pytest.mark.parametrize(
        "host",
        [
            *("evil.example.com", "api.example.com.evil.example.com", "api.example.com.", "api.example.com:80"),
            *("localhost", "127.0.0.1", "x:abc", "[::1]:443", "api.example.com,evil.example.com", "", ":", "\u212ai"),
            *("api.example.com@evil.example.com", "api.example.com:443:443", "api.example.com\n"),
        ],
    )
    def test_another_host_gets_421(self, alice: Person, rows: Rows, host: str) -> None:
        """The token is valid, and the call is not made."""
        call = LIST | {"method": "tools/call", "params": ADD}
        answer = McpClient(alice.mcp_token).send(call, host=host)
        assert (answer.status, answer.json["type"]) == (421, "urn:taskchat:problem:misdirected")
        assert texts_of(rows, alice) == []

    def test_a_missing_host_gets_421(self, alice: Person, mcp: Handler) -> None:
        """HTTP/1.0 has no host."""
        request = event("POST", "/mcp", headers={"authorization": f"Bearer {alice.mcp_token}"})
        del request["headers"]["host"]
        assert invoke(mcp, request).status == 421


class TestOrigin:
    """The MCP endpoint accepts browsers from its own and the allowed origins only."""

    ALLOWED = "https://app.example.com"

    @pytest.fixture
    def send(self, alice: Person, monkeypatch: pytest.MonkeyPatch) -> Send:
        """Give Alice's client, for a deployment that allows two other origins."""
        from mcp_tools.app import handler

        monkeypatch.setenv("CORS_ORIGINS", f"{self.ALLOWED},http://localhost:5173")
        reset_processes()
        client = McpClient(alice.mcp_token)
        return lambda **headers: client.send(LIST, handler=handler, **headers)

    def test_a_missing_origin_is_accepted(self, send: Send) -> None:
        """A client that is no browser sends none."""
        assert send().status == 200

    @pytest.mark.parametrize("origin", ["https://api.example.com", ALLOWED, "http://localhost:5173"])
    def test_its_own_and_allowed_origins_are_accepted(self, send: Send, origin: str) -> None:
        """The gateway adds the CORS headers, and the handler none."""
        answer = send(origin=origin)
        assert answer.status == 200
        assert not [name for name in answer.headers if name.startswith("access-control-")]

    @pytest.mark.parametrize(
        "origin",
        [
            *("https://evil.example.com", "null", "", "*", "http://app.example.com", "https://app.example.com:8443"),
            *("https://app.example.com/", "https://app.example.com.evil.example.com", "http://localhost:5174"),
            *("https://app.example.com, https://evil.example.com", "https://evil.app.example.com", "file://", "x"),
        ],
    )
    def test_another_origin_gets_403(self, send: Send, origin: str) -> None:
        """The comparison is exact."""
        answer = send(origin=origin)
        assert (answer.status, answer.json["type"]) == (403, "urn:taskchat:problem:origin-refused")

    def test_no_other_origin_is_allowed_by_default(self, alice: Person) -> None:
        """CORS_ORIGINS is not set."""
        assert McpClient(alice.mcp_token).send(LIST, origin=self.ALLOWED).status == 403

    def test_the_origin_comes_before_the_token(self, environment: None) -> None:
        """A page learns nothing about a token."""
        assert McpClient("").send(LIST, origin="https://evil.example.com").status == 403

    @pytest.mark.parametrize("value", ["*", "null", "https://*.example.com", "app.example.com", "https://a.com/x", ","])
    def test_an_inexact_origin_stops_the_start(
        self, environment: None, monkeypatch: pytest.MonkeyPatch, value: str
    ) -> None:
        """A pattern could allow more origins than its author meant."""
        monkeypatch.setenv("CORS_ORIGINS", value)
        with pytest.raises(SettingsError, match="CORS_ORIGINS"):
            load(Settings)

    @pytest.mark.parametrize("path", ["/api/{id}/chat", "/health", "/nowhere"])
    @pytest.mark.parametrize("method", ["OPTIONS", "GET", "POST"])
    def test_the_chat_handler_adds_no_cors_headers(self, alice: Person, chat: Handler, path: str, method: str) -> None:
        """The gateway knows the allowed origins. Without it a browser refuses each cross-origin answer."""
        asked = {"origin": "https://evil.example.com", "access-control-request-method": "POST"}
        answer = invoke(chat, event(method, path.format(id=alice.id), headers=asked))
        assert not [name for name in answer.headers if name.startswith("access-control-")]


class TestBody:
    """The MCP endpoint accepts bodies of 32 KiB at most, like the chat API."""

    @pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28"])
    def test_a_body_that_is_too_large_gets_413(self, alice: Person, rows: Rows, version: str) -> None:
        """The call in it is valid, and is not made."""
        call = json.dumps(LIST | {"method": "tools/call", "params": ADD}).encode()
        client = McpClient(alice.mcp_token, version)
        answer = client.send(
            call + b" " * (MAX_BODY + 1 - len(call)), mcp_method="tools/call", mcp_name=example.add_tool
        )
        assert (answer.status, answer.headers["content-type"]) == (413, "application/problem+json")
        assert texts_of(rows, alice) == []

    def test_the_largest_body_is_accepted(self, alice: Person) -> None:
        """It has exactly 32 KiB."""
        body = json.dumps(LIST).encode()
        assert McpClient(alice.mcp_token).send(body + b" " * (MAX_BODY - len(body))).status == 200

    def test_the_token_comes_before_the_size(self, environment: None) -> None:
        """A large body without a token gets 401."""
        assert McpClient("").send(b" " * (MAX_BODY + 1)).status == 401


def without(request: dict[str, Any], *path: str) -> dict[str, Any]:
    """Return the event without one of its members."""
    *parents, last = path
    inner = request
    for name in parents:
        inner = inner[name]
    del inner[last]
    return request


MALFORMED: dict[str, Callable[[], Any]] = {
    "nothing": dict,
    "a list": list,
    "no object": lambda: "event",
    "of a REST API": lambda: event("GET", "/health") | {"version": "1.0"},
    "of a load balancer": lambda: {"requestContext": {"elb": {}}, "httpMethod": "GET", "path": "/", "headers": {}},
    "no version": lambda: without(event("GET", "/health"), "version"),
    "no context": lambda: without(event("GET", "/health"), "requestContext"),
    "no method": lambda: without(event("GET", "/health"), "requestContext", "http", "method"),
    "no path": lambda: without(event("GET", "/health"), "requestContext", "http", "path"),
    "headers are a list": lambda: event("GET", "/health") | {"headers": []},
    "a header is a list": lambda: event("GET", "/health") | {"headers": {"accept": ["*/*"]}},
    "a header is no Unicode": lambda: event("GET", "/health", headers={"accept": "\ud800"}),
    "a query is no Unicode": lambda: event("GET", "/health") | {"rawQueryString": "\udfff"},
    "cookies are a text": lambda: event("GET", "/health") | {"cookies": "a=b"},
    "a cookie is a number": lambda: event("GET", "/health") | {"cookies": [1]},
    "a body is an object": lambda: event("POST", "/health") | {"body": {}},
    "a body is damaged base64": lambda: event("POST", "/health") | {"body": "a"},
    "a body is not base64": lambda: event("POST", "/health") | {"body": "\u00e9\u00e9"},
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("door", ["chat", "mcp"])
def test_a_malformed_event_gets_400(chat: Handler, mcp: Handler, name: str, door: str) -> None:
    """No exception leaves the handler, and the answer has the security headers."""
    answer = invoke(chat if door == "chat" else mcp, MALFORMED[name]())
    assert (answer.status, answer.json["type"]) == (400, "urn:taskchat:problem:malformed")
    assert protected(answer)
