"""The MCP endpoint serves the tools to any client with a token, in both eras of the protocol."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, cast

import psycopg
import pytest
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport
from mangum import Mangum
from mcp import MCPError

from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from taskchat.http.gateway import MARGIN
from taskchat.version import VERSION
from testing.callers import AUTH, RESOURCE
from testing.gateway import Handler, Response, event, invoke, runtime_log
from tests.conftest import Logs, Person, reset_processes, run, serving
from tests.domain import example
from tests.example_domain import ABSENT, Call

Rows = psycopg.Connection[dict[str, Any]]

CANARY = "zanzibarquux"
TOOLS = {tool.__name__ for tool in example.toolset.tools}
READ, WRITE = example.toolset.scopes
ADD = example.call_add("x")
HANDSHAKE = ["2025-03-26", "2025-06-18", "2025-11-25"]
STATELESS = "2026-07-28"
IDENTITY = {"name": example.toolset.name, "version": VERSION}
METADATA = "/.well-known/oauth-protected-resource"


@pytest.fixture(scope="session")
def database_url(server: Postgres) -> str:
    """Use Postgres directly: the endpoint does not depend on the pooler."""
    return server.app_url


@dataclass(frozen=True)
class McpClient:
    """Send JSON-RPC in gateway events, as a client of one protocol version does."""

    token: str
    version: str | None = HANDSHAKE[-1]
    """None for a client that sends no version, like clients from before that header."""

    def send(self, message: Any, *, handler: Handler | None = None, seconds: float = 30, **headers: str) -> Response:
        """Post one message, with `seconds` left. Bytes are sent as they are."""
        from mcp_tools.app import handler as deployed

        sent = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
        sent |= {"authorization": f"Bearer {self.token}"} if self.token else {}
        sent |= {"mcp-protocol-version": self.version} if self.version else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        raw = message if isinstance(message, bytes) else json.dumps(message).encode()
        return invoke(handler or deployed, event("POST", "/mcp", headers=sent, body=raw), seconds=seconds)

    def request(
        self, method: str, *, id: Any = 1, handler: Handler | None = None, seconds: float = 30, **params: Any
    ) -> Response:
        """Make a request, with the metadata and headers that the stateless era requires."""
        headers = {}
        if self.version == STATELESS:
            params["_meta"] = {
                "io.modelcontextprotocol/protocolVersion": STATELESS,
                "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
                "io.modelcontextprotocol/clientCapabilities": {},
            }
            headers = {"mcp_method": method} | ({"mcp_name": params["name"]} if "name" in params else {})
        message = {"jsonrpc": "2.0", "id": id, "method": method, "params": params}
        return self.send(message, handler=handler, seconds=seconds, **headers)

    def result(self, method: str, **params: Any) -> Any:
        """Return the result of a request that succeeds."""
        answer = self.request(method, **params)
        assert (answer.status, answer.json.get("error")) == (200, None)
        return answer.json["result"]

    def tools(self) -> list[dict[str, Any]]:
        """Return the listed tools."""
        found: list[dict[str, Any]] = self.result("tools/list")["tools"]
        return found

    def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Return the result of a tool call, which may have failed."""
        found: dict[str, Any] = self.result("tools/call", name=name, arguments=arguments)
        return found

    def make(self, call: Call) -> dict[str, Any]:
        """Return the result of this tool call, which may have failed."""
        return self.call(call["name"], **call["arguments"])

    def add(self, text: str) -> Any:
        """Add a thing, and return it."""
        return self.do(example.add_tool, **example.call_add(text)["arguments"])

    def listed(self) -> list[str]:
        """Return the texts of the listed things."""
        return example.listed(self.do(example.list_tool))

    def do(self, name: str, **arguments: Any) -> Any:
        """Return the structured content of a tool call that succeeds. Its text must be the same JSON."""
        result = self.call(name, **arguments)
        assert not result.get("isError"), result
        assert json.loads(result["content"][0]["text"]) == result["structuredContent"]
        return result["structuredContent"]


