"""A real Better Auth, configured as docs/auth.md says: its tokens open the door they are for, and no other."""

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
from tests.conftest import ROOT, forget, run, serving
from tests.tally import tell_at_the_end
from tests.test_mcp_door import METADATA, STATELESS, TOOLS, McpClient
from tests.test_node import broken_machine

Rows = psycopg.Connection[dict[str, Any]]

CALLBACK = "http://127.0.0.1:9/callback"  # nobody listens there: a test reads the code off the address
SCOPES = "tasks:read tasks:write offline_access"
VERSIONS: dict[str, str] = json.loads((better_auth.HERE / "package.json").read_text())["dependencies"]
CONFIGURATION = better_auth.CONFIGURATION.read_text()
OPENID = CONFIGURATION.replace('scopes: ["tasks:read"', 'scopes: ["openid", "tasks:read"')
"""With the one mistake that people who know OpenID Connect are likely to make."""
BARE = re.sub(r"        (issuer|definePayload): .*\n", "", CONFIGURATION)
"""With what Better Auth does when it isn't told better."""


@pytest.fixture(scope="session")
def database_url(server: Postgres) -> str:
    """Postgres itself: who calls does not depend on the way to it."""
    return server.app_url


@dataclass(frozen=True)
class BetterAuth:
    """A Better Auth that runs, and its database as an administrator sees it."""

    url: str
    database: Rows

    def ask(self, method: str, path: str, *, session: str = "", **options: Any) -> httpx2.Response:
        """Make one request, as a client without cookies does."""
        headers = {"authorization": f"Bearer {session}"} if session else {}
        url = path if "://" in path else self.url + path
        return httpx2.request(method, url, headers=headers, timeout=30, **options)

    def sign_up(self) -> "Member":
        """Somebody new."""
        words = {"name": "Al", "email": f"{uuid4().hex}@example.com", "password": secrets.token_hex(8)}
        answer = self.ask("POST", "/api/auth/sign-up/email", json=words)
        assert answer.status_code == 200, answer.text
        return Member(self, answer.json()["user"]["id"], answer.headers["set-auth-token"], words)

    @property
    def keys(self) -> list[str]:
        """The ids of the keys it publishes."""
        return [key["kid"] for key in self.ask("GET", "/api/auth/jwks").json()["keys"]]

    def age_keys(self, by: timedelta) -> None:
        """Let the time of the keys that sign be over, and so much more time pass."""
        self.database.execute('update jwks set "expiresAt" = now() - %s::interval', [by])


@dataclass(frozen=True)
class Member:
    """Somebody with an account, and a session in which they are signed in."""

    server: BetterAuth
    id: str
    session: str
    words: dict[str, str]

    def sign_in(self) -> "Member":
        """The same person in another session."""
        answer = self.server.ask("POST", "/api/auth/sign-in/email", json=self.words)
        assert answer.status_code == 200, answer.text
        return Member(self.server, answer.json()["user"]["id"], answer.headers["set-auth-token"], self.words)

    def sign_out(self) -> None:
        """End the session."""
        assert self.server.ask("POST", "/api/auth/sign-out", session=self.session).json() == {"success": True}

    def ask_for_token(self) -> httpx2.Response:
        """What the server says to a wish for a token for the chat API."""
        return self.server.ask("GET", "/api/auth/token", session=self.session)

    @property
    def token(self) -> str:
        """A fresh token for the chat API."""
        return str(self.ask_for_token().json()["token"])


def say(member: Member, token: str, message: str = "Add buy milk", user_id: str = "") -> Response:
    """One turn in their chat, or in that of the person named, with the given token."""
    from chat.app import handler

    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    body = json.dumps({"message": message, "conversation_id": None}).encode()
    return invoke(handler, event("POST", f"/api/{user_id or member.id}/chat", headers=headers, body=body))


def parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims, as they stand there."""
    return jwt.get_unverified_header(token), jwt.decode(token, options={"verify_signature": False})


@pytest.fixture(scope="session")
def make_database(server: Postgres) -> Iterator[Callable[[str], tuple[str, Rows]]]:
    """What makes a database of its own on the tests' Postgres: its URL, and a connection to look into it."""
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
    """Better Auth with the configuration of the documentation, installed and started where the machine's Node fails."""
    url, database = make_database("better_auth")
    with contextlib.ExitStack() as stack:
        with broken_machine(tmp_path_factory.mktemp("machine")):
            address = stack.enter_context(better_auth.running(url, RESOURCE))
        yield BetterAuth(address, database)
    counts = ", ".join(
        f"{row['n']} {what}"
        for what, table in (
            ("people", "user"),
            ("sessions", "session"),
            ("OAuth clients", "oauthClient"),
            ("consents", "oauthConsent"),
            ("refresh tokens", "oauthRefreshToken"),
        )
        for row in database.execute(sql.SQL("select count(*) as n from {}").format(sql.Identifier(table)))
    )
    tell_at_the_end(request.config, f"Better Auth {VERSIONS['better-auth']}, with its OAuth provider: {counts}")


@pytest.fixture(scope="session")
def better_openid(make_database: Callable[[str], tuple[str, Rows]]) -> Iterator[BetterAuth]:
    """Better Auth as an OpenID provider besides."""
    url, database = make_database("better_auth_openid")
    assert OPENID != CONFIGURATION
    with better_auth.running(url, RESOURCE, OPENID) as address:
        yield BetterAuth(address, database)


@pytest.fixture(scope="session")
def better_bare(make_database: Callable[[str], tuple[str, Rows]]) -> Iterator[BetterAuth]:
    """Better Auth with its own notion of an issuer and of what belongs in a token."""
    url, database = make_database("better_auth_bare")
    assert len(BARE.splitlines()) == len(CONFIGURATION.splitlines()) - 2
    with better_auth.running(url, RESOURCE, BARE) as address:
        yield BetterAuth(address, database)


@dataclass(frozen=True)
class Doors:
    """Both handlers, paired with one Better Auth."""

    mcp_app: ASGIApp
    mcp: Handler

    def call(self, token: str, tool: str, **arguments: Any) -> dict[str, Any]:
        """The result of a tool call at the MCP door."""
        result: dict[str, Any] = McpClient(token, STATELESS).result(
            "tools/call", handler=self.mcp, name=tool, arguments=arguments
        )
        return result

    def status(self, token: str) -> int:
        """How the MCP door answers whoever has this token."""
        return McpClient(token, STATELESS).request("tools/list", handler=self.mcp).status


@pytest.fixture
def pair(environment: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[BetterAuth], Doors]:
    """What pairs the handlers with a Better Auth, by the variables that the documentation names."""
    from mcp_tools.app import handler, process

    def pair(server: BetterAuth) -> Doors:
        monkeypatch.setenv("AUTH_ISSUER", server.url)
        monkeypatch.setenv("AUTH_AUDIENCE", server.url)
        monkeypatch.setenv("AUTH_JWKS_URL", f"{server.url}/api/auth/jwks")
        monkeypatch.setenv("AUTH_JWKS_JSON", "")
        forget()
        return Doors(process.app, handler)

    return pair


@pytest.fixture
def doors(pair: Callable[[BetterAuth], Doors], better: BetterAuth) -> Doors:
    """Both handlers, paired as the documentation says."""
    return pair(better)


