"""What stands in front of both doors: headers on every answer, whose pages may call, a limit to bodies, odd events."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from dev.postgres import Postgres
from taskchat.http.middleware import MAX_BODY
from taskchat.settings import Settings, SettingsError, load
from testing.gateway import Handler, Response, event, invoke
from tests.conftest import Person, reset_processes
from tests.test_mcp_endpoint import METADATA, McpClient, titles

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
    """Postgres itself: nothing here depends on the way to it."""
    return server.app_url


def protected(answer: Response) -> bool:
    """Whether the answer has every security header, once."""
    return {name: answer.headers.get(name) for name in EXPECTED} == EXPECTED


@pytest.fixture
def chat(environment: None) -> Handler:
    """The chat function."""
    from chat.app import handler

    return handler


@pytest.fixture
def mcp(environment: None) -> Handler:
    """The MCP function, with pages of one other site allowed."""
    from mcp_tools.app import handler

    return handler


class TestHeaders:
    """Security headers and no-store, whatever the answer is and whoever gives it."""

    def test_at_the_chat_door(self, alice: Person, bob: Person, chat: Handler) -> None:
        """A turn, its replay, every kind of refusal, and paths and methods that are not there."""
        first, replay = (alice.say("Add buy milk", key="k") for _ in range(2))
        answers = [first, replay, alice.say("Add buy bread", key="k"), alice.say("x", "no id"), alice.post(b"{")]
        answers += [alice.post(b" " * (MAX_BODY + 1)), alice.post({}, content_type="text/plain")]
        answers += [alice.post({}, authorization="Bearer x"), alice.say("x", authorization=f"Bearer {bob.token}")]
        asked = [("GET", "/health"), ("GET", "/"), ("GET", f"/api/{alice.id}/chat"), ("OPTIONS", "/health")]
        answers += [invoke(chat, event(method, path)) for method, path in asked]
        statuses = [200, 200, 422, 422, 400, 413, 415, 401, 403, 200, 404, 405, 405]
        assert [answer.status for answer in answers] == statuses
        assert all(map(protected, answers))

    def test_at_the_mcp_door(self, alice: Person, mcp: Handler) -> None:
        """A result, protocol errors, refusals, the metadata and its preflight."""
        client = McpClient(alice.mcp_token)
        answers = [client.send(LIST), client.send(b"{"), McpClient("").send(LIST), client.send(b" " * (MAX_BODY + 1))]
        answers += [client.send(LIST, host="evil.example.com"), client.send(LIST, origin="https://evil.example.com")]
        preflight = {"origin": "https://evil.example.com", "access-control-request-method": "GET"}
        asked = [("GET", METADATA), ("GET", f"{METADATA}/mcp"), ("GET", "/"), ("GET", "/mcp"), ("OPTIONS", "/mcp")]
        answers += [invoke(mcp, event(method, path)) for method, path in asked]
        answers += [invoke(mcp, event("OPTIONS", METADATA, headers=preflight))]
        assert [answer.status for answer in answers] == [200, 400, 401, 413, 421, 403, 200, 200, 404, 405, 405, 200]
        assert all(map(protected, answers))

    def test_with_no_database(self, alice: Person, monkeypatch: pytest.MonkeyPatch) -> None:
        """503 too."""
        monkeypatch.setenv("DATABASE_URL", "postgresql://u:p@127.0.0.1:1/d?sslmode=disable")
        answer = alice.say("hello")
        assert (answer.status, protected(answer)) == (503, True)

    def test_what_was_not_expected(self, alice: Person, monkeypatch: pytest.MonkeyPatch) -> None:
        """500 too."""
        from taskchat.conversations import turns as conversations

        monkeypatch.delattr(conversations, "turn_id_for")
        answer = alice.say("hello")
        assert (answer.status, protected(answer)) == (500, True)


class TestHost:
    """The MCP door answers to the name in MCP_RESOURCE_URL alone: a page could point another at it (DNS rebinding)."""

    @pytest.mark.parametrize("host", ["api.example.com", "API.Example.com", "api.example.com:443"])
    def test_its_own(self, alice: Person, host: str) -> None:
        """In any case, and with the port that goes without saying."""
        assert McpClient(alice.mcp_token).send(LIST, host=host).status == 200

    @pytest.mark.parametrize(
        "host",
        [
            *("evil.example.com", "api.example.com.evil.example.com", "api.example.com.", "api.example.com:80"),
            *("localhost", "127.0.0.1", "x:abc", "[::1]:443", "api.example.com,evil.example.com", "", ":", "\u212ai"),
            *("api.example.com@evil.example.com", "api.example.com:443:443", "api.example.com\n"),
        ],
    )
    def test_another_s(self, alice: Person, rows: Rows, host: str) -> None:
        """421 for every other, also with a good token, and nothing is done."""
        call = LIST | {"method": "tools/call", "params": {"name": "add_task", "arguments": {"title": "x"}}}
        answer = McpClient(alice.mcp_token).send(call, host=host)
        assert (answer.status, answer.json["type"]) == (421, "urn:taskchat:problem:misdirected")
        assert titles(rows, alice) == []

    def test_none(self, alice: Person, mcp: Handler) -> None:
        """HTTP/1.0 has none, and nobody speaks it here."""
        request = event("POST", "/mcp", headers={"authorization": f"Bearer {alice.mcp_token}"})
        del request["headers"]["host"]
        assert invoke(mcp, request).status == 421


class TestOrigin:
    """A browser says for whose page it speaks."""

    ALLOWED = "https://app.example.com"

    @pytest.fixture
    def send(self, alice: Person, monkeypatch: pytest.MonkeyPatch) -> Send:
        """Alice's client, at a door whose deployment allows the pages of one other site, and of another on a port."""
        from mcp_tools.app import handler

        monkeypatch.setenv("CORS_ORIGINS", f"{self.ALLOWED},http://localhost:5173")
        reset_processes()
        client = McpClient(alice.mcp_token)
        return lambda **headers: client.send(LIST, handler=handler, **headers)

    def test_none(self, send: Send) -> None:
        """A client that is no browser says nothing."""
        assert send().status == 200

    @pytest.mark.parametrize("origin", ["https://api.example.com", ALLOWED, "http://localhost:5173"])
    def test_its_own_and_those_allowed(self, send: Send, origin: str) -> None:
        """Served. That the page may read the answer, the gateway tells the browser: nothing is reflected here."""
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
    def test_any_other(self, send: Send, origin: str) -> None:
        """403 for whatever is not one of them to the letter."""
        answer = send(origin=origin)
        assert (answer.status, answer.json["type"]) == (403, "urn:taskchat:problem:origin-refused")

    def test_no_other_is_allowed_by_default(self, alice: Person) -> None:
        """A deployment that says nothing is for its own pages."""
        assert McpClient(alice.mcp_token).send(LIST, origin=self.ALLOWED).status == 403

    def test_before_the_token(self, environment: None) -> None:
        """A page that tries tokens learns nothing about them."""
        assert McpClient("").send(LIST, origin="https://evil.example.com").status == 403

    @pytest.mark.parametrize("value", ["*", "null", "https://*.example.com", "app.example.com", "https://a.com/x", ","])
    def test_what_is_no_exact_origin(self, environment: None, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        """No process starts with a list that could let in more than it says."""
        monkeypatch.setenv("CORS_ORIGINS", value)
        with pytest.raises(SettingsError, match="CORS_ORIGINS"):
            load(Settings)

    @pytest.mark.parametrize("path", ["/api/{id}/chat", "/health", "/nowhere"])
    @pytest.mark.parametrize("method", ["OPTIONS", "GET", "POST"])
    def test_nothing_is_reflected_at_the_chat_door(self, alice: Person, chat: Handler, path: str, method: str) -> None:
        """Without the gateway, which knows the list, no browser hands a page of another site any answer."""
        asked = {"origin": "https://evil.example.com", "access-control-request-method": "POST"}
        answer = invoke(chat, event(method, path.format(id=alice.id), headers=asked))
        assert not [name for name in answer.headers if name.startswith("access-control-")]


class TestBody:
    """32 KiB, at the MCP door as at the other."""

    @pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28"])
    def test_too_large(self, alice: Person, rows: Rows, version: str) -> None:
        """413 for a good request of one byte more, before it is parsed."""
        call = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"add_task","arguments":{"title":"x"}}}'
        client = McpClient(alice.mcp_token, version)
        answer = client.send(call + b" " * (MAX_BODY + 1 - len(call)), mcp_method="tools/call", mcp_name="add_task")
        assert (answer.status, answer.headers["content-type"]) == (413, "application/problem+json")
        assert titles(rows, alice) == []

    def test_the_largest(self, alice: Person) -> None:
        """Exactly 32 KiB are not too much."""
        body = b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}'
        assert McpClient(alice.mcp_token).send(body + b" " * (MAX_BODY - len(body))).status == 200

    def test_who_is_calling_comes_first(self, environment: None) -> None:
        """Without a token it is a 401, however large."""
        assert McpClient("").send(b" " * (MAX_BODY + 1)).status == 401


def without(request: dict[str, Any], *path: str) -> dict[str, Any]:
    """The event without one of its members."""
    *parents, last = path
    inner = request
    for name in parents:
        inner = inner[name]
    del inner[last]
    return request


ODD: dict[str, Callable[[], Any]] = {
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


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("door", ["chat", "mcp"])
def test_an_event_that_no_gateway_writes(chat: Handler, mcp: Handler, name: str, door: str) -> None:
    """400 from whoever invokes the function with one: no exception, and the headers of every answer."""
    answer = invoke(chat if door == "chat" else mcp, ODD[name]())
    assert (answer.status, answer.json["type"]) == (400, "urn:taskchat:problem:malformed")
    assert protected(answer)
