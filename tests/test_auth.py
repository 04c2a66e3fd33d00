"""Tokens are verified, and the keys that verify them come from the issuer's key set."""

import base64
import gzip
import hashlib
import hmac
import json
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from select import select
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from taskchat.errors import KeySetUnavailable, Unauthenticated
from taskchat.http import auth
from taskchat.http.auth import (
    KEY_SET_COOLDOWN,
    KEY_SET_TTL,
    KeySet,
    Verifier,
    create_chat_verifier,
    create_mcp_verifier,
    read_bearer_token,
)
from taskchat.settings import Settings, SettingsError

ISSUER = "https://auth.example.com"
AUDIENCE = "https://api.example.com"
RESOURCE = "https://api.example.com/mcp"
USER = "wM8Qm3J2kT0vZx1sY4nB7cD5eF6gH9aL"


def encoded(part: Any) -> str:
    """Return a part of a token: JSON, or bytes as they are, in base64url without padding."""
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@dataclass(frozen=True)
class Signer:
    """Hold a key pair and sign tokens with it, valid or not."""

    algorithm: str
    key: Any
    kid: str = field(default_factory=lambda: uuid4().hex)

    @property
    def jwk(self) -> dict[str, Any]:
        """Return the public key as a key set publishes it."""
        kinds: dict[str, Any] = {"EdDSA": OKPAlgorithm, "ES256": ECAlgorithm, "RS256": RSAAlgorithm}
        jwk: dict[str, Any] = json.loads(kinds[self.algorithm].to_jwk(self.key.public_key()))
        return jwk | {"kid": self.kid}

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        """Return a valid token, except for the header members that `header` replaces."""
        return jwt.encode(claims, self.key, self.algorithm, {"kid": self.kid, "typ": None} | header)

    def sign_raw(self, header: Any, claims: Any) -> str:
        """Return a token with any header and claims, and a valid Ed25519 signature."""
        signed = f"{encoded(header)}.{encoded(claims)}"
        return f"{signed}.{encoded(self.key.sign(signed.encode()))}"


def key_set(*signers: Signer) -> str:
    """Return the key set of these signers as JSON."""
    return json.dumps({"keys": [signer.jwk for signer in signers]})