@pytest.fixture
def member(doors: Doors, better: BetterAuth) -> Member:
    """Somebody who has just signed up."""
    return better.sign_up()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """What moves the clock on by which tokens are judged."""

    def move(by: timedelta) -> None:
        class Later(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> "Later":
                return super().now(tz) + by

        monkeypatch.setattr("jwt.api_jwt.datetime", Later)

    return move


class TestChat:
    """Sign up, sign in, take a token, chat, sign out."""

    def test_sign_up_and_chat(self, member: Member, rows: Rows) -> None:
        """What a new person says is done, and is theirs."""
        answer = say(member, member.token)
        assert (answer.status, [call["outcome"] for call in answer.json["tool_calls"]]) == (200, ["ok"])
        kept = rows.execute("select title from task where user_id = %s", [member.id]).fetchall()
        assert [row["title"] for row in kept] == ["buy milk"]

    def test_sign_in_and_go_on(self, member: Member) -> None:
        """In another session they are the same person, with the same tasks."""
        assert say(member, member.token).status == 200
        again = member.sign_in()
        assert (again.id, again.session != member.session) == (member.id, True)
        assert "buy milk" in say(again, again.token, "what is left?").json["response"]

    def test_the_shape_of_a_token(self, member: Member, better: BetterAuth) -> None:
        """No typ, no name, no address; 15 minutes; an id that can stand in a path; issuer and audience the base URL."""
        header, claims = parts(member.token)
        assert (set(header), header["alg"], header["kid"] in better.keys) == ({"alg", "kid"}, "EdDSA", True)
        assert claims.keys() == {"sub", "iss", "aud", "iat", "exp"}
        assert (claims["iss"], claims["aud"], claims["exp"] - claims["iat"]) == (better.url, better.url, 900)
        assert claims["sub"] == member.id
        assert re.fullmatch(r"[A-Za-z0-9]{32}", member.id)

    def test_another_s_path(self, member: Member, better: BetterAuth, rows: Rows) -> None:
        """403, and nothing is written for anybody."""
        other = better.sign_up()
        assert say(member, member.token, user_id=other.id).status == 403
        found = rows.execute("select from message where user_id = any(%s)", [[member.id, other.id]])
        assert found.fetchall() == []

    def test_a_changed_token(self, member: Member, better: BetterAuth) -> None:
        """Another's id, a longer life, or one bit of the signature."""
        other, token = better.sign_up(), member.token
        header, claims, signature = token.split(".")
        for change in ({"sub": other.id}, {"exp": parts(token)[1]["exp"] + 60}):
            forged = base64.urlsafe_b64encode(json.dumps(parts(token)[1] | change).encode()).rstrip(b"=").decode()
            assert say(other, f"{header}.{forged}.{signature}").status == 401
            assert say(member, f"{header}.{forged}.{signature}").status == 401
        flipped = ("B" if signature[0] == "A" else "A") + signature[1:]
        assert say(member, f"{header}.{claims}.{flipped}").status == 401
        assert say(member, token).status == 200

    def test_sign_out(self, member: Member, later: Callable[[timedelta], None]) -> None:
        """No new token can be had; the one there is ends by itself, a quarter of an hour after it was made."""
        token = member.token
        member.sign_out()
        assert member.ask_for_token().status_code == 401
        assert say(member, token).status == 200
        later(timedelta(minutes=14))
        assert say(member, token).status == 200
        later(timedelta(minutes=15, seconds=auth.LEEWAY + 1))
        assert say(member, token).status == 401

    def test_a_session_is_no_token(self, member: Member, doors: Doors) -> None:
        """What signs in at Better Auth opens neither door, with its signature or without."""
        for session in (member.session, member.session.split(".")[0]):
            assert (say(member, session).status, doors.status(session)) == (401, 401)

    def test_a_token_is_no_session(self, member: Member, better: BetterAuth) -> None:
        """Who got hold of a token cannot make others of it: with its life it is over."""
        assert better.ask("GET", "/api/auth/token", session=member.token).status_code == 401


class TestRotation:
    """Keys come and go while people chat."""

    @pytest.fixture(autouse=True)
    def no_cooldown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As if the last look at the key set were long past: it is that nearly always."""
        monkeypatch.setattr(auth, "KEY_SET_COOLDOWN", 0)

    def test_a_new_key(self, member: Member, better: BetterAuth, later: Callable[[timedelta], None]) -> None:
        """Its tokens are believed at once, and those of the old key until they expire."""
        old = member.token
        assert say(member, old).status == 200
        better.age_keys(timedelta(0))
        new = member.token
        assert parts(new)[0]["kid"] != parts(old)[0]["kid"]
        assert {parts(token)[0]["kid"] for token in (old, new)} <= set(better.keys)
        assert [say(member, token).status for token in (new, old)] == [200, 200]
        later(timedelta(minutes=15, seconds=auth.LEEWAY + 1))
        assert [say(member, token).status for token in (new, old)] == [401, 401]

    def test_a_cold_start_after_it(self, member: Member, better: BetterAuth) -> None:
        """An environment that has never seen the old key believes its tokens too."""
        old = member.token
        better.age_keys(timedelta(hours=1))
        new = member.token
        forget()
        assert [say(member, token).status for token in (old, new)] == [200, 200]

    def test_several_at_once(self, member: Member, better: BetterAuth) -> None:
        """Requests in parallel make Better Auth mint a key each: whichever signed is believed."""
        better.age_keys(timedelta(0))
        before = set(better.keys)
        with ThreadPoolExecutor(8) as pool:
            tokens = [answer.json()["token"] for answer in pool.map(lambda _: member.ask_for_token(), range(8))]
        assert {parts(token)[0]["kid"] for token in tokens} <= set(better.keys) - before
        assert [say(member, token).status for token in tokens] == [200] * 8

    def test_after_its_grace(self, member: Member, better: BetterAuth, monkeypatch: pytest.MonkeyPatch) -> None:
        """Better Auth stops publishing a key a day after its last signature, and it is believed no longer."""
        old = member.token
        assert say(member, old).status == 200
        better.age_keys(timedelta(days=1, seconds=1))
        new = member.token
        assert parts(old)[0]["kid"] not in better.keys
        monkeypatch.setattr(auth, "KEY_SET_TTL", -1)  # what is cached is old
        assert [say(member, token).status for token in (old, new)] == [401, 200]

    def test_a_key_that_leaked(self, member: Member, better: BetterAuth, monkeypatch: pytest.MonkeyPatch) -> None:
        """Deleted from the table, it is believed no longer than a cached key set lives; people go on with a new one."""
        old = member.token
        assert say(member, old).status == 200
        better.database.execute("delete from jwks where id = %s", [parts(old)[0]["kid"]])
        new = member.token
        monkeypatch.setattr(auth, "KEY_SET_TTL", -1)
        assert [say(member, token).status for token in (old, new)] == [401, 200]


@dataclass(frozen=True)
class OAuthClient:
    """An MCP client as it looks to Better Auth: registered by itself, a public client with PKCE."""

    server: BetterAuth
    id: str = ""
    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(48))

    @classmethod
    def register(cls, server: BetterAuth) -> "OAuthClient":
        """As any program can that finds the address."""
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

    def authorize(self, member: Member, scope: str, resource: str | None, granted: str | None = None) -> str:
        """The code, after the person has agreed to the scopes, or to those `granted` of them."""
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
        answer = self.server.ask("GET", "/api/auth/oauth2/authorize", session=member.session, params=asked)
        return agree(member, answer, granted)["code"]

    def exchange(self, code: str, **parameters: str) -> httpx2.Response:
        """What the token endpoint says to the code."""
        usual = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK}
        return self.ask_for_tokens(**usual, code_verifier=self.verifier, **parameters)

    def ask_for_tokens(self, **parameters: str) -> httpx2.Response:
        """What the token endpoint says."""
        return self.server.ask("POST", "/api/auth/oauth2/token", data={"client_id": self.id} | parameters)

    def tokens(self, member: Member, scope: str = SCOPES, granted: str | None = None) -> dict[str, Any]:
        """The whole way, for the MCP door."""
        answer = self.exchange(self.authorize(member, scope, RESOURCE, granted), resource=RESOURCE)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


def agree(member: Member, answer: httpx2.Response, granted: str | None = None) -> dict[str, str]:
    """Do what the consent page does, and give what the client is then sent."""
    page = urlsplit(answer.headers["location"])
    assert page.path == "/consent", page
    body = {"accept": True, "oauth_query": page.query} | ({"scope": granted} if granted else {})
    agreed = member.server.ask("POST", "/api/auth/oauth2/consent", session=member.session, json=body)
    return {name: values[0] for name, values in parse_qs(urlsplit(agreed.headers["location"]).query).items()}


class TestOAuth:
    """The OAuth provider's access tokens, for the MCP door."""

    @pytest.fixture
    def client(self, doors: Doors, better: BetterAuth) -> OAuthClient:
        """A client that has registered itself."""
        return OAuthClient.register(better)

    def test_the_way_there(self, doors: Doors, better: BetterAuth) -> None:
        """From the door's metadata to the server's: its issuer is ours, and it speaks of our scopes and of PKCE."""
        resource = invoke(doors.mcp, event("GET", METADATA)).json
        (issuer,) = resource["authorization_servers"]
        metadata = better.ask("GET", f"{issuer}/.well-known/oauth-authorization-server").json()
        assert metadata["issuer"] == issuer == better.url
        assert set(resource["scopes_supported"]) <= set(metadata["scopes_supported"])
        assert metadata["code_challenge_methods_supported"] == ["S256"]
        assert metadata["jwks_uri"] == f"{better.url}/api/auth/jwks"

    def test_the_shape_of_a_token(self, client: OAuthClient, member: Member, better: BetterAuth) -> None:
        """Type at+jwt, for exactly this resource, 15 minutes, with the client and its scopes."""
        header, claims = parts(client.tokens(member)["access_token"])
        assert (set(header), header["typ"], header["alg"]) == ({"alg", "kid", "typ"}, "at+jwt", "EdDSA")
        assert claims.keys() == {"sub", "iss", "aud", "iat", "exp", "jti", "sid", "scope", "client_id", "azp"}
        assert (claims["iss"], claims["aud"], claims["sub"]) == (better.url, RESOURCE, member.id)
        assert (claims["client_id"], claims["azp"], claims["scope"]) == (client.id, client.id, SCOPES)
        assert claims["exp"] - claims["iat"] == 900

    def test_it_opens_the_mcp_door(self, client: OAuthClient, member: Member, doors: Doors, rows: Rows) -> None:
        """Tools are listed and called, for the person who agreed; and their chat sees what was done."""
        token = client.tokens(member)["access_token"]
        listed = McpClient(token, STATELESS).result("tools/list", handler=doors.mcp)["tools"]
        assert {tool["name"] for tool in listed} == TOOLS
        assert doors.call(token, "add_task", title="buy milk")["structuredContent"]["title"] == "buy milk"
        kept = rows.execute("select door, outcome from tool_call where user_id = %s", [member.id]).fetchall()
        assert kept == [{"door": "mcp", "outcome": "ok"}]
        assert "buy milk" in say(member, member.token, "what is left?").json["response"]

    def test_each_token_opens_one_door(self, client: OAuthClient, member: Member, doors: Doors) -> None:
        """The same person, issuer and key: what is for one door is nothing at the other."""
        access, chat = client.tokens(member)["access_token"], member.token
        assert parts(access)[0]["kid"] == parts(chat)[0]["kid"]
        assert (doors.status(access), say(member, access).status) == (200, 401)
        assert (doors.status(chat), say(member, chat).status) == (401, 200)

    def test_a_person_may_grant_less(self, client: OAuthClient, member: Member, doors: Doors) -> None:
        """Who is asked for both scopes and agrees to reading has given that."""
        token = client.tokens(member, granted="tasks:read")["access_token"]
        assert parts(token)[1]["scope"] == "tasks:read"
        assert doors.call(token, "list_tasks")["structuredContent"]["tasks"] == []
        refused = doors.call(token, "add_task", title="x")
        assert (refused["isError"], refused["content"][0]["text"]) == (
            True,
            "Insufficient scope: this tool needs tasks:write.",
        )

    def test_a_refreshed_token(self, client: OAuthClient, member: Member, doors: Doors) -> None:
        """offline_access lets a client go on after 15 minutes; the refresh token itself opens nothing."""
        refresh = client.tokens(member)["refresh_token"]
        answer = client.ask_for_tokens(grant_type="refresh_token", refresh_token=refresh, resource=RESOURCE)
        assert doors.status(answer.json()["access_token"]) == 200
        assert (doors.status(refresh), say(member, refresh).status) == (401, 401)

    def test_what_ends_it(self, client: OAuthClient, member: Member, doors: Doors) -> None:
        """Signing out does not: what a person agreed to goes on. Revoking the refresh token does."""
        refresh = client.tokens(member)["refresh_token"]
        member.sign_out()
        answer = client.ask_for_tokens(grant_type="refresh_token", refresh_token=refresh, resource=RESOURCE)
        assert doors.status(answer.json()["access_token"]) == 200
        refresh = answer.json()["refresh_token"]
        revoked = {"client_id": client.id, "token": refresh, "token_type_hint": "refresh_token"}
        assert client.server.ask("POST", "/api/auth/oauth2/revoke", data=revoked).status_code == 200
        answer = client.ask_for_tokens(grant_type="refresh_token", refresh_token=refresh, resource=RESOURCE)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")

    def test_a_new_key(
        self, client: OAuthClient, member: Member, doors: Doors, better: BetterAuth, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """This door looks keys up as the other does."""
        monkeypatch.setattr(auth, "KEY_SET_COOLDOWN", 0)
        old = client.tokens(member)["access_token"]
        assert doors.status(old) == 200
        better.age_keys(timedelta(0))
        new = OAuthClient.register(better).tokens(member)["access_token"]
        assert parts(new)[0]["kid"] != parts(old)[0]["kid"]
        assert [doors.status(token) for token in (new, old)] == [200, 200]

    def test_a_changed_token(self, client: OAuthClient, member: Member, doors: Doors) -> None:
        """More scopes than were granted, or another type."""
        token = client.tokens(member, granted="tasks:read")["access_token"]
        header, claims = parts(token)
        for forged in ((header, claims | {"scope": SCOPES}), (header | {"typ": "JWT"}, claims)):
            encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in forged]
            assert doors.status(".".join([*encoded, token.split(".")[2]])) == 401

    def test_a_client_that_names_no_resource(self, client: OAuthClient, member: Member, doors: Doors) -> None:
        """It gets a token that only Better Auth can read, and that opens nothing."""
        token = client.exchange(client.authorize(member, SCOPES, None)).json()["access_token"]
        assert "." not in token
        assert (doors.status(token), say(member, token).status) == (401, 401)

    def test_another_resource(self, client: OAuthClient, member: Member) -> None:
        """Better Auth makes no tokens for an address it was not told of: the chat API's is one."""
        for resource in ("https://other.example.com/mcp", client.server.url):
            answer = client.server.ask(
                "GET",
                "/api/auth/oauth2/authorize",
                session=member.session,
                params={
                    **{"response_type": "code", "client_id": client.id, "redirect_uri": CALLBACK, "scope": SCOPES},
                    **{"state": "s", "code_challenge": secrets.token_urlsafe(32), "code_challenge_method": "S256"},
                    "resource": resource,
                },
            )
            told = parse_qs(urlsplit(answer.headers["location"]).query)
            assert (told["error"], "code" in told) == (["invalid_target"], False)

    def test_a_client_for_itself(self, client: OAuthClient) -> None:
        """No token without a person: its subject would be the client."""
        answer = client.ask_for_tokens(grant_type="client_credentials", scope="tasks:read", resource=RESOURCE)
        assert (answer.status_code, answer.json()["error"]) == (400, "unsupported_grant_type")

    def test_a_client_that_somebody_else_wrote(self, member: Member, doors: Doors, rows: Rows) -> None:
        """The MCP library's own: from a 401 without a token to a tool call, by itself but for the person's consent."""

        async def use(port: int) -> Any:
            library = Library(member)
            transport = StreamableHttpTransport(
                RESOURCE,
                auth=OAuthClientProvider(
                    RESOURCE, library.metadata, library, library.open_browser, library.wait_for_callback
                ),
                httpx_client_factory=lambda **options: httpx2.AsyncClient(transport=NameService(port), **options),
            )
            async with Client(transport) as client:
                listed = {tool.name for tool in await client.list_tools()}
                added = await client.call_tool("add_task", {"title": "buy milk"})
            return listed, added.structured_content

        with serving(doors.mcp_app) as address:
            listed, added = run(use(int(address.rpartition(":")[2])))
        assert (listed, added["title"]) == (TOOLS, "buy milk")
        kept = rows.execute("select title from task where user_id = %s", [member.id]).fetchall()
        assert kept == [{"title": "buy milk"}]


class NameService(httpx2.AsyncHTTPTransport):
    """The way to the resource's public name, which is served on a port of this machine."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request."""
        if request.url.host == urlsplit(RESOURCE).hostname:
            request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=self._port)
        return await super().handle_async_request(request)