@pytest.fixture(params=[None, *HANDSHAKE, STATELESS])
def client(request: pytest.FixtureRequest, alice: Person) -> McpClient:
    """Give Alice's client, once for each protocol version."""
    return McpClient(alice.mcp_token, request.param)


@pytest.fixture
def no_canary_logged(logs: Logs, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Check that no log line and no output at Lambda's log level holds the canary."""
    with runtime_log() as written:
        yield
    assert CANARY not in json.dumps(logs()) + written.getvalue() + "".join(capfd.readouterr())


def records(rows: Rows, person: Person) -> list[dict[str, Any]]:
    """Return the user's recorded calls."""
    found = rows.execute("select * from tool_call where user_id = %s order by created_at", [person.id])
    return found.fetchall()


def texts_of(rows: Rows, person: Person) -> list[str]:
    """Return the texts of the user's things."""
    return [text for text, _ in example.rows_of(rows, person.id)]


class TestTools:
    """Each protocol version serves the same tools."""

    def test_the_tools_are_listed(self, client: McpClient) -> None:
        """Each has a title, a description, both schemas and its hints, and no parameter for the user."""
        tools = client.tools()
        assert {tool["name"] for tool in tools} == TOOLS
        assert len({tool["title"] for tool in tools} - TOOLS) == len(TOOLS)
        for tool in tools:
            assert tool["description"]
            assert tool["inputSchema"]["additionalProperties"] is False
            assert tool["outputSchema"]["properties"]
            assert tool["annotations"].keys() >= {"readOnlyHint", "destructiveHint", "idempotentHint"}
        assert "user_id" not in json.dumps(tools)

    def test_the_hints_are_true(self, alice: Person) -> None:
        """Only the list tool does not write, a deletion destroys, and only adding twice does more than adding once."""
        hints = {tool["name"]: tool["annotations"] for tool in McpClient(alice.mcp_token).tools()}
        assert hints[example.list_tool]["readOnlyHint"] is True
        for name in (example.add_tool, example.change_tool, example.rename_tool, example.delete_tool):
            assert (hints[name]["readOnlyHint"], hints[name]["idempotentHint"]) == (False, name != example.add_tool)
        assert (hints[example.delete_tool]["destructiveHint"], hints[example.add_tool]["destructiveHint"]) == (
            True,
            False,
        )
        assert {hint["openWorldHint"] for hint in hints.values()} == {False}

    def test_a_failed_call_is_an_error_and_recorded(self, client: McpClient, alice: Person, rows: Rows) -> None:
        """The result is an error with a plain sentence."""
        result = client.make(example.call_change(ABSENT))
        assert result["isError"]
        assert [block["text"] for block in result["content"]] == [example.absent]
        (row,) = records(rows, alice)
        assert (row["outcome"], row["result"]) == ("error", {"error": example.absent})

    @pytest.mark.parametrize("call", [example.call_list(), ADD], ids=lambda call: call["name"])
    def test_a_database_error_is_not_shown(
        self, client: McpClient, alice: Person, rows: Rows, logs: Logs, call: Call
    ) -> None:
        """The client gets a fixed sentence, and the operator the error's type and place. Here a right is missing."""
        rows.execute("revoke insert on tool_call from taskchat_app")
        try:
            answer = client.request("tools/call", **call)
        finally:
            rows.execute("grant insert on tool_call to taskchat_app")
        result = answer.json["result"]
        assert (result["isError"], result["content"]) == (
            True,
            [{"type": "text", "text": "Something went wrong on our side."}],
        )
        (line,) = [line for line in logs() if line["message"] == "unexpected error"]
        assert line["error"] == "ProgrammingError"
        assert line["places"]
        assert texts_of(rows, alice) == []

    def test_an_unsafe_role_is_not_shown(
        self, alice: Person, server: Postgres, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The operator's log has the cause. The client need not know how the database is set up."""
        monkeypatch.setenv("DATABASE_URL", server.owner_url)
        reset_processes()
        answer = McpClient(alice.mcp_token).request("tools/call", **example.call_list())
        assert answer.json["result"]["content"][0]["text"] == "Something went wrong on our side."
        assert "BYPASSRLS" not in answer.body

    def test_an_unknown_tool_fails(self, client: McpClient, alice: Person, rows: Rows) -> None:
        """It fails like any other call, and is recorded."""
        result = client.call("buy_milk")
        assert (result["isError"], result["content"][0]["text"]) == (True, "There is no such tool.")
        assert [(row["tool"], row["outcome"]) for row in records(rows, alice)] == [("buy_milk", "error")]

    @pytest.mark.usefixtures("no_canary_logged")
    def test_a_lone_surrogate_does_nothing(self, client: McpClient, alice: Person, rows: Rows) -> None:
        """The call fails, and the next one succeeds."""
        answer = client.request("tools/call", **example.call_add(f"{CANARY}\ud800"))
        assert answer.json.get("error") or answer.json["result"]["isError"]
        assert texts_of(rows, alice) == []
        assert client.add("buy milk")[example.text] == "buy milk"


class TestAuthentication:
    """The token alone says who the user is."""

    def test_a_user_in_the_arguments_is_refused(
        self, client: McpClient, alice: Person, bob: Person, rows: Rows
    ) -> None:
        """No id may be sent, neither the caller's own nor another user's."""
        for person in (alice, bob):
            assert client.call(example.add_tool, **ADD["arguments"], user_id=person.id)["isError"]
        assert texts_of(rows, alice) + texts_of(rows, bob) == []

    def test_a_user_in_the_metadata_is_ignored(self, alice: Person, bob: Person, rows: Rows) -> None:
        """The row belongs to the caller."""
        params = ADD | {"_meta": {"user_id": bob.id, "sub": bob.id}}
        answer = McpClient(alice.mcp_token).send(
            {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}, x_user_id=bob.id
        )
        assert answer.status == 200
        assert (texts_of(rows, alice), texts_of(rows, bob)) == (["x"], [])

    def test_two_users_of_one_environment_are_apart(self, alice: Person, bob: Person) -> None:
        """Their calls alternate, in both eras. Each user reads and changes only their own rows."""
        first, second = McpClient(alice.mcp_token), McpClient(bob.mcp_token, STATELESS)
        milk, cat = first.add("buy milk"), second.add("feed the cat")
        for _ in range(3):
            assert first.listed() == ["buy milk"]
            assert second.listed() == ["feed the cat"]
        for call in (example.call_change, example.call_delete):
            assert first.make(call(cat["id"]))["isError"]
            assert second.make(call(milk["id"]))["isError"]

    @pytest.mark.parametrize("method", ["initialize", "tools/list", "tools/call", "server/discover", "ping"])
    @pytest.mark.parametrize("token", ["", CANARY, f"{CANARY}.{CANARY}.{CANARY}"])
    @pytest.mark.parametrize("version", [HANDSHAKE[-1], STATELESS])
    @pytest.mark.usefixtures("no_canary_logged")
    def test_a_missing_or_invalid_token_gets_401(
        self, environment: None, method: str, token: str, version: str
    ) -> None:
        """For each method the answer names the address of the resource's metadata."""
        answer = McpClient(token, version).request(method)
        assert answer.status == 401
        assert f'resource_metadata="https://api.example.com{METADATA}/mcp"' in answer.headers["www-authenticate"]
        assert CANARY not in answer.body + json.dumps(answer.headers)

    def test_the_token_comes_before_the_body(self, environment: None) -> None:
        """A client without a token does not learn what is wrong with the body."""
        assert McpClient("").send(b"{").status == 401

    def test_a_chat_token_gets_401(self, alice: Person, rows: Rows) -> None:
        """Nor does the chat API accept a token for this endpoint."""
        answer = McpClient(alice.token).request("tools/call", **ADD)
        assert (answer.status, texts_of(rows, alice)) == (401, [])
        assert alice.post({"message": example.add("x")}, authorization=f"Bearer {alice.mcp_token}").status == 401
        assert texts_of(rows, alice) == []

    def test_a_token_for_another_resource_gets_401(self, alice: Person) -> None:
        """Its type and issuer are right."""
        token = alice.issuer.mint_for_mcp(alice.id, issuer=AUTH, resource="https://other.example.com/mcp")
        assert McpClient(token).request("tools/list").status == 401

    def test_another_issuers_signature_gets_401(self, alice: Person) -> None:
        """The key that signed it is in no key set."""
        token = Issuer.new().mint_for_mcp(alice.id, issuer=AUTH, resource=RESOURCE)
        assert McpClient(token).request("tools/list").status == 401

    @pytest.mark.parametrize(("seconds", "status"), [(-20, 200), (-40, 401)])
    def test_an_expired_token_gets_401_after_the_leeway(self, alice: Person, seconds: int, status: int) -> None:
        """The clocks may differ by 30 seconds."""
        lifetime = timedelta(seconds=seconds)
        token = alice.issuer.mint_for_mcp(alice.id, issuer=AUTH, resource=RESOURCE, lifetime=lifetime)
        assert McpClient(token).request("tools/list").status == status


class TestScopes:
    """A tool that only reads needs the first scope, and a tool that changes something needs the second."""

    CALLS: ClassVar[dict[str, Callable[[int], Call]]] = {
        "add": lambda _: ADD,
        "list": lambda _: example.call_list(),
        "change": example.call_change,
        "rename": lambda thing: example.call_rename(thing, "x"),
        "delete": example.call_delete,
    }
    """A call of each tool, given the id of a thing."""

    def client_with_scope(self, person: Person, scope: object, version: str = STATELESS) -> McpClient:
        """Return a client whose token has this `scope` claim, or none."""
        claims: dict[str, Any] = {} if scope is None else {"scope": scope}
        token = person.issuer.mint(person.id, issuer=AUTH, audience=RESOURCE, typ="at+jwt", **claims)
        return McpClient(token, version)

    @pytest.mark.parametrize("kind", CALLS)
    @pytest.mark.parametrize("version", [HANDSHAKE[-1], STATELESS])
    def test_each_tool_needs_its_scope(self, alice: Person, rows: Rows, kind: str, version: str) -> None:
        """With the other scope alone the call fails with a plain sentence, is recorded, and changes nothing."""
        call = self.CALLS[kind](McpClient(alice.mcp_token).add("buy milk")["id"])
        needed, other = (READ, WRITE) if kind == "list" else (WRITE, READ)
        refused = self.client_with_scope(alice, other, version).make(call)
        sentence = f"Insufficient scope: this tool needs {needed}."
        assert (refused["isError"], refused["content"][0]["text"]) == (True, sentence)
        assert (records(rows, alice)[-1]["outcome"], texts_of(rows, alice)) == ("error", ["buy milk"])
        self.client_with_scope(alice, needed, version).do(call["name"], **call["arguments"])

    @pytest.mark.parametrize(
        "scope",
        [
            *(
                None,
                "",
                "openid",
                READ.partition(":")[0],
                READ.replace("read", "*"),
                f"{READ} {WRITE}".upper(),
                READ + WRITE,
            ),
            *(f"{READ},{WRITE}", f"{READ}er {WRITE}r", [READ, WRITE], {READ: 1}),
            *(1, True),
        ],
        ids=str,
    )
    def test_scopes_are_exact(self, alice: Person, rows: Rows, scope: object) -> None:
        """Scopes are separated by spaces. A client without any may list the tools, and call none."""
        client = self.client_with_scope(alice, scope)
        assert {tool["name"] for tool in client.tools()} == TOOLS
        for call in self.CALLS.values():
            assert client.make(call(1))["content"][0]["text"].startswith("Insufficient scope")
        assert texts_of(rows, alice) == []

    def test_other_scopes_do_not_matter(self, alice: Person) -> None:
        """A token may have more scopes."""
        client = self.client_with_scope(alice, f"offline_access {WRITE} email {READ}")
        client.add("x")
        assert client.listed() == ["x"]

    def test_scopes_do_not_stay_in_a_warm_environment(self, alice: Person, bob: Person) -> None:
        """The next request has only its own token's scopes."""
        for _ in range(2):
            McpClient(alice.mcp_token).add("x")
            assert self.client_with_scope(bob, READ).make(ADD)["isError"]

    def test_the_chat_needs_no_scope(self, alice: Person) -> None:
        """The chat token's user may do everything, whatever scopes the token has."""
        token = alice.issuer.mint(alice.id, issuer=AUTH, audience=AUTH, scope=READ)
        answer = alice.say(example.add("buy milk"), authorization=f"Bearer {token}")
        assert [call["outcome"] for call in answer.json["tool_calls"]] == ["ok"]


class TestHandshakeEra:
    """A client sends initialize, notifications/initialized, and then requests with a version header."""

    @pytest.mark.parametrize("version", ["2024-11-05", *HANDSHAKE])
    def test_a_handshake_and_a_call_succeed(self, alice: Person, version: str) -> None:
        """The warm environment keeps nothing between the requests."""
        hello = _hello(version)
        answer = McpClient(alice.mcp_token, None).request("initialize", **hello)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert "mcp-session-id" not in answer.headers
        assert answer.json["result"]["protocolVersion"] == version
        assert answer.json["result"]["serverInfo"] == IDENTITY
        assert answer.json["result"]["capabilities"] == {"tools": {}}
        client = McpClient(alice.mcp_token, version)
        assert client.send({"jsonrpc": "2.0", "method": "notifications/initialized"}).status == 202
        assert {tool["name"] for tool in client.tools()} == TOOLS
        assert client.add("buy milk")[example.text] == "buy milk"

    def test_an_unknown_version_gets_the_newest(self, alice: Person) -> None:
        """The client offers a version that does not exist."""
        result = McpClient(alice.mcp_token, None).result("initialize", **_hello("2099-01-01"))
        assert result["protocolVersion"] == HANDSHAKE[-1]


def _hello(version: str) -> dict[str, Any]:
    return {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}


class TestStatelessEra:
    """There is no handshake: every request names the version, the client and its capabilities."""

    @pytest.fixture
    def client(self, alice: Person) -> McpClient:
        """Give a client of this era."""
        return McpClient(alice.mcp_token, STATELESS)

    def test_discovery_names_versions_and_tools(self, client: McpClient) -> None:
        """The answer also has the server's name and version, and the tools are the only capability."""
        result = client.result("server/discover")
        assert result["supportedVersions"] == [STATELESS]
        assert result["capabilities"] == {"tools": {}}
        assert result["_meta"]["io.modelcontextprotocol/serverInfo"] == IDENTITY

    def test_the_first_request_may_be_a_call(self, client: McpClient) -> None:
        """No other request need precede it."""
        assert client.add("buy milk")[example.text] == "buy milk"

    def test_answers_are_private(self, client: McpClient) -> None:
        """No cache may give one user's answer to another user."""
        assert client.result("tools/list")["cacheScope"] == "private"

    def test_header_and_body_must_agree(self, client: McpClient, alice: Person, rows: Rows) -> None:
        """A proxy that decides by the headers must see the request that the server runs."""
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": ADD}
        assert client.send(message, mcp_method="tools/call", mcp_name=example.list_tool).status == 400
        assert texts_of(rows, alice) == []

    def test_an_unknown_version_gets_400(self, alice: Person) -> None:
        """The handler refuses it."""
        answer = McpClient(alice.mcp_token, "2099-01-01").request("tools/list")
        assert answer.status == 400


class TestOnLambda:
    """A warm environment behind API Gateway answers each request."""

    def test_warm_requests_are_answered(self, client: McpClient) -> None:
        """Three requests in a row get the same answer."""
        assert [len(client.tools()) for _ in range(3)] == [len(TOOLS)] * 3

    def test_chat_and_mcp_share_their_rows(self, alice: Person) -> None:
        """Each reads what the other one wrote, with both handlers in one process."""
        client = McpClient(alice.mcp_token)
        client.add("buy milk")
        assert "buy milk" in alice.say(example.show()).json["response"]
        alice.say(example.add("call mum"))
        assert client.listed() == ["buy milk", "call mum"]

    def test_the_model_and_clients_see_the_same_tools(self, alice: Person, standin: StandIn) -> None:
        """Name, description and input schema are the same."""
        alice.say("hello")
        shown = standin.requests()[0]["body"]["tools"]
        listed = McpClient(alice.mcp_token).tools()
        assert [(tool["name"], tool["description"], tool["parameters"]) for tool in shown] == [
            (tool["name"], tool["description"], tool["inputSchema"]) for tool in listed
        ]

    @pytest.mark.parametrize(
        "body",
        [
            *(b"", b"{", b"[]", b"null", b"1", b"{}", b'"zanzibarquux"', b"\xff", b"[" * 5_000),
            b'{"jsonrpc": "2.0", "id": 1, "method": "zanzibarquux"}',
            b'[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]',
        ],
        ids=lambda body: ascii(body[:12]),
    )
    @pytest.mark.parametrize("version", [HANDSHAKE[-1], STATELESS])
    @pytest.mark.usefixtures("no_canary_logged")
    def test_a_malformed_request_gets_an_error(self, alice: Person, body: bytes, version: str) -> None:
        """The error has the protocol's form, without the text of an exception."""
        answer = McpClient(alice.mcp_token, version).send(body)
        assert answer.status < 500
        assert answer.json["error"]["code"] < 0
        assert "Traceback" not in answer.body

    @pytest.mark.parametrize("id", [0, -1, 2**53, "", "a", "x" * 5_000, "\u00e9\U0001f95b"], ids=ascii)
    @pytest.mark.parametrize("version", [HANDSHAKE[-1], STATELESS])
    def test_any_request_id_is_accepted(self, alice: Person, rows: Rows, id: Any, version: str) -> None:
        """The client chooses the id. The call runs, is recorded and is answered with that id."""
        client = McpClient(alice.mcp_token, version)
        answer = client.request("tools/call", id=id, **ADD)
        assert answer.json["id"] == id
        assert not answer.json["result"].get("isError")
        assert (texts_of(rows, alice), [row["outcome"] for row in records(rows, alice)]) == (["x"], ["ok"])

    def test_a_request_id_may_be_reused(self, alice: Person, rows: Rows) -> None:
        """Both calls run."""
        client = McpClient(alice.mcp_token)
        for text in ("one", "two"):
            client.add(text)
        assert texts_of(rows, alice) == ["one", "two"]

    @pytest.mark.parametrize("has_token", [True, False])
    @pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "PATCH", "OPTIONS", "TRACE"])
    def test_other_methods_get_405(self, alice: Person, method: str, has_token: bool) -> None:
        """There is no stream and no session. `Allow` names POST."""
        from mcp_tools.app import handler

        headers = {"authorization": f"Bearer {alice.mcp_token}"} if has_token else {}
        answer = invoke(handler, event(method, "/mcp", headers=headers | {"accept": "text/event-stream"}))
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
        assert answer.json["type"] == "urn:taskchat:problem:method-not-allowed"

    @pytest.mark.parametrize("version", [HANDSHAKE[-1], STATELESS])
    @pytest.mark.parametrize(
        ("headers", "status", "slug"),
        [
            ({"content_type": "text/plain"}, 415, "unsupported-media-type"),
            ({"content_type": ""}, 415, "unsupported-media-type"),
            ({"content_type": "application/jsonx"}, 415, "unsupported-media-type"),
            ({"accept": "text/plain"}, 406, "not-acceptable"),
            ({"accept": "text/event-stream"}, 406, "not-acceptable"),
        ],
    )
    def test_unacceptable_headers_get_a_problem(
        self, alice: Person, headers: dict[str, str], status: int, slug: str, version: str
    ) -> None:
        """The answer is problem+json, as at the chat API, because no JSON-RPC was read."""
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
        answer = McpClient(alice.mcp_token, version).send(message, **headers)
        assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
        assert (answer.json["type"], answer.json["status"]) == (f"urn:taskchat:problem:{slug}", status)

    @pytest.mark.parametrize(
        "content_type", ["application/json; charset=utf-8", "Application/JSON", "APPLICATION/JSON "]
    )
    def test_json_by_another_name_is_accepted(self, alice: Person, content_type: str) -> None:
        """The media type may have parameters and any case (RFC 9110)."""
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
        answer = McpClient(alice.mcp_token).send(message, content_type=content_type)
        assert (answer.status, len(answer.json["result"]["tools"])) == (200, len(TOOLS))

    @pytest.mark.parametrize(
        "path", ["/mcp/", "/mcp/x", "/", f"/{CANARY}", "/api/x/chat", METADATA + "/", METADATA + "/x"]
    )
    @pytest.mark.usefixtures("no_canary_logged")
    def test_other_paths_get_404(self, alice: Person, path: str) -> None:
        """The handler never redirects."""
        from mcp_tools.app import handler

        answer = invoke(handler, event("POST", path, headers={"authorization": f"Bearer {alice.mcp_token}"}))
        assert (answer.status, answer.headers.get("location")) == (404, None)