def claims(**changes: Any) -> dict[str, Any]:
    """Return the claims of a valid token. Replace those that are given, and leave out those that are None."""
    now = int(time.time())
    usual = {"sub": USER, "iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + 900}
    return {name: value for name, value in (usual | changes).items() if value is not None}


def shifted(**seconds: float) -> dict[str, Any]:
    """Return the claims of a valid token, with times in seconds from now."""
    return claims(**{name: int(time.time() + offset) for name, offset in seconds.items()})


@pytest.fixture(scope="module")
def signers() -> dict[str, Signer]:
    """Make one signer for each algorithm."""
    keys = {
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "RS256": rsa.generate_private_key(65537, 2048),
    }
    return {algorithm: Signer(algorithm, key) for algorithm, key in keys.items()}


@pytest.fixture
def signer(signers: dict[str, Signer]) -> Signer:
    """Give the signer with Better Auth's algorithm."""
    return signers["EdDSA"]


@pytest.fixture
def verifier(signers: dict[str, Signer]) -> Verifier:
    """Make a verifier that knows all three signers."""
    return Verifier(KeySet(None, key_set(*signers.values())), ISSUER, AUDIENCE)


def assert_refused(verifier: Verifier, token: str) -> None:
    """Check that the verifier refuses the token."""
    with pytest.raises(Unauthenticated):
        verifier.verify(token)


class TestSignature:
    """The key determines the algorithm, whatever the token's header says."""

    @pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256"])
    def test_three_algorithms_verify(self, verifier: Verifier, signers: dict[str, Signer], algorithm: str) -> None:
        """Each verifies with its key, and the verifier returns the signed claims."""
        signed = claims(name="x")
        assert verifier.verify(signers[algorithm].sign(signed)) == signed

    def test_better_auths_header_is_accepted(self, verifier: Verifier, signer: Signer) -> None:
        """Its session tokens have no typ. Other libraries write JWT."""
        for header in ({}, {"typ": "JWT"}):
            token = signer.sign_raw({"alg": "EdDSA", "kid": signer.kid} | header, claims())
            assert verifier.verify(token)["sub"] == USER

    @pytest.mark.parametrize("part", [0, 1, 2])
    def test_a_changed_part_is_refused(self, verifier: Verifier, signer: Signer, part: int) -> None:
        """One bit of the signature differs, or one claim or header member is added."""
        parts = signer.sign(claims()).split(".")
        raw = base64.urlsafe_b64decode(parts[part] + "==")
        parts[part] = encoded(bytes([raw[0] ^ 1, *raw[1:]]) if part == 2 else json.loads(raw) | {"x": 1})
        assert_refused(verifier, ".".join(parts))

    def test_another_signers_key_id_is_refused(self, verifier: Verifier, signer: Signer) -> None:
        """The signature comes from another key than the key id names."""
        stranger = Signer("EdDSA", ed25519.Ed25519PrivateKey.generate(), signer.kid)
        assert_refused(verifier, stranger.sign(claims()))

    @pytest.mark.parametrize("algorithm", ["none", "None", "NONE", ""])
    def test_a_token_without_a_signature_is_refused(self, verifier: Verifier, signer: Signer, algorithm: str) -> None:
        """The header asks for no signature."""
        token = f"{encoded({'alg': algorithm, 'kid': signer.kid})}.{encoded(claims())}."
        assert_refused(verifier, token)

    @pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256"])
    @pytest.mark.parametrize("form", ["pem", "jwk", "raw"])
    def test_the_public_key_is_not_a_shared_secret(
        self, verifier: Verifier, signers: dict[str, Signer], algorithm: str, form: str
    ) -> None:
        """A token signed with HS256 and the public key is refused."""
        signer = signers[algorithm]
        forms = {
            "pem": signer.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "jwk": json.dumps(signer.jwk).encode(),
            "raw": base64.urlsafe_b64decode(str(signer.jwk.get("x") or signer.jwk.get("n")) + "=="),
        }
        signed = f"{encoded({'alg': 'HS256', 'kid': signer.kid})}.{encoded(claims())}"
        assert_refused(verifier, f"{signed}.{encoded(hmac.new(forms[form], signed.encode(), hashlib.sha256).digest())}")

    @pytest.mark.parametrize(("named", "used"), [("ES256", "EdDSA"), ("RS256", "ES256"), ("EdDSA", "RS256")])
    def test_the_algorithm_of_another_key_is_refused(
        self, verifier: Verifier, signers: dict[str, Signer], named: str, used: str
    ) -> None:
        """The header names an algorithm that the key does not have, and the signature is valid."""
        token = signers[used].sign(claims())
        header = {"alg": named, "kid": signers[used].kid}
        assert_refused(verifier, ".".join([encoded(header), *token.split(".")[1:]]))
        assert_refused(verifier, signers[named].sign(claims(), kid=signers[used].kid))

    @pytest.mark.parametrize("algorithm", ["RS512", "PS256"])
    def test_another_algorithm_of_the_same_key_is_refused(
        self, verifier: Verifier, signers: dict[str, Signer], algorithm: str
    ) -> None:
        """An RSA key can sign with many algorithms, and the verifier accepts one."""
        signer = signers["RS256"]
        assert_refused(verifier, jwt.encode(claims(), signer.key, algorithm, {"kid": signer.kid}))


class TestClaims:
    """A token must have each required claim, with a valid value."""

    @pytest.mark.parametrize("name", ["iss", "aud", "exp", "iat", "sub"])
    def test_a_missing_claim_is_refused(self, verifier: Verifier, signer: Signer, name: str) -> None:
        """Five claims are required."""
        assert_refused(verifier, signer.sign(claims(**{name: None})))

    @pytest.mark.parametrize(
        "changes",
        [
            {"iss": "https://evil.example.com"},
            {"iss": ISSUER + "/"},
            {"iss": ISSUER.upper()},
            {"iss": [ISSUER]},
            {"iss": ""},
            {"aud": RESOURCE},
            {"aud": AUDIENCE + "/"},
            {"aud": [AUDIENCE]},
            {"aud": [AUDIENCE, RESOURCE]},
            {"aud": []},
            {"aud": ""},
            {"aud": {AUDIENCE: 1}},
            {"exp": "tomorrow"},
            {"exp": []},
            {"exp": 0},
            {"exp": -1},
            {"exp": float("nan")},
            {"exp": float("inf")},
            {"iat": "yesterday"},
            {"iat": 0},
            {"iat": float("-inf")},
            {"nbf": "now"},
        ],
        ids=str,
    )
    def test_an_invalid_claim_is_refused(self, verifier: Verifier, signer: Signer, changes: dict[str, Any]) -> None:
        """The issuer or audience is another one or one of several, or a time is no time."""
        assert_refused(verifier, signer.sign_raw({"alg": "EdDSA", "kid": signer.kid}, claims(**changes)))

    @pytest.mark.parametrize(
        "subject",
        ["", " ", "a b", "a/b", "../a", "a%2Fb", "a.b", "a\x00", "a\n", "\u00e9", "\ud800", "x" * 65, 1, [], ["a"], {}],
        ids=ascii,
    )
    def test_a_subject_that_is_no_id_is_refused(self, verifier: Verifier, signer: Signer, subject: Any) -> None:
        """Ids have letters, digits, underscores and hyphens, and at most 64 characters."""
        assert_refused(verifier, signer.sign_raw({"alg": "EdDSA", "kid": signer.kid}, claims(sub=subject)))

    @pytest.mark.parametrize("subject", ["a", "-_-", "A" * 64])
    def test_a_subject_that_is_an_id_is_accepted(self, verifier: Verifier, signer: Signer, subject: str) -> None:
        """The shortest id, an unusual one, and the longest one."""
        assert verifier.verify(signer.sign(claims(sub=subject)))["sub"] == subject

    @pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"1", b"null", b"\xff", b"[" * 3000], ids=ascii)
    def test_a_payload_without_claims_is_refused(self, verifier: Verifier, signer: Signer, payload: bytes) -> None:
        """The payload is signed, but it is no JSON object."""
        assert_refused(verifier, signer.sign_raw({"alg": "EdDSA", "kid": signer.kid}, payload))


