"""A real Better Auth, configured as docs/auth.md says, issues tokens. Each token is valid at one endpoint only."""

import base64
import contextlib
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx2
import jwt
import psycopg
import pytest
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from psycopg import sql
from pydantic import AnyUrl
from starlette.types import ASGIApp

from dev import better_auth
from dev.postgres import DATABASE, OWNER, Postgres
from taskchat.http import auth
from taskchat.settings import Settings
from testing.callers import RESOURCE
from testing.gateway import Handler, Response, event, invoke
from tests import personal_data
from tests.conftest import ROOT, reset_processes, run, serving
from tests.domain import example
from tests.tally import report_at_end
from tests.test_mcp_endpoint import METADATA, STATELESS, TOOLS, McpClient
from tests.test_node import broken_machine

Rows = psycopg.Connection[dict[str, Any]]

CALLBACK = "http://127.0.0.1:9/callback"  # no server listens there: the test reads the code from the URL
SCOPES = "tasks:read tasks:write offline_access"
VERSIONS: dict[str, str] = json.loads((better_auth.HERE / "package.json").read_text())["dependencies"]
CONFIGURATION = better_auth.CONFIGURATION.read_text()
OPENID = CONFIGURATION.replace('scopes: ["tasks:read"', 'scopes: ["openid", "tasks:read"')
"""The configuration with the one mistake that users of OpenID Connect are likely to make."""
BARE = re.sub(r"        (issuer|definePayload): .*\n", "", CONFIGURATION)
"""The configuration with Better Auth's own defaults for issuer and payload."""


@pytest.fixture(scope="session")
def database_url(server: Postgres) -> str:
    """Give Postgres's own URL: authentication does not depend on the connection."""
    return server.app_url


@dataclass(frozen=True)
class BetterAuth:
    """Hold a running Better Auth, and its database as an administrator sees it."""

    url: str
    database: Rows

    def ask(self, method: str, path: str, *, session: str = "", **options: Any) -> httpx2.Response:
        """Make one request, as a client without cookies does."""
        headers = {"authorization": f"Bearer {session}"} if session else {}
        url = path if "://" in path else self.url + path
        return httpx2.request(method, url, headers=headers, timeout=30, **options)

    def sign_up(self) -> "Account":
        """Make a new account."""
        credentials = {"name": "Al", "email": f"{uuid4().hex}@example.com", "password": secrets.token_hex(8)}
        answer = self.ask("POST", "/api/auth/sign-up/email", json=credentials)
        assert answer.status_code == 200, answer.text
        return Account(self, answer.json()["user"]["id"], answer.headers["set-auth-token"], credentials)

    @property
    def keys(self) -> list[str]:
        """Return the ids of the published keys."""
        return [key["kid"] for key in self.ask("GET", "/api/auth/jwks").json()["keys"]]

    def age_keys(self, by: timedelta) -> None:
        """Let the signing keys be expired for this long."""
        self.database.execute('update jwks set "expiresAt" = now() - %s::interval', [by])


@dataclass(frozen=True)
class Account:
    """Hold an account and a session of it."""

    server: BetterAuth
    id: str
    session: str
    credentials: dict[str, str]

    def sign_in(self) -> "Account":
        """Return the same account in another session."""
        answer = self.server.ask("POST", "/api/auth/sign-in/email", json=self.credentials)
        assert answer.status_code == 200, answer.text
        return Account(self.server, answer.json()["user"]["id"], answer.headers["set-auth-token"], self.credentials)

    def sign_out(self) -> None:
        """End the session."""
        assert self.server.ask("POST", "/api/auth/sign-out", session=self.session).json() == {"success": True}

    def request_token(self) -> httpx2.Response:
        """Request a token for the chat API."""
        return self.server.ask("GET", "/api/auth/token", session=self.session)

    @property
    def token(self) -> str:
        """Return a fresh token for the chat API."""
        return str(self.request_token().json()["token"])


def say(account: Account, token: str, message: str = example.add("buy milk"), user_id: str = "") -> Response:
    """Take one turn with this token at the account's path, or at the path of `user_id`."""
    from chat.app import handler

    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    body = json.dumps({"message": message, "conversation_id": None}).encode()
    return invoke(handler, event("POST", f"/api/{user_id or account.id}/chat", headers=headers, body=body))


def parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a token's header and claims without a check."""
    return jwt.get_unverified_header(token), jwt.decode(token, options={"verify_signature": False})