class TestMetadata:
    """A client without a token learns which server to ask for one (RFC 9728)."""

    @pytest.mark.parametrize("path", [METADATA, f"{METADATA}/mcp"])
    def test_metadata_needs_no_token(self, environment: None, path: str) -> None:
        """The resource and its authorization server are named exactly, at the resource's path and at the root."""
        from mcp_tools.app import handler

        answer = invoke(handler, event("GET", path))
        assert (answer.status, answer.json["resource"]) == (200, RESOURCE)
        assert answer.json["authorization_servers"] == [AUTH]
        assert answer.json["scopes_supported"] == [READ, WRITE]

    @pytest.mark.parametrize("path", [METADATA, f"{METADATA}/mcp"])
    def test_browsers_may_read_metadata(self, environment: None, path: str) -> None:
        """The page may have any origin."""
        from mcp_tools.app import handler

        asked = {"origin": "https://inspector.example.com", "access-control-request-method": "GET"}
        for method, headers in (("OPTIONS", asked), ("GET", {"origin": asked["origin"]})):
            answer = invoke(handler, event(method, path, headers=headers))
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "*")


class TestInternalFailures:
    """A failure that the client did not cause changes nothing and does not show its cause."""

    @pytest.fixture
    def no_key_set(self, alice: Person, monkeypatch: pytest.MonkeyPatch) -> Handler:
        """Give the function a key set's URL on which nothing listens."""
        from mcp_tools.app import process

        monkeypatch.setenv("AUTH_JWKS_JSON", "")
        monkeypatch.setenv("AUTH_JWKS_URL", "http://127.0.0.1:1/jwks")
        reset_processes()
        adapter: Handler = Mangum(process.app, lifespan="auto")
        return adapter

    @pytest.mark.parametrize("version", [HANDSHAKE[-1], STATELESS])
    def test_an_unreachable_key_set_gets_503(self, no_key_set: Handler, alice: Person, version: str) -> None:
        """After a 401 clients would discard valid tokens."""
        answer = McpClient(alice.mcp_token, version).request("tools/list", handler=no_key_set)
        assert (answer.status, answer.headers["content-type"]) == (503, "application/problem+json")
        assert answer.json["type"] == "urn:taskchat:problem:key-set-unavailable"
        assert int(answer.headers["retry-after"]) >= 1

    def test_a_missing_token_needs_no_key_set(self, no_key_set: Handler) -> None:
        """The request gets 401."""
        assert McpClient("").request("tools/list", handler=no_key_set).status == 401

    @pytest.mark.parametrize("version", [HANDSHAKE[-1], STATELESS])
    @pytest.mark.usefixtures("no_canary_logged")
    def test_an_unreachable_database_fails_the_call(
        self, alice: Person, monkeypatch: pytest.MonkeyPatch, rows: Rows, version: str
    ) -> None:
        """Neither the answer nor the log repeats the call's text or the URL."""
        monkeypatch.setenv("DATABASE_URL", f"postgresql://{CANARY}:{CANARY}@127.0.0.1:1/{CANARY}?sslmode=disable")
        client = McpClient(alice.mcp_token, version)
        for text in (CANARY, [CANARY]):
            answer = client.request("tools/call", **example.call_add(cast(str, text)))
            assert answer.json.get("error") or answer.json["result"]["isError"]
            assert CANARY not in answer.body
        assert texts_of(rows, alice) == []

    @pytest.mark.parametrize("version", [HANDSHAKE[-1], STATELESS])
    def test_a_call_without_time_is_not_made(self, alice: Person, rows: Rows, version: str) -> None:
        """Its client could not learn that the call took effect, and might repeat it."""
        client = McpClient(alice.mcp_token, version)
        client.add("in time")
        late = client.request("tools/call", seconds=MARGIN, **example.call_add("late"))
        assert late.status == 504
        assert late.json["type"] == "urn:taskchat:problem:out-of-time"
        assert texts_of(rows, alice) == ["in time"]
        assert len(records(rows, alice)) == 1