class Library:
    """What the MCP library's client leaves to others: to keep tokens, and to be a browser with a person before it."""

    metadata = OAuthClientMetadata(redirect_uris=[AnyUrl(CALLBACK)], client_name="library")

    def __init__(self, member: Member) -> None:
        self._member, self._sent = member, dict[str, str]()
        self._tokens: OAuthToken | None = None
        self._client: OAuthClientInformationFull | None = None

    async def open_browser(self, url: str) -> None:
        """Sign in and agree."""
        self._sent = agree(self._member, self._member.server.ask("GET", url, session=self._member.session))

    async def wait_for_callback(self) -> AuthorizationCodeResult:
        """What the browser was sent back with."""
        return AuthorizationCodeResult.model_validate(self._sent)

    async def get_tokens(self) -> OAuthToken | None:
        """The tokens, once there are any."""
        return self._tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        """Keep them."""
        self._tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        """The client's registration, once there is one."""
        return self._client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Keep it."""
        self._client = client_info


class TestOpenId:
    """A provider that was given openid as a scope, against the documentation's advice."""

    @pytest.fixture
    def doors(self, pair: Callable[[BetterAuth], Doors], better_openid: BetterAuth) -> Doors:
        """Both handlers, paired with it."""
        return pair(better_openid)

    @pytest.fixture
    def member(self, doors: Doors, better_openid: BetterAuth) -> Member:
        """Somebody who has signed up there."""
        return better_openid.sign_up()

    def test_an_id_token(self, doors: Doors, member: Member, better_openid: BetterAuth) -> None:
        """It tells a client who somebody is. It opens neither door, though issuer, key and subject are right."""
        token = OAuthClient.register(better_openid).tokens(member, f"openid {SCOPES}")["id_token"]
        header, claims = parts(token)
        assert (claims["iss"], claims["sub"], header["kid"] in better_openid.keys) == (
            better_openid.url,
            member.id,
            True,
        )
        assert (doors.status(token), say(member, token).status) == (401, 401)

    def test_a_token_for_two(self, doors: Doors, member: Member, better_openid: BetterAuth) -> None:
        """An access token with openid is for Better Auth's userinfo too, and so not for exactly this resource."""
        token = OAuthClient.register(better_openid).tokens(member, f"openid {SCOPES}")["access_token"]
        assert parts(token)[1]["aud"] == [RESOURCE, f"{better_openid.url}/api/auth/oauth2/userinfo"]
        assert (doors.status(token), say(member, token).status) == (401, 401)

    def test_a_token_for_one(self, doors: Doors, member: Member, better_openid: BetterAuth) -> None:
        """A client that doesn't ask for openid is served."""
        token = OAuthClient.register(better_openid).tokens(member)["access_token"]
        assert doors.status(token) == 200