@pytest.fixture(scope="session")
def make_database(server: Postgres) -> Iterator[Callable[[str], tuple[str, Rows]]]:
    """Give a function that makes a database on the tests' Postgres. It returns the URL and a connection."""
    opened: list[Rows] = []

    def make(name: str) -> tuple[str, Rows]:
        with psycopg.connect(server.superuser_url, autocommit=True) as connection:
            connection.execute(f"create database {name} owner {OWNER}")
        url = server.owner_url.replace(f"/{DATABASE}?", f"/{name}?")
        opened.append(psycopg.connect(url, autocommit=True, row_factory=psycopg.rows.dict_row))
        return url, opened[-1]

    yield make
    for connection in opened:
        connection.close()


@pytest.fixture(scope="session")
def better(
    make_database: Callable[[str], tuple[str, Rows]],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BetterAuth]:
    """Run Better Auth with the documented configuration, installed and started where the machine's Node fails."""
    url, database = make_database("better_auth")
    with contextlib.ExitStack() as stack:
        with broken_machine(tmp_path_factory.mktemp("machine")):
            address = stack.enter_context(better_auth.running(url, RESOURCE))
        yield BetterAuth(address, database)
    counts = ", ".join(
        f"{row['n']} {what}"
        for what, table in (
            ("users", "user"),
            ("sessions", "session"),
            ("OAuth clients", "oauthClient"),
            ("consents", "oauthConsent"),
            ("refresh tokens", "oauthRefreshToken"),
        )
        for row in database.execute(sql.SQL("select count(*) as n from {}").format(sql.Identifier(table)))
    )
    report_at_end(request.config, f"Better Auth {VERSIONS['better-auth']}, with its OAuth provider: {counts}")


@pytest.fixture(scope="session")
def better_openid(make_database: Callable[[str], tuple[str, Rows]]) -> Iterator[BetterAuth]:
    """Run Better Auth as an OpenID provider too."""
    url, database = make_database("better_auth_openid")
    assert OPENID != CONFIGURATION
    with better_auth.running(url, RESOURCE, OPENID) as address:
        yield BetterAuth(address, database)


@pytest.fixture(scope="session")
def better_bare(make_database: Callable[[str], tuple[str, Rows]]) -> Iterator[BetterAuth]:
    """Run Better Auth with its own defaults for issuer and payload."""
    url, database = make_database("better_auth_bare")
    assert len(BARE.splitlines()) == len(CONFIGURATION.splitlines()) - 2
    with better_auth.running(url, RESOURCE, BARE) as address:
        yield BetterAuth(address, database)


@dataclass(frozen=True)
class Endpoints:
    """Hold both handlers, configured for one Better Auth."""

    mcp_app: ASGIApp
    mcp: Handler

    def call(self, token: str, tool: str, **arguments: Any) -> dict[str, Any]:
        """Return the result of a tool call at the MCP endpoint."""
        result: dict[str, Any] = McpClient(token, STATELESS).result(
            "tools/call", handler=self.mcp, name=tool, arguments=arguments
        )
        return result

    def add(self, token: str, text: str) -> dict[str, Any]:
        """Add a row at the MCP endpoint, and return the call's result."""
        return self.call(token, example.add_tool, **example.call_add(text)["arguments"])

    def status(self, token: str) -> int:
        """Return the MCP endpoint's status for this token."""
        return McpClient(token, STATELESS).request("tools/list", handler=self.mcp).status


@pytest.fixture
def configure(environment: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[BetterAuth], Endpoints]:
    """Give a function that configures the handlers for a Better Auth, with the documented variables."""
    from mcp_tools.app import handler, process

    def configure(server: BetterAuth) -> Endpoints:
        monkeypatch.setenv("AUTH_ISSUER", server.url)
        monkeypatch.setenv("AUTH_AUDIENCE", server.url)
        monkeypatch.setenv("AUTH_JWKS_URL", f"{server.url}/api/auth/jwks")
        monkeypatch.setenv("AUTH_JWKS_JSON", "")
        reset_processes()
        return Endpoints(process.app, handler)

    return configure


@pytest.fixture
def endpoints(configure: Callable[[BetterAuth], Endpoints], better: BetterAuth) -> Endpoints:
    """Return both handlers, configured as the documentation says."""
    return configure(better)