@pytest.mark.usefixtures("no_canary_logged")
class TestLogs:
    """The log has a line for each call, without the user's text."""

    def test_each_call_has_an_audit_line(self, client: McpClient, alice: Person, logs: Logs) -> None:
        """It names the user and the entry point."""
        client.add(CANARY)
        client.make(example.call_change(ABSENT))
        lines = [line for line in logs() if line["message"] == "tool call"]
        assert [(line["tool"], line["outcome"]) for line in lines] == [
            (example.add_tool, "ok"),
            (example.change_tool, "error"),
        ]
        assert {(line["actor"], line["door"]) for line in lines} == {(alice.id, "mcp")}


@pytest.fixture
def url(environment: None) -> Iterator[str]:
    """Serve the app over HTTP on this machine, as `make dev` does."""
    from mcp_tools.app import app

    with serving(app) as address:
        yield f"{address}/mcp"


class TestFastMcpClient:
    """FastMCP's own client works over real HTTP."""

    @pytest.mark.parametrize(
        ("mode", "expected"), [("legacy", HANDSHAKE[-1]), ("auto", STATELESS), (STATELESS, STATELESS)]
    )
    def test_it_lists_and_calls(self, url: str, alice: Person, rows: Rows, mode: Any, expected: str) -> None:
        """It works in each era, and when it detects the era itself."""

        async def use() -> tuple[str | None, set[str], Any, bool]:
            transport = StreamableHttpTransport(url, headers={"host": "api.example.com"}, auth=alice.mcp_token)
            async with Client(transport, mode=mode) as client:
                names = {tool.name for tool in await client.list_tools()}
                added = await client.call_tool(*example.call_add("buy milk").values())
                failed = await client.call_tool(*example.call_change(ABSENT).values(), raise_on_error=False)
                return client.session.protocol_version, names, added.structured_content, failed.is_error

        version, names, added, failed = run(use())
        assert (version, names, failed) == (expected, TOOLS, True)
        assert added[example.text] == "buy milk"
        assert texts_of(rows, alice) == ["buy milk"]
        assert [(row["door"], row["outcome"]) for row in records(rows, alice)] == [("mcp", "ok"), ("mcp", "error")]

    @pytest.mark.parametrize("mode", ["legacy", "auto"])
    def test_without_a_token_it_fails(self, url: str, mode: Any) -> None:
        """The endpoint answers 401."""

        async def use() -> None:
            transport = StreamableHttpTransport(url, headers={"host": "api.example.com"})
            async with Client(transport, mode=mode) as client:
                await client.list_tools()

        with pytest.raises(MCPError):
            run(use())