class TestBare:
    """Why the configuration says what it says of issuer and payload."""

    def test_two_issuers(self, pair: Callable[[BetterAuth], Doors], better_bare: BetterAuth) -> None:
        """Chat tokens bear the base URL and access tokens another: those are refused."""
        doors, member = pair(better_bare), better_bare.sign_up()
        access, chat = OAuthClient.register(better_bare).tokens(member)["access_token"], member.token
        assert (parts(chat)[1]["iss"], parts(access)[1]["iss"]) == (better_bare.url, f"{better_bare.url}/api/auth")
        assert (say(member, chat).status, doors.status(access)) == (200, 401)

    def test_the_whole_user(self, better_bare: BetterAuth) -> None:
        """Name and email address stand in every token, for whoever gets to see one."""
        member = better_bare.sign_up()
        claims = parts(member.token)[1]
        assert (claims["name"], claims["email"]) == (member.words["name"], member.words["email"])


class TestDocumentation:
    """docs/auth.md shows what is tested here."""

    TEXT = (ROOT / "docs/auth.md").read_text()

    def test_the_configuration(self) -> None:
        """Word for word."""
        (shown,) = re.findall(r"```js\n(.*?)```", self.TEXT, re.DOTALL)
        assert shown == CONFIGURATION

    def test_the_versions(self) -> None:
        """Those that are installed, each of them exact."""
        assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in VERSIONS.values())
        (command,) = re.findall(r"^npm install (.*)$", self.TEXT, re.MULTILINE)
        named = dict(package.rsplit("@", 1) for package in command.split())
        assert named == VERSIONS

    def test_the_variables(self) -> None:
        """Each is one that the program reads, and each parameter one that the template has."""
        rows = re.findall(r"^\| `(AUTH_\w+|MCP_\w+)` \| `(\w+)` \|", self.TEXT, re.MULTILINE)
        limits = (ROOT / "docs" / "limits.md").read_text()
        fields = {field.upper() for field in Settings.model_fields if field.startswith(("auth_", "mcp_"))}
        assert {name for name, _ in rows} == {field for field in fields if f"`{field}`" not in limits}
        template = (ROOT / "template.yaml").read_text()
        assert all(f"        {name}: !Ref {parameter}\n" in template for name, parameter in rows)

    def test_it_is_never_packaged(self) -> None:
        """Nothing that ships knows of Node or of this server."""
        shipped = [*ROOT.glob("functions/**/*"), *ROOT.glob("shared/**/*")]
        assert not [path for path in shipped if path.suffix in {".mjs", ".js"} or path.name == "package.json"]