@pytest.fixture
def account(endpoints: Endpoints, better: BetterAuth) -> Account:
    """Sign up a new account."""
    return better.sign_up()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Give a function that moves the clock that judges tokens."""

    def move(by: timedelta) -> None:
        class Later(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> "Later":
                return super().now(tz) + by

        monkeypatch.setattr("jwt.api_jwt.datetime", Later)

    return move


class TestChat:
    """A user signs up, signs in, gets a token, chats and signs out."""

    def test_a_new_account_can_chat(self, account: Account, rows: Rows) -> None:
        """The effect belongs to the new user."""
        answer = say(account, account.token)
        assert (answer.status, [call["outcome"] for call in answer.json["tool_calls"]]) == (200, ["ok"])
        assert example.rows_of(rows, account.id) == [example.row("buy milk")]

    def test_a_second_session_is_the_same_user(self, account: Account) -> None:
        """The user finds the same rows."""
        assert say(account, account.token).status == 200
        again = account.sign_in()
        assert (again.id, again.session != account.session) == (account.id, True)
        assert "buy milk" in say(again, again.token, example.show()).json["response"]

    def test_a_chat_token_has_exactly_these_claims(self, account: Account, better: BetterAuth) -> None:
        """It has no typ, name or address, and lives 15 minutes.

        Its subject fits a path, and iss and aud are the base URL.
        """
        header, claims = parts(account.token)
        assert (set(header), header["alg"], header["kid"] in better.keys) == ({"alg", "kid"}, "EdDSA", True)
        assert claims.keys() == {"sub", "iss", "aud", "iat", "exp"}
        assert (claims["iss"], claims["aud"], claims["exp"] - claims["iat"]) == (better.url, better.url, 900)
        assert claims["sub"] == account.id
        assert re.fullmatch(r"[A-Za-z0-9]{32}", account.id)

    def test_another_users_path_gets_a_403(self, account: Account, better: BetterAuth, rows: Rows) -> None:
        """No row is written for either user."""
        other = better.sign_up()
        assert say(account, account.token, user_id=other.id).status == 403
        found = rows.execute("select from message where user_id = any(%s)", [[account.id, other.id]])
        assert found.fetchall() == []

    def test_a_changed_chat_token_is_refused(self, account: Account, better: BetterAuth) -> None:
        """The changes are another user's id, a longer life, and one bit of the signature."""
        other, token = better.sign_up(), account.token
        header, claims, signature = token.split(".")
        for change in ({"sub": other.id}, {"exp": parts(token)[1]["exp"] + 60}):
            forged = base64.urlsafe_b64encode(json.dumps(parts(token)[1] | change).encode()).rstrip(b"=").decode()
            assert say(other, f"{header}.{forged}.{signature}").status == 401
            assert say(account, f"{header}.{forged}.{signature}").status == 401
        flipped = ("B" if signature[0] == "A" else "A") + signature[1:]
        assert say(account, f"{header}.{claims}.{flipped}").status == 401
        assert say(account, token).status == 200

    def test_a_token_outlives_its_session_by_its_own_life(
        self, account: Account, later: Callable[[timedelta], None]
    ) -> None:
        """After signing out no new token is issued, and the old one ends 15 minutes after its issue."""
        token = account.token
        account.sign_out()
        assert account.request_token().status_code == 401
        assert say(account, token).status == 200
        later(timedelta(minutes=14))
        assert say(account, token).status == 200
        later(timedelta(minutes=15, seconds=auth.LEEWAY + 1))
        assert say(account, token).status == 401

    def test_a_session_is_no_token(self, account: Account, endpoints: Endpoints) -> None:
        """The session's token, with its signature or without, is valid at no endpoint."""
        for session in (account.session, account.session.split(".")[0]):
            assert (say(account, session).status, endpoints.status(session)) == (401, 401)

    def test_a_token_is_no_session(self, account: Account, better: BetterAuth) -> None:
        """A stolen token cannot get others: its life is the limit."""
        assert better.ask("GET", "/api/auth/token", session=account.token).status_code == 401