class TestTime:
    """A token is valid between its times. The clocks may differ by 30 seconds."""

    @pytest.mark.parametrize(
        "offsets",
        [{"iat": -800, "exp": -20}, {"iat": 20}, {"nbf": 20}, {"nbf": -20}, {"iat": -60, "exp": 3540}],
        ids=str,
    )
    def test_a_token_within_its_time_is_accepted(
        self, verifier: Verifier, signer: Signer, offsets: dict[str, float]
    ) -> None:
        """It expired just now, is issued or valid in a moment, or lives for an hour."""
        assert verifier.verify(signer.sign(shifted(**offsets)))

    @pytest.mark.parametrize(
        "offsets",
        [{"iat": -800, "exp": -40}, {"iat": 40}, {"nbf": 40}, {"iat": -60, "exp": 3541}, {"exp": 10**9}],
        ids=str,
    )
    def test_a_token_outside_its_time_is_refused(
        self, verifier: Verifier, signer: Signer, offsets: dict[str, float]
    ) -> None:
        """It is outside the leeway, or lives for more than an hour: it cannot be revoked."""
        assert_refused(verifier, signer.sign(shifted(**offsets)))


class TestHeader:
    """The header names a key of the key set, and nothing else in it counts."""

    @pytest.mark.parametrize("kid", [None, "", "unknown", 1, 1.5, True, [], ["a"], {}, "\ud800", "../key"], ids=ascii)
    def test_an_invalid_key_id_is_refused(self, verifier: Verifier, signer: Signer, kid: Any) -> None:
        """The key id is null, unknown, or no text."""
        assert_refused(verifier, signer.sign_raw({"alg": "EdDSA", "kid": kid}, claims()))

    def test_a_token_without_a_key_id_is_refused(self, verifier: Verifier, signer: Signer) -> None:
        """The verifier does not try all keys."""
        assert_refused(verifier, signer.sign_raw({"alg": "EdDSA"}, claims()))

    @pytest.mark.parametrize("name", ["jku", "x5u", "jwk", "x5c", "crit"])
    def test_a_header_with_a_key_is_refused(self, signer: Signer, server: "KeyServer", name: str) -> None:
        """The verifier fetches nothing, although the key in the header would verify the token."""
        stranger = Signer("EdDSA", ed25519.Ed25519PrivateKey.generate())
        server.body = key_set(stranger).encode()
        values: dict[str, Any] = {"jwk": stranger.jwk, "x5c": [encoded(b"x")], "crit": ["exp"]}
        header = {"alg": "EdDSA", "kid": stranger.kid, name: values.get(name, server.url)}
        verifier = Verifier(KeySet(None, key_set(signer)), ISSUER, AUDIENCE)
        assert_refused(verifier, stranger.sign_raw(header, claims()))
        assert_refused(verifier, signer.sign_raw(header | {"kid": signer.kid}, claims()))
        assert server.requests == []

    @pytest.mark.parametrize("typ", ["at+jwt", "application/at+jwt", "dpop+jwt", "", 1, [], {}], ids=str)
    def test_another_type_of_token_is_refused(self, verifier: Verifier, signer: Signer, typ: Any) -> None:
        """Access tokens are for the MCP endpoint. Nothing accepts the other types."""
        assert_refused(verifier, signer.sign_raw({"alg": "EdDSA", "kid": signer.kid, "typ": typ}, claims()))

    @pytest.mark.parametrize("header", [b"", b"{", b"[]", b"1", b"null", b"\xff", b"[" * 3000, b"{}"], ids=ascii)
    def test_an_invalid_header_is_refused(self, verifier: Verifier, signer: Signer, header: bytes) -> None:
        """The header is no JSON object, or an empty one."""
        assert_refused(verifier, signer.sign_raw(header, claims()))

    @pytest.mark.parametrize(
        "token", ["", ".", "..", "...", "a.b", "a.b.c", "a.b.c.d", "\u00e9.b.c", "\ud800"], ids=ascii
    )
    def test_text_that_is_no_token_is_refused(self, verifier: Verifier, token: str) -> None:
        """The text has another shape."""
        assert_refused(verifier, token)

    def test_a_token_has_at_most_8_kib(self, verifier: Verifier, signer: Signer) -> None:
        """A valid token with one byte more is refused."""
        bare = signer.sign(claims(x=""))
        room = auth.MAX_TOKEN_LENGTH - len(bare)
        longest = signer.sign(claims(x="x" * (room * 3 // 4)))
        assert auth.MAX_TOKEN_LENGTH - 4 < len(longest) <= auth.MAX_TOKEN_LENGTH
        assert verifier.verify(longest)
        assert_refused(verifier, signer.sign(claims(x="x" * (room * 3 // 4 + 4))))


class TestEntryPoints:
    """Chat and MCP share one key set, and each accepts only its own audience and type."""

    @pytest.fixture
    def settings(self, signer: Signer) -> Settings:
        """Give settings for both entry points."""
        return Settings.model_validate(
            {
                "DATABASE_URL": "postgresql://u@h/d",
                "AUTH_ISSUER": ISSUER,
                "AUTH_AUDIENCE": AUDIENCE,
                "AUTH_JWKS_JSON": key_set(signer),
                "MCP_RESOURCE_URL": RESOURCE,
            }
        )

    def test_chat_accepts_session_tokens_only(self, settings: Settings, signer: Signer) -> None:
        """The audience must be the chat API's."""
        assert create_chat_verifier(settings).verify(signer.sign(claims()))
        assert_refused(create_chat_verifier(settings), signer.sign(claims(aud=RESOURCE)))
        assert_refused(create_chat_verifier(settings), signer.sign(claims(), typ="at+jwt"))

    def test_mcp_accepts_access_tokens_only(self, settings: Settings, signer: Signer) -> None:
        """The audience must be the endpoint's."""
        for typ in ("at+jwt", "application/at+jwt"):
            assert create_mcp_verifier(settings).verify(signer.sign(claims(aud=RESOURCE), typ=typ))
        for other in (None, "JWT"):
            assert_refused(create_mcp_verifier(settings), signer.sign(claims(aud=RESOURCE), typ=other))
        assert_refused(create_mcp_verifier(settings), signer.sign(claims(), typ="at+jwt"))


class TestAuthorizationHeader:
    """A request has exactly one well-formed authorization header."""

    @pytest.mark.parametrize("header", ["Bearer a.b-c_d", "bearer a.b-c_d", "BEARER   a.b-c_d"])
    def test_the_token_is_read(self, header: str) -> None:
        """The scheme may have any case, and several spaces after it."""
        assert read_bearer_token([header]) == "a.b-c_d"

    @pytest.mark.parametrize(
        "headers",
        [
            [],
            [""],
            ["Bearer"],
            ["Bearer "],
            ["Bearer a b"],
            ["Bearer a,Bearer b"],
            ["Bearer a, b"],
            ["Bearer a\n"],
            [" Bearer a"],
            ["Bearera"],
            ["Basic a"],
            ["Token a"],
            ["a.b.c"],
            ["Bearer \u00e9"],
            ["Bearer a.b.c=="],
            ["Bearer a/b+c"],
            ["Bearer a", "Bearer a"],
            ["Basic a", "Bearer a"],
        ],
        ids=ascii,
    )
    def test_other_headers_are_refused(self, headers: list[str]) -> None:
        """There is no header, or several, or several values in one, or another scheme."""
        with pytest.raises(Unauthenticated):
            read_bearer_token(headers)


@dataclass
class KeyServer:
    """Publish a key set over HTTP, or any other answer that the test sets."""

    url: str = ""
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """Return the handler class for http.server."""
        state = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                state.requests.append(self.path)
                self.send_response(state.status)
                for name, value in {"content-length": str(len(state.body)), **state.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(state.body)

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        return Handler


@contextmanager
def listening() -> Iterator[KeyServer]:
    """Run a key server on a port of its own."""
    state = KeyServer()
    with ThreadingHTTPServer(("127.0.0.1", 0), state.handler()) as running:
        state.url = f"http://127.0.0.1:{running.server_port}/jwks"
        thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        running.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[KeyServer]:
    """Run a key server."""
    with listening() as state:
        yield state


@dataclass
class Clock:
    """Keep a time that the test sets."""

    now: float = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Give the key set's clock."""
    return Clock()


@pytest.fixture
def fetching(server: KeyServer, clock: Clock) -> Verifier:
    """Make a verifier that fetches its keys from the key server."""
    return Verifier(KeySet(server.url, None, clock), ISSUER, AUDIENCE)


def assert_unavailable(verifier: Verifier, token: str) -> None:
    """Check that the verifier cannot fetch the keys, and says when to retry."""
    with pytest.raises(KeySetUnavailable) as raised:
        verifier.verify(token)
    assert raised.value.retry_after == KEY_SET_COOLDOWN


@contextmanager
def slow_server(part: str, body: bytes) -> Iterator[tuple[str, list[bool]]]:
    """Run a server that takes five seconds for a header or the body. Give its URL, and whether the client hung up."""
    left: list[bool] = []
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n" % (len(body) + 100)
    first, drop, last = (head, b"x-a: 1\r\n", b"\r\n" + b" " * 100) if part == "header" else (head + b"\r\n", b" ", b"")

    def send_slowly(connection: socket.socket) -> bool:
        connection.recv(4096)
        connection.sendall(first)
        for _ in range(100):
            if select([connection], [], [], 0.05)[0]:
                return True
            connection.sendall(drop)
        connection.sendall(last + body)
        return False

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            left.append(send_slowly(connection))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/jwks", left
        thread.join()


def most_memory(work: Callable[[], object]) -> int:
    """Return the most bytes that Python held during the work."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class TestFetching:
    """Keys from a URL are fetched rarely, and kept through an outage."""

    @pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256"])
    def test_three_algorithms_verify(
        self, fetching: Verifier, server: KeyServer, signers: dict[str, Signer], algorithm: str
    ) -> None:
        """A fetched key serves like a static one."""
        server.body = key_set(*signers.values()).encode()
        assert fetching.verify(signers[algorithm].sign(claims()))["sub"] == USER

    def test_keys_are_fetched_once(self, fetching: Verifier, server: KeyServer, signer: Signer, clock: Clock) -> None:
        """Any number of tokens may come until the keys are old."""
        server.body = key_set(signer).encode()
        for _ in range(3):
            fetching.verify(signer.sign(claims()))
            clock.now += KEY_SET_TTL / 3
        assert server.requests == ["/jwks"]

    def test_old_keys_are_fetched_again(
        self, fetching: Verifier, server: KeyServer, signer: Signer, clock: Clock
    ) -> None:
        """A key that was removed from the set is valid until then at most."""
        server.body = key_set(signer).encode()
        fetching.verify(signer.sign(claims()))
        server.body = key_set().encode()
        clock.now += KEY_SET_TTL + 1
        assert_refused(fetching, signer.sign(claims()))
        assert len(server.requests) == 2

    def test_time_in_a_frozen_process_counts(
        self, server: KeyServer, signer: Signer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A monotonic clock may stop while Lambda freezes the process. The time of day continues."""
        verifier = Verifier(KeySet(server.url, None), ISSUER, AUDIENCE)
        server.body = key_set(signer).encode()
        token, now = signer.sign(claims()), time.time()
        verifier.verify(token)
        monkeypatch.setattr(time, "time", lambda: now + KEY_SET_TTL + 1)
        verifier.verify(token)
        assert len(server.requests) == 2

    def test_keys_are_fetched_again_after_the_clock_is_set_back(
        self, fetching: Verifier, server: KeyServer, signer: Signer, clock: Clock
    ) -> None:
        """They are not kept until the clock has caught up. An outage is reported as an outage."""
        server.body = key_set(signer).encode()
        fetching.verify(signer.sign(claims()))
        clock.now -= 600
        fetching.verify(signer.sign(claims()))
        assert len(server.requests) == 2
        server.status = 503
        clock.now -= 600
        fetching.verify(signer.sign(claims()))
        assert len(server.requests) == 3
        assert_unavailable(fetching, signer.sign(claims(), kid="new"))

    def test_an_unknown_key_id_fetches_the_keys_again(
        self, fetching: Verifier, server: KeyServer, signer: Signer, clock: Clock
    ) -> None:
        """The issuer may have rotated its keys. The last fetch must be older than the cooldown."""
        server.body = key_set().encode()
        assert_refused(fetching, signer.sign(claims()))
        server.body = key_set(signer).encode()
        clock.now += KEY_SET_COOLDOWN
        assert fetching.verify(signer.sign(claims()))
        assert len(server.requests) == 2

    def test_invented_key_ids_cause_one_fetch_per_cooldown(
        self, fetching: Verifier, server: KeyServer, signer: Signer, clock: Clock
    ) -> None:
        """Valid tokens are accepted meanwhile."""
        server.body = key_set(signer).encode()
        for number in range(50):
            assert_refused(fetching, signer.sign(claims(), kid=f"invented-{number}"))
            assert fetching.verify(signer.sign(claims()))
        assert len(server.requests) == 1
        clock.now += KEY_SET_COOLDOWN
        assert_refused(fetching, signer.sign(claims(), kid="invented"))
        assert len(server.requests) == 2

    def test_a_malformed_token_causes_no_fetch(self, fetching: Verifier, server: KeyServer) -> None:
        """The verifier refuses it first."""
        assert_refused(fetching, "a.b.c")
        assert server.requests == []

    def test_old_keys_serve_through_an_outage(
        self, fetching: Verifier, server: KeyServer, signer: Signer, clock: Clock
    ) -> None:
        """The verifier tries one fetch per cooldown."""
        server.body = key_set(signer).encode()
        fetching.verify(signer.sign(claims()))
        server.status = 503
        for _ in range(3):
            clock.now += KEY_SET_TTL + 1
            assert fetching.verify(signer.sign(claims()))
            assert fetching.verify(signer.sign(claims()))
        assert len(server.requests) == 4

    def test_an_unknown_key_id_in_an_outage_is_unavailable(
        self, fetching: Verifier, server: KeyServer, signer: Signer, clock: Clock
    ) -> None:
        """The key may be new, so the verifier cannot judge the token."""
        server.body = key_set(signer).encode()
        fetching.verify(signer.sign(claims()))
        server.status = 503
        clock.now += KEY_SET_COOLDOWN
        assert_unavailable(fetching, signer.sign(claims(), kid="new"))

    def test_an_unreachable_server_is_unavailable(self, signer: Signer, clock: Clock) -> None:
        """Each caller gets the time to retry, also within the cooldown."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        verifier = Verifier(KeySet(f"http://127.0.0.1:{port}/jwks", None, clock), ISSUER, AUDIENCE)
        for _ in range(3):
            assert_unavailable(verifier, signer.sign(claims()))

    def test_the_first_successful_fetch_ends_an_outage(
        self, fetching: Verifier, server: KeyServer, signer: Signer, clock: Clock
    ) -> None:
        """It comes after the cooldown at the earliest."""
        server.status, server.body = 500, key_set(signer).encode()
        assert_unavailable(fetching, signer.sign(claims()))
        server.status = 200
        assert_unavailable(fetching, signer.sign(claims()))
        clock.now += KEY_SET_COOLDOWN
        assert fetching.verify(signer.sign(claims()))

    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    def test_a_redirect_is_not_followed(
        self, fetching: Verifier, server: KeyServer, signer: Signer, status: int
    ) -> None:
        """Keys come from the configured URL only."""
        server.status, server.headers, server.body = status, {"location": "/elsewhere"}, key_set(signer).encode()
        assert_unavailable(fetching, signer.sign(claims()))
        assert server.requests == ["/jwks"]

    @pytest.mark.parametrize("status", [204, 400, 401, 404, 500])
    def test_another_status_is_unavailable(
        self, fetching: Verifier, server: KeyServer, signer: Signer, status: int
    ) -> None:
        """Only a 200 has keys."""
        server.status, server.body = status, b"" if status == 204 else key_set(signer).encode()
        assert_unavailable(fetching, signer.sign(claims()))

    @pytest.mark.parametrize(
        "body",
        [
            *(b"", b"{", b"null", b"[]", b"1", b'"keys"', b"{}", b'{"keys": null}', b'{"keys": {}}'),
            *(b"<html>", b"\xff", b"[" * 60_000, b'{"keys":' * 5_000),
        ],
        ids=lambda body: ascii(body[:12]),
    )
    def test_an_invalid_key_set_is_unavailable(
        self, fetching: Verifier, server: KeyServer, signer: Signer, body: bytes
    ) -> None:
        """The JSON is broken, has another shape, or is nested without end."""
        server.body = body
        assert_unavailable(fetching, signer.sign(claims()))

    def test_a_key_set_has_at_most_64_kib(
        self, fetching: Verifier, server: KeyServer, signer: Signer, clock: Clock
    ) -> None:
        """One byte more is too much."""
        server.body = key_set(signer).encode().ljust(auth.KEY_SET_MAX_BYTES + 1)
        assert_unavailable(fetching, signer.sign(claims()))
        server.body = server.body[:-1]
        clock.now += KEY_SET_COOLDOWN
        assert fetching.verify(signer.sign(claims()))

    @pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", b"nonsense\r\n\r\n"])
    def test_a_server_that_hangs_up_is_unavailable(self, signer: Signer, clock: Clock, answer: bytes) -> None:
        """It hangs up before its answer, in the middle, or after bytes that are no HTTP."""
        with socket.create_server(("127.0.0.1", 0)) as listening:

            def hang_up() -> None:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

            thread = Thread(target=hang_up)
            thread.start()
            url = f"http://127.0.0.1:{listening.getsockname()[1]}/jwks"
            assert_unavailable(Verifier(KeySet(url, None, clock), ISSUER, AUDIENCE), signer.sign(claims()))
            thread.join()

    def test_a_server_that_never_answers_is_unavailable(
        self, signer: Signer, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The wait ends."""
        monkeypatch.setattr(auth, "KEY_SET_TIMEOUT", 0.1)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/jwks"
            assert_unavailable(Verifier(KeySet(url, None, clock), ISSUER, AUDIENCE), signer.sign(claims()))

    @pytest.mark.parametrize("part", ["header", "body"])
    def test_a_slow_answer_is_given_up(
        self, signer: Signer, clock: Clock, monkeypatch: pytest.MonkeyPatch, part: str
    ) -> None:
        """Each piece comes in time, and all of them too late. The verifier hangs up while the server sends."""
        monkeypatch.setattr(auth, "KEY_SET_TIMEOUT", 0.2)
        with slow_server(part, key_set(signer).encode()) as (url, left):
            assert_unavailable(Verifier(KeySet(url, None, clock), ISSUER, AUDIENCE), signer.sign(claims()))
        assert left == [True]

    def test_an_endless_name_lookup_is_given_up(
        self, server: KeyServer, signer: Signer, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The lookup cannot be stopped, so the caller stops waiting for it."""
        server.body = key_set(signer).encode()
        fetching = Verifier(KeySet(server.url.replace("127.0.0.1", "localhost"), None, clock), ISSUER, AUDIENCE)
        given_up, found = Event(), Event()

        def look_up(*_: object, **__: object) -> list[object]:
            given_up.wait(10)
            found.set()
            return []

        monkeypatch.setattr(auth, "KEY_SET_TIMEOUT", 0.1)
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        assert_unavailable(fetching, signer.sign(claims()))
        assert not found.is_set()
        given_up.set()

    def test_a_compressed_key_set_is_refused(
        self, fetching: Verifier, server: KeyServer, signer: Signer, clock: Clock
    ) -> None:
        """The verifier does not decompress it, so that 64 KiB are also the most in memory."""
        server.headers = {"content-encoding": "gzip"}
        server.body = gzip.compress(key_set(signer).encode().ljust(50_000_000))
        assert len(server.body) < auth.KEY_SET_MAX_BYTES
        assert most_memory(partial(assert_unavailable, fetching, signer.sign(claims()))) < 10_000_000
        clock.now += KEY_SET_COOLDOWN
        server.body = gzip.compress(key_set(signer).encode())
        assert_unavailable(fetching, signer.sign(claims()))


class TestKeySet:
    """The verifier uses the keys of a set that fit their purpose."""

    UNUSABLE: tuple[Callable[[dict[str, Any]], Any], ...] = (
        lambda jwk: jwk | {"kty": "oct", "k": encoded(b"secret" * 8)},
        lambda jwk: jwk | {"use": "enc"},
        lambda jwk: jwk | {"use": None},
        lambda jwk: jwk | {"alg": "ES256"},
        lambda jwk: jwk | {"alg": "HS256"},
        lambda jwk: jwk | {"alg": "none"},
        lambda jwk: jwk | {"alg": None},
        lambda jwk: jwk | {"alg": ["EdDSA"]},
        lambda jwk: jwk | {"key_ops": ["encrypt"]},
        lambda jwk: jwk | {"key_ops": []},
        lambda jwk: jwk | {"key_ops": "verify"},
        lambda jwk: jwk | {"key_ops": {"verify": True}},
        lambda jwk: jwk | {"key_ops": None},
        lambda jwk: jwk | {"crv": "Ed448"},
        lambda jwk: jwk | {"crv": "P-521", "kty": "EC"},
        lambda jwk: jwk | {"crv": ["Ed25519"]},
        lambda jwk: jwk | {"kty": None},
        lambda jwk: jwk | {"kid": None},
        lambda jwk: jwk | {"kid": 1},
        lambda jwk: jwk | {"x": "AA"},
        lambda jwk: jwk | {"x": 5},
        lambda jwk: jwk | {"x": "\ud800"},
        lambda jwk: jwk | {"kty": "RSA", "n": "AA", "e": []},
        lambda jwk: {"kid": jwk["kid"], "kty": "OKP", "crv": "Ed25519"},
        lambda jwk: None,
        lambda jwk: "key",
        lambda jwk: [jwk],
        lambda jwk: {},
    )

    @pytest.mark.parametrize("break_key", UNUSABLE)
    def test_an_unusable_key_is_ignored(
        self, fetching: Verifier, server: KeyServer, signer: Signer, break_key: Callable[[dict[str, Any]], Any]
    ) -> None:
        """The key has another type or purpose, or is broken. The set's other keys still serve."""
        other = Signer("EdDSA", ed25519.Ed25519PrivateKey.generate())
        server.body = json.dumps({"keys": [break_key(other.jwk), signer.jwk]}).encode()
        assert fetching.verify(signer.sign(claims()))
        assert_refused(fetching, other.sign(claims()))

    @pytest.mark.parametrize(
        "says", [{"alg": "EdDSA"}, {"use": "sig"}, {"key_ops": ["verify"]}, {"key_ops": ["sign", "verify"]}], ids=str
    )
    def test_a_key_that_names_its_purpose_is_accepted(
        self, fetching: Verifier, server: KeyServer, signer: Signer, says: dict[str, Any]
    ) -> None:
        """The purpose is to verify signatures."""
        server.body = json.dumps({"keys": [signer.jwk | says]}).encode()
        assert fetching.verify(signer.sign(claims()))

    def test_a_shared_secret_in_the_set_is_ignored(self, fetching: Verifier, server: KeyServer) -> None:
        """A published secret is no secret."""
        server.body = json.dumps(
            {"keys": [{"kty": "oct", "k": encoded(b"x" * 32), "kid": "s", "alg": "HS256"}]}
        ).encode()
        assert_refused(fetching, jwt.encode(claims(), b"x" * 32, "HS256", {"kid": "s"}))

    def test_each_of_several_keys_serves(self, fetching: Verifier, server: KeyServer) -> None:
        """Parallel requests make Better Auth create several keys at once."""
        minted = [Signer("EdDSA", ed25519.Ed25519PrivateKey.generate()) for _ in range(5)]
        server.body = key_set(*minted).encode()
        for signer in minted:
            assert fetching.verify(signer.sign(claims()))

    def test_a_static_key_needs_no_fetch(self, server: KeyServer, signer: Signer, clock: Clock) -> None:
        """Other keys are fetched."""
        other = Signer("EdDSA", ed25519.Ed25519PrivateKey.generate())
        server.body = key_set(other).encode()
        verifier = Verifier(KeySet(server.url, key_set(signer), clock), ISSUER, AUDIENCE)
        assert verifier.verify(signer.sign(claims()))
        assert server.requests == []
        assert verifier.verify(other.sign(claims()))


class TestSettings:
    """A missing setting stops the start, and not each request."""

    @pytest.mark.parametrize("missing", ["auth_issuer", "auth_audience", "auth_jwks_json"])
    def test_the_chat_api_needs_its_settings(self, missing: str) -> None:
        """These are the issuer, the audience and a source of keys."""
        with pytest.raises(SettingsError, match=missing.upper()):
            create_chat_verifier(_settings(missing))

    @pytest.mark.parametrize("missing", ["auth_issuer", "mcp_resource_url", "auth_jwks_json"])
    def test_the_mcp_endpoint_needs_its_settings(self, missing: str) -> None:
        """These are the issuer, the endpoint's address and a source of keys."""
        with pytest.raises(SettingsError, match=missing.upper()):
            create_mcp_verifier(_settings(missing))


def _settings(missing: str) -> Settings:
    values = {
        "DATABASE_URL": "postgresql://u:p@h/d",
        "AUTH_ISSUER": "https://auth.example.com",
        "AUTH_AUDIENCE": "https://auth.example.com",
        "AUTH_JWKS_JSON": '{"keys": []}',
        "MCP_RESOURCE_URL": "https://api.example.com/mcp",
    }
    return Settings.model_validate({name: value for name, value in values.items() if name != missing.upper()})