class TestRotation:
    """Keys change while users chat."""

    @pytest.fixture(autouse=True)
    def no_cooldown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the last fetch of the key set be long ago, as it nearly always is."""
        monkeypatch.setattr(auth, "KEY_SET_COOLDOWN", 0)

    def test_tokens_of_a_new_key_are_accepted_at_once(
        self, account: Account, better: BetterAuth, later: Callable[[timedelta], None]
    ) -> None:
        """Tokens of the old key stay valid until they expire."""
        old = account.token
        assert say(account, old).status == 200
        better.age_keys(timedelta(0))
        new = account.token
        assert parts(new)[0]["kid"] != parts(old)[0]["kid"]
        assert {parts(token)[0]["kid"] for token in (old, new)} <= set(better.keys)
        assert [say(account, token).status for token in (new, old)] == [200, 200]
        later(timedelta(minutes=15, seconds=auth.LEEWAY + 1))
        assert [say(account, token).status for token in (new, old)] == [401, 401]

    def test_a_new_environment_accepts_tokens_of_the_old_key(self, account: Account, better: BetterAuth) -> None:
        """The environment has never fetched the old key alone."""
        old = account.token
        better.age_keys(timedelta(hours=1))
        new = account.token
        reset_processes()
        assert [say(account, token).status for token in (old, new)] == [200, 200]

    def test_parallel_requests_for_tokens_work_with_their_several_keys(
        self, account: Account, better: BetterAuth
    ) -> None:
        """Better Auth makes a key for each parallel request, and tokens of each key are valid."""
        better.age_keys(timedelta(0))
        before = set(better.keys)
        with ThreadPoolExecutor(8) as pool:
            tokens = [answer.json()["token"] for answer in pool.map(lambda _: account.request_token(), range(8))]
        assert {parts(token)[0]["kid"] for token in tokens} <= set(better.keys) - before
        assert [say(account, token).status for token in tokens] == [200] * 8

    def test_a_key_is_refused_after_its_grace_period(
        self, account: Account, better: BetterAuth, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Better Auth stops publishing a key a day after its last signature."""
        old = account.token
        assert say(account, old).status == 200
        better.age_keys(timedelta(days=1, seconds=1))
        new = account.token
        assert parts(old)[0]["kid"] not in better.keys
        monkeypatch.setattr(auth, "KEY_SET_TTL", -1)  # what is cached is old
        assert [say(account, token).status for token in (old, new)] == [401, 200]

    def test_a_deleted_key_is_refused_when_the_cached_key_set_expires(
        self, account: Account, better: BetterAuth, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An operator deletes a leaked key from the table, and users continue with a new one."""
        old = account.token
        assert say(account, old).status == 200
        better.database.execute("delete from jwks where id = %s", [parts(old)[0]["kid"]])
        new = account.token
        monkeypatch.setattr(auth, "KEY_SET_TTL", -1)
        assert [say(account, token).status for token in (old, new)] == [401, 200]


@dataclass(frozen=True)
class OAuthClient:
    """Hold an MCP client: registered by itself, public, with PKCE."""

    server: BetterAuth
    id: str = ""
    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(48))

    @classmethod
    def register(cls, server: BetterAuth) -> "OAuthClient":
        """Register a client. Any program that knows the address can."""
        metadata = {
            "client_name": "test",
            "redirect_uris": [CALLBACK],
            "application_type": "native",  # by default a client is a web page, and may not name this machine
            "token_endpoint_auth_method": "none",
            "grant_types": ["authorization_code", "refresh_token"],
        }
        answer = server.ask("POST", "/api/auth/oauth2/register", json=metadata)
        assert answer.status_code == 201, answer.text
        return cls(server, answer.json()["client_id"])

    def authorize(self, account: Account, scope: str, resource: str | None, granted: str | None = None) -> str:
        """Return the code after the user has agreed to the scopes, or to the `granted` ones."""
        challenge = base64.urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest()).rstrip(b"=")
        asked = {
            "response_type": "code",
            "client_id": self.id,
            "redirect_uri": CALLBACK,
            "scope": scope,
            "state": "s",
            "code_challenge": challenge.decode(),
            "code_challenge_method": "S256",
        } | ({"resource": resource} if resource else {})
        answer = self.server.ask("GET", "/api/auth/oauth2/authorize", session=account.session, params=asked)
        return agree(account, answer, granted)["code"]

    def exchange(self, code: str, **parameters: str) -> httpx2.Response:
        """Exchange the code at the token endpoint."""
        usual = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK}
        return self.request_tokens(**usual, code_verifier=self.verifier, **parameters)

    def request_tokens(self, **parameters: str) -> httpx2.Response:
        """Send a request to the token endpoint."""
        return self.server.ask("POST", "/api/auth/oauth2/token", data={"client_id": self.id} | parameters)

    def tokens(self, account: Account, scope: str = SCOPES, granted: str | None = None) -> dict[str, Any]:
        """Authorize and exchange, for the MCP endpoint."""
        answer = self.exchange(self.authorize(account, scope, RESOURCE, granted), resource=RESOURCE)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


def agree(account: Account, answer: httpx2.Response, granted: str | None = None) -> dict[str, str]:
    """Agree as the consent page does, and return the parameters that the client gets."""
    page = urlsplit(answer.headers["location"])
    assert page.path == "/consent", page
    body = {"accept": True, "oauth_query": page.query} | ({"scope": granted} if granted else {})
    agreed = account.server.ask("POST", "/api/auth/oauth2/consent", session=account.session, json=body)
    return {name: values[0] for name, values in parse_qs(urlsplit(agreed.headers["location"]).query).items()}


class TestOAuth:
    """The OAuth provider issues access tokens for the MCP endpoint."""

    @pytest.fixture
    def client(self, endpoints: Endpoints, better: BetterAuth) -> OAuthClient:
        """Register a client."""
        return OAuthClient.register(better)

    def test_metadata_leads_a_client_to_the_auth_server(self, endpoints: Endpoints, better: BetterAuth) -> None:
        """The MCP endpoint names the issuer, whose metadata has our scopes and PKCE."""
        resource = invoke(endpoints.mcp, event("GET", METADATA)).json
        (issuer,) = resource["authorization_servers"]
        metadata = better.ask("GET", f"{issuer}/.well-known/oauth-authorization-server").json()
        assert metadata["issuer"] == issuer == better.url
        assert set(resource["scopes_supported"]) <= set(metadata["scopes_supported"])
        assert metadata["code_challenge_methods_supported"] == ["S256"]
        assert metadata["jwks_uri"] == f"{better.url}/api/auth/jwks"

    def test_an_access_token_has_exactly_these_claims(
        self, client: OAuthClient, account: Account, better: BetterAuth
    ) -> None:
        """It has the type at+jwt, exactly this resource, 15 minutes, the client and its scopes."""
        header, claims = parts(client.tokens(account)["access_token"])
        assert (set(header), header["typ"], header["alg"]) == ({"alg", "kid", "typ"}, "at+jwt", "EdDSA")
        assert claims.keys() == {"sub", "iss", "aud", "iat", "exp", "jti", "sid", "scope", "client_id", "azp"}
        assert (claims["iss"], claims["aud"], claims["sub"]) == (better.url, RESOURCE, account.id)
        assert (claims["client_id"], claims["azp"], claims["scope"]) == (client.id, client.id, SCOPES)
        assert claims["exp"] - claims["iat"] == 900

    def test_an_access_token_is_valid_at_the_mcp_endpoint(
        self, client: OAuthClient, account: Account, endpoints: Endpoints, rows: Rows
    ) -> None:
        """The client lists and calls tools for the user who agreed, and the user's chat sees the effects."""
        token = client.tokens(account)["access_token"]
        listed = McpClient(token, STATELESS).result("tools/list", handler=endpoints.mcp)["tools"]
        assert {tool["name"] for tool in listed} == TOOLS
        assert endpoints.add(token, "buy milk")["structuredContent"][example.text] == "buy milk"
        kept = rows.execute("select door, outcome from tool_call where user_id = %s", [account.id]).fetchall()
        assert kept == [{"door": "mcp", "outcome": "ok"}]
        assert "buy milk" in say(account, account.token, example.show()).json["response"]

    def test_each_token_is_valid_at_one_endpoint_only(
        self, client: OAuthClient, account: Account, endpoints: Endpoints
    ) -> None:
        """User, issuer and key are the same for both tokens."""
        access, chat = client.tokens(account)["access_token"], account.token
        assert parts(access)[0]["kid"] == parts(chat)[0]["kid"]
        assert (endpoints.status(access), say(account, access).status) == (200, 401)
        assert (endpoints.status(chat), say(account, chat).status) == (401, 200)

    def test_a_user_may_grant_less(self, client: OAuthClient, account: Account, endpoints: Endpoints) -> None:
        """The client asks for both scopes, and the user agrees to reading only."""
        token = client.tokens(account, granted="tasks:read")["access_token"]
        assert parts(token)[1]["scope"] == "tasks:read"
        assert example.listed(endpoints.call(token, example.list_tool)["structuredContent"]) == []
        refused = endpoints.add(token, "x")
        assert (refused["isError"], refused["content"][0]["text"]) == (
            True,
            "Insufficient scope: this tool needs tasks:write.",
        )

    def test_a_refresh_token_gets_new_access_tokens(
        self, client: OAuthClient, account: Account, endpoints: Endpoints
    ) -> None:
        """offline_access lets a client continue after 15 minutes. The refresh token itself is valid at no endpoint."""
        refresh = client.tokens(account)["refresh_token"]
        answer = client.request_tokens(grant_type="refresh_token", refresh_token=refresh, resource=RESOURCE)
        assert endpoints.status(answer.json()["access_token"]) == 200
        assert (endpoints.status(refresh), say(account, refresh).status) == (401, 401)

    def test_revoking_the_refresh_token_ends_the_access(
        self, client: OAuthClient, account: Account, endpoints: Endpoints
    ) -> None:
        """Signing out does not end it, because the user's agreement goes on."""
        refresh = client.tokens(account)["refresh_token"]
        account.sign_out()
        answer = client.request_tokens(grant_type="refresh_token", refresh_token=refresh, resource=RESOURCE)
        assert endpoints.status(answer.json()["access_token"]) == 200
        refresh = answer.json()["refresh_token"]
        revoked = {"client_id": client.id, "token": refresh, "token_type_hint": "refresh_token"}
        assert client.server.ask("POST", "/api/auth/oauth2/revoke", data=revoked).status_code == 200
        answer = client.request_tokens(grant_type="refresh_token", refresh_token=refresh, resource=RESOURCE)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")

    def test_access_tokens_of_a_new_key_are_accepted_at_once(
        self,
        client: OAuthClient,
        account: Account,
        endpoints: Endpoints,
        better: BetterAuth,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The MCP endpoint fetches keys as the chat endpoint does."""
        monkeypatch.setattr(auth, "KEY_SET_COOLDOWN", 0)
        old = client.tokens(account)["access_token"]
        assert endpoints.status(old) == 200
        better.age_keys(timedelta(0))
        new = OAuthClient.register(better).tokens(account)["access_token"]
        assert parts(new)[0]["kid"] != parts(old)[0]["kid"]
        assert [endpoints.status(token) for token in (new, old)] == [200, 200]

    def test_a_changed_access_token_is_refused(
        self, client: OAuthClient, account: Account, endpoints: Endpoints
    ) -> None:
        """The changes are more scopes than were granted, and another type."""
        token = client.tokens(account, granted="tasks:read")["access_token"]
        header, claims = parts(token)
        for forged in ((header, claims | {"scope": SCOPES}), (header | {"typ": "JWT"}, claims)):
            encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in forged]
            assert endpoints.status(".".join([*encoded, token.split(".")[2]])) == 401

    def test_a_token_without_a_resource_is_refused(
        self, client: OAuthClient, account: Account, endpoints: Endpoints
    ) -> None:
        """The client gets an opaque token that only Better Auth can read."""
        token = client.exchange(client.authorize(account, SCOPES, None)).json()["access_token"]
        assert "." not in token
        assert (endpoints.status(token), say(account, token).status) == (401, 401)

    def test_better_auth_issues_no_token_for_another_resource(self, client: OAuthClient, account: Account) -> None:
        """The chat API's address is no resource either."""
        for resource in ("https://other.example.com/mcp", client.server.url):
            answer = client.server.ask(
                "GET",
                "/api/auth/oauth2/authorize",
                session=account.session,
                params={
                    **{"response_type": "code", "client_id": client.id, "redirect_uri": CALLBACK, "scope": SCOPES},
                    **{"state": "s", "code_challenge": secrets.token_urlsafe(32), "code_challenge_method": "S256"},
                    "resource": resource,
                },
            )
            told = parse_qs(urlsplit(answer.headers["location"]).query)
            assert (told["error"], "code" in told) == (["invalid_target"], False)

    def test_a_client_gets_no_token_without_a_user(self, client: OAuthClient) -> None:
        """Its subject would be the client."""
        answer = client.request_tokens(grant_type="client_credentials", scope="tasks:read", resource=RESOURCE)
        assert (answer.status_code, answer.json()["error"]) == (400, "unsupported_grant_type")

    def test_the_mcp_librarys_client_works(self, account: Account, endpoints: Endpoints, rows: Rows) -> None:
        """It goes from a 401 without a token to a tool call by itself, except for the user's consent."""

        async def use(port: int) -> Any:
            library = LibraryCallbacks(account)
            transport = StreamableHttpTransport(
                RESOURCE,
                auth=OAuthClientProvider(
                    RESOURCE, library.metadata, library, library.open_browser, library.wait_for_callback
                ),
                httpx_client_factory=lambda **options: httpx2.AsyncClient(transport=Resolver(port), **options),
            )
            async with Client(transport) as client:
                listed = {tool.name for tool in await client.list_tools()}
                added = await client.call_tool(example.add_tool, example.call_add("buy milk")["arguments"])
            return listed, added.structured_content

        with serving(endpoints.mcp_app) as address:
            listed, added = run(use(int(address.rpartition(":")[2])))
        assert (listed, added[example.text]) == (TOOLS, "buy milk")
        assert example.rows_of(rows, account.id) == [example.row("buy milk")]


class Resolver(httpx2.AsyncHTTPTransport):
    """Send requests for the resource's public name to a port of this machine."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request."""
        if request.url.host == urlsplit(RESOURCE).hostname:
            request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=self._port)
        return await super().handle_async_request(request)


class LibraryCallbacks:
    """Store tokens, and act as the user's browser, for the MCP library's client."""

    metadata = OAuthClientMetadata(redirect_uris=[AnyUrl(CALLBACK)], client_name="library")

    def __init__(self, account: Account) -> None:
        self._account, self._sent = account, dict[str, str]()
        self._tokens: OAuthToken | None = None
        self._client: OAuthClientInformationFull | None = None

    async def open_browser(self, url: str) -> None:
        """Sign in and agree."""
        self._sent = agree(self._account, self._account.server.ask("GET", url, session=self._account.session))

    async def wait_for_callback(self) -> AuthorizationCodeResult:
        """Return the parameters of the redirect."""
        return AuthorizationCodeResult.model_validate(self._sent)

    async def get_tokens(self) -> OAuthToken | None:
        """Return the tokens, once there are any."""
        return self._tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        """Store the tokens."""
        self._tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        """Return the client's registration, once there is one."""
        return self._client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Store the client's registration."""
        self._client = client_info


class TestOpenId:
    """The provider has openid as a scope, against the documentation's advice."""

    @pytest.fixture
    def endpoints(self, configure: Callable[[BetterAuth], Endpoints], better_openid: BetterAuth) -> Endpoints:
        """Return both handlers, configured for it."""
        return configure(better_openid)

    @pytest.fixture
    def account(self, endpoints: Endpoints, better_openid: BetterAuth) -> Account:
        """Sign up there."""
        return better_openid.sign_up()

    def test_an_id_token_is_refused_at_both_endpoints(
        self, endpoints: Endpoints, account: Account, better_openid: BetterAuth
    ) -> None:
        """Issuer, key and subject are right, but it identifies the user to a client."""
        token = OAuthClient.register(better_openid).tokens(account, f"openid {SCOPES}")["id_token"]
        header, claims = parts(token)
        assert (claims["iss"], claims["sub"], header["kid"] in better_openid.keys) == (
            better_openid.url,
            account.id,
            True,
        )
        assert (endpoints.status(token), say(account, token).status) == (401, 401)

    def test_an_access_token_for_two_resources_is_refused(
        self, endpoints: Endpoints, account: Account, better_openid: BetterAuth
    ) -> None:
        """With openid its audience has Better Auth's userinfo too."""
        token = OAuthClient.register(better_openid).tokens(account, f"openid {SCOPES}")["access_token"]
        assert parts(token)[1]["aud"] == [RESOURCE, f"{better_openid.url}/api/auth/oauth2/userinfo"]
        assert (endpoints.status(token), say(account, token).status) == (401, 401)

    def test_an_access_token_without_openid_is_accepted(
        self, endpoints: Endpoints, account: Account, better_openid: BetterAuth
    ) -> None:
        """The client asked for the two scopes only."""
        token = OAuthClient.register(better_openid).tokens(account)["access_token"]
        assert endpoints.status(token) == 200


class TestDefaults:
    """Better Auth's own defaults show why the configuration sets issuer and payload."""

    def test_by_default_access_tokens_have_another_issuer(
        self, configure: Callable[[BetterAuth], Endpoints], better_bare: BetterAuth
    ) -> None:
        """Chat tokens have the base URL. The MCP endpoint refuses the access tokens."""
        endpoints, account = configure(better_bare), better_bare.sign_up()
        access, chat = OAuthClient.register(better_bare).tokens(account)["access_token"], account.token
        assert (parts(chat)[1]["iss"], parts(access)[1]["iss"]) == (better_bare.url, f"{better_bare.url}/api/auth")
        assert (say(account, chat).status, endpoints.status(access)) == (200, 401)

    def test_by_default_tokens_contain_name_and_email(self, better_bare: BetterAuth) -> None:
        """Every reader of a token sees them."""
        account = better_bare.sign_up()
        claims = parts(account.token)[1]
        assert (claims["name"], claims["email"]) == (account.credentials["name"], account.credentials["email"])


class TestDocumentation:
    """docs/auth.md shows the tested configuration."""

    TEXT = (ROOT / "docs/auth.md").read_text()

    def test_the_page_shows_this_configuration(self) -> None:
        """It is equal to the last character."""
        (shown,) = re.findall(r"```js\n(.*?)```", self.TEXT, re.DOTALL)
        assert shown == CONFIGURATION

    def test_the_page_installs_these_versions(self) -> None:
        """Each version is exact."""
        assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in VERSIONS.values())
        (command,) = re.findall(r"^npm install (.*)$", self.TEXT, re.MULTILINE)
        named = dict(package.rsplit("@", 1) for package in command.split())
        assert named == VERSIONS

    def test_the_page_lists_all_variables(self) -> None:
        """The program reads each variable, and the template has each parameter."""
        rows = re.findall(r"^\| `(AUTH_\w+|MCP_\w+)` \| `(\w+)` \|", self.TEXT, re.MULTILINE)
        limits = (ROOT / "docs" / "limits.md").read_text()
        fields = {field.upper() for field in Settings.model_fields if field.startswith(("auth_", "mcp_"))}
        assert {name for name, _ in rows} == {field for field in fields if f"`{field}`" not in limits}
        template = (ROOT / "template.yaml").read_text()
        assert all(
            re.search(rf"^        {name}: (!If\n +- \w+\n +- )?!Ref {parameter}$", template, re.MULTILINE)
            for name, parameter in rows
        )

    def test_better_auth_is_not_packaged(self) -> None:
        """No shipped file knows of Node or of this server."""
        shipped = [*ROOT.glob("functions/**/*"), *ROOT.glob("shared/**/*")]
        of_the_page = {ROOT / "shared" / "taskchat" / "tasks" / "panel.js"}
        node = [path for path in shipped if path.suffix in {".mjs", ".js"} or path.name == "package.json"]
        assert set(node) <= of_the_page


class TestDeletion:
    """Better Auth has the person erased before it deletes the account."""

    @pytest.fixture(scope="class")
    @classmethod
    def database(cls, make_database: Callable[[str], tuple[str, Rows]]) -> tuple[str, Rows]:
        """Make a database for these tests."""
        return make_database("better_auth_deletion")

    @pytest.fixture
    def account(self, configure: Callable[[BetterAuth], Endpoints], database: tuple[str, Rows]) -> Iterator[Account]:
        """Sign up at a Better Auth that knows the address of the chat API."""
        from chat.app import app

        with serving(app) as taskchat, better_auth.running(database[0], RESOURCE, taskchat=taskchat) as address:
            server = BetterAuth(address, database[1])
            configure(server)
            yield server.sign_up()

    def delete(self, account: Account) -> httpx2.Response:
        """Delete the account."""
        return account.server.ask("POST", "/api/auth/delete-user", session=account.session, json={})

    def users(self, account: Account) -> int:
        """Return how many accounts of this id there are."""
        return len(account.server.database.execute('select from "user" where id = %s', [account.id]).fetchall())

    def test_the_account_and_all_rows_go(self, account: Account, rows: Rows) -> None:
        """With the hook of the documented configuration."""
        assert say(account, account.token).status == 200
        reset_processes()  # the request that follows comes to another process
        assert personal_data.count(rows, account.id)["message"] == 2
        answer = self.delete(account)
        assert (answer.status_code, answer.json().get("success")) == (200, True), answer.text
        assert self.users(account) == 0
        assert personal_data.count(rows, account.id) == {}

    def test_the_account_stays_if_taskchat_cannot_be_reached(
        self, endpoints: Endpoints, better: BetterAuth, rows: Rows
    ) -> None:
        """The answer says so, and the user can try again."""
        account = better.sign_up()
        assert say(account, account.token).status == 200
        assert self.delete(account).status_code == 503
        assert self.users(account) == 1
        assert personal_data.count(rows, account.id)["message"] == 2
        assert account.request_token().status_code == 200
