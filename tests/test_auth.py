"""Who is calling: which tokens are believed, and where the keys come from that decide it."""

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
    """A part of a token: JSON, or bytes as they are, in base64url without padding."""
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@dataclass(frozen=True)
class Signer:
    """A key pair, and the tokens it can make: honest ones and others."""

    algorithm: str
    key: Any
    kid: str = field(default_factory=lambda: uuid4().hex)

    @property
    def jwk(self) -> dict[str, Any]:
        """The public key, as a key set publishes it."""
        kinds: dict[str, Any] = {"EdDSA": OKPAlgorithm, "ES256": ECAlgorithm, "RS256": RSAAlgorithm}
        jwk: dict[str, Any] = json.loads(kinds[self.algorithm].to_jwk(self.key.public_key()))
        return jwk | {"kid": self.kid}

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        """A token in perfect order, but for what `header` replaces in its header."""
        return jwt.encode(claims, self.key, self.algorithm, {"kid": self.kid, "typ": None} | header)

    def sign_raw(self, header: Any, claims: Any) -> str:
        """A token of any header and claims, signed truly with Ed25519."""
        signed = f"{encoded(header)}.{encoded(claims)}"
        return f"{signed}.{encoded(self.key.sign(signed.encode()))}"


def key_set(*signers: Signer) -> str:
    """A key set of these signers, in JSON."""
    return json.dumps({"keys": [signer.jwk for signer in signers]})


def claims(**changes: Any) -> dict[str, Any]:
    """The claims of a good token, with some replaced, or left out where None is given."""
    now = int(time.time())
    usual = {"sub": USER, "iss": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + 900}
    return {name: value for name, value in (usual | changes).items() if value is not None}


def shifted(**seconds: float) -> dict[str, Any]:
    """The claims of a good token, with times given as seconds from now."""
    return claims(**{name: int(time.time() + offset) for name, offset in seconds.items()})


@pytest.fixture(scope="module")
def signers() -> dict[str, Signer]:
    """One signer of each kind."""
    keys = {
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "RS256": rsa.generate_private_key(65537, 2048),
    }
    return {algorithm: Signer(algorithm, key) for algorithm, key in keys.items()}


@pytest.fixture
def signer(signers: dict[str, Signer]) -> Signer:
    """The kind that Better Auth is."""
    return signers["EdDSA"]


@pytest.fixture
def verifier(signers: dict[str, Signer]) -> Verifier:
    """A verifier that knows all three."""
    return Verifier(KeySet(None, key_set(*signers.values())), ISSUER, AUDIENCE)


def assert_refused(verifier: Verifier, token: str) -> None:
    """The token proves nothing."""
    with pytest.raises(Unauthenticated):
        verifier.verify(token)


class TestSignature:
    """The algorithm is the key's, whatever the header says."""

    @pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256"])
    def test_three_algorithms(self, verifier: Verifier, signers: dict[str, Signer], algorithm: str) -> None:
        """Each verifies with its key, and gives the claims as they were signed."""
        signed = claims(name="x")
        assert verifier.verify(signers[algorithm].sign(signed)) == signed

    def test_better_auth_s_own_shape(self, verifier: Verifier, signer: Signer) -> None:
        """Its session tokens have no typ; other libraries write JWT."""
        for header in ({}, {"typ": "JWT"}):
            token = signer.sign_raw({"alg": "EdDSA", "kid": signer.kid} | header, claims())
            assert verifier.verify(token)["sub"] == USER

    @pytest.mark.parametrize("part", [0, 1, 2])
    def test_a_changed_part(self, verifier: Verifier, signer: Signer, part: int) -> None:
        """One bit of the signature, or one claim or header more, and it is refused."""
        parts = signer.sign(claims()).split(".")
        raw = base64.urlsafe_b64decode(parts[part] + "==")
        parts[part] = encoded(bytes([raw[0] ^ 1, *raw[1:]]) if part == 2 else json.loads(raw) | {"x": 1})
        assert_refused(verifier, ".".join(parts))

    def test_another_s_key_id(self, verifier: Verifier, signer: Signer) -> None:
        """A signature of a key that the key id does not name."""
        stranger = Signer("EdDSA", ed25519.Ed25519PrivateKey.generate(), signer.kid)
        assert_refused(verifier, stranger.sign(claims()))

    @pytest.mark.parametrize("algorithm", ["none", "None", "NONE", ""])
    def test_no_signature(self, verifier: Verifier, signer: Signer, algorithm: str) -> None:
        """A header that asks for none gets none believed."""
        token = f"{encoded({'alg': algorithm, 'kid': signer.kid})}.{encoded(claims())}."
        assert_refused(verifier, token)

    @pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256"])
    @pytest.mark.parametrize("form", ["pem", "jwk", "raw"])
    def test_the_public_key_as_a_secret(
        self, verifier: Verifier, signers: dict[str, Signer], algorithm: str, form: str
    ) -> None:
        """HS256 with what everybody can download as its secret."""
        signer = signers[algorithm]
        forms = {
            "pem": signer.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "jwk": json.dumps(signer.jwk).encode(),
            "raw": base64.urlsafe_b64decode(str(signer.jwk.get("x") or signer.jwk.get("n")) + "=="),
        }
        signed = f"{encoded({'alg': 'HS256', 'kid': signer.kid})}.{encoded(claims())}"
        assert_refused(verifier, f"{signed}.{encoded(hmac.new(forms[form], signed.encode(), hashlib.sha256).digest())}")

    @pytest.mark.parametrize(("named", "used"), [("ES256", "EdDSA"), ("RS256", "ES256"), ("EdDSA", "RS256")])
    def test_the_algorithm_of_another_key(
        self, verifier: Verifier, signers: dict[str, Signer], named: str, used: str
    ) -> None:
        """A header that names an algorithm which the key is not for, over a true signature."""
        token = signers[used].sign(claims())
        header = {"alg": named, "kid": signers[used].kid}
        assert_refused(verifier, ".".join([encoded(header), *token.split(".")[1:]]))
        assert_refused(verifier, signers[named].sign(claims(), kid=signers[used].kid))

    @pytest.mark.parametrize("algorithm", ["RS512", "PS256"])
    def test_another_algorithm_of_the_same_key(
        self, verifier: Verifier, signers: dict[str, Signer], algorithm: str
    ) -> None:
        """RSA keys sign in many ways; one is taken."""
        signer = signers["RS256"]
        assert_refused(verifier, jwt.encode(claims(), signer.key, algorithm, {"kid": signer.kid}))


class TestClaims:
    """What a token must say."""

    @pytest.mark.parametrize("name", ["iss", "aud", "exp", "iat", "sub"])
    def test_a_claim_left_out(self, verifier: Verifier, signer: Signer, name: str) -> None:
        """Five are needed."""
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
    def test_a_claim_that_is_wrong(self, verifier: Verifier, signer: Signer, changes: dict[str, Any]) -> None:
        """Another issuer or audience, one among several, and times that are none."""
        assert_refused(verifier, signer.sign_raw({"alg": "EdDSA", "kid": signer.kid}, claims(**changes)))

    @pytest.mark.parametrize(
        "subject",
        ["", " ", "a b", "a/b", "../a", "a%2Fb", "a.b", "a\x00", "a\n", "\u00e9", "\ud800", "x" * 65, 1, [], ["a"], {}],
        ids=ascii,
    )
    def test_a_subject_that_cannot_stand_in_a_path(self, verifier: Verifier, signer: Signer, subject: Any) -> None:
        """Ids are letters, digits, underscores and hyphens, 64 at most."""
        assert_refused(verifier, signer.sign_raw({"alg": "EdDSA", "kid": signer.kid}, claims(sub=subject)))

    @pytest.mark.parametrize("subject", ["a", "-_-", "A" * 64])
    def test_a_subject_that_can(self, verifier: Verifier, signer: Signer, subject: str) -> None:
        """The shortest, the oddest, the longest."""
        assert verifier.verify(signer.sign(claims(sub=subject)))["sub"] == subject

    @pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"1", b"null", b"\xff", b"[" * 3000], ids=ascii)
    def test_no_claims_at_all(self, verifier: Verifier, signer: Signer, payload: bytes) -> None:
        """A payload that is signed but no JSON object."""
        assert_refused(verifier, signer.sign_raw({"alg": "EdDSA", "kid": signer.kid}, payload))


class TestTime:
    """When a token holds. Clocks may differ by 30 seconds, either way."""

    @pytest.mark.parametrize(
        "offsets",
        [{"iat": -800, "exp": -20}, {"iat": 20}, {"nbf": 20}, {"nbf": -20}, {"iat": -60, "exp": 3540}],
        ids=str,
    )
    def test_it_holds(self, verifier: Verifier, signer: Signer, offsets: dict[str, float]) -> None:
        """Just expired, issued or valid in a moment; and an hour's lifetime."""
        assert verifier.verify(signer.sign(shifted(**offsets)))

    @pytest.mark.parametrize(
        "offsets",
        [{"iat": -800, "exp": -40}, {"iat": 40}, {"nbf": 40}, {"iat": -60, "exp": 3541}, {"exp": 10**9}],
        ids=str,
    )
    def test_it_does_not(self, verifier: Verifier, signer: Signer, offsets: dict[str, float]) -> None:
        """Beyond the leeway; and a lifetime over an hour, which nobody could take back."""
        assert_refused(verifier, signer.sign(shifted(**offsets)))


class TestHeader:
    """What a token may ask for."""

    @pytest.mark.parametrize("kid", [None, "", "unknown", 1, 1.5, True, [], ["a"], {}, "\ud800", "../key"], ids=ascii)
    def test_an_odd_key_id(self, verifier: Verifier, signer: Signer, kid: Any) -> None:
        """One that is missing, unknown, or no text."""
        assert_refused(verifier, signer.sign_raw({"alg": "EdDSA", "kid": kid}, claims()))

    def test_no_key_id(self, verifier: Verifier, signer: Signer) -> None:
        """No key is tried on suspicion."""
        assert_refused(verifier, signer.sign_raw({"alg": "EdDSA"}, claims()))

    @pytest.mark.parametrize("name", ["jku", "x5u", "jwk", "x5c", "crit"])
    def test_a_header_that_brings_a_key(self, signer: Signer, server: "KeyServer", name: str) -> None:
        """Refused without a look at where it points: the key it brings would verify."""
        stranger = Signer("EdDSA", ed25519.Ed25519PrivateKey.generate())
        server.body = key_set(stranger).encode()
        values: dict[str, Any] = {"jwk": stranger.jwk, "x5c": [encoded(b"x")], "crit": ["exp"]}
        header = {"alg": "EdDSA", "kid": stranger.kid, name: values.get(name, server.url)}
        verifier = Verifier(KeySet(None, key_set(signer)), ISSUER, AUDIENCE)
        assert_refused(verifier, stranger.sign_raw(header, claims()))
        assert_refused(verifier, signer.sign_raw(header | {"kid": signer.kid}, claims()))
        assert server.requests == []

    @pytest.mark.parametrize("typ", ["at+jwt", "application/at+jwt", "dpop+jwt", "", 1, [], {}], ids=str)
    def test_another_kind_of_token(self, verifier: Verifier, signer: Signer, typ: Any) -> None:
        """Access tokens are for the other door; other kinds for none."""
        assert_refused(verifier, signer.sign_raw({"alg": "EdDSA", "kid": signer.kid, "typ": typ}, claims()))

    @pytest.mark.parametrize("header", [b"", b"{", b"[]", b"1", b"null", b"\xff", b"[" * 3000, b"{}"], ids=ascii)
    def test_no_header_at_all(self, verifier: Verifier, signer: Signer, header: bytes) -> None:
        """A header that is no JSON object, or an empty one."""
        assert_refused(verifier, signer.sign_raw(header, claims()))

    @pytest.mark.parametrize(
        "token", ["", ".", "..", "...", "a.b", "a.b.c", "a.b.c.d", "\u00e9.b.c", "\ud800"], ids=ascii
    )
    def test_no_token_at_all(self, verifier: Verifier, token: str) -> None:
        """Text of another shape."""
        assert_refused(verifier, token)

    def test_the_size_limit(self, verifier: Verifier, signer: Signer) -> None:
        """8 KiB are read; a byte more is not, however true."""
        bare = signer.sign(claims(x=""))
        room = auth.MAX_TOKEN_LENGTH - len(bare)
        longest = signer.sign(claims(x="x" * (room * 3 // 4)))
        assert auth.MAX_TOKEN_LENGTH - 4 < len(longest) <= auth.MAX_TOKEN_LENGTH
        assert verifier.verify(longest)
        assert_refused(verifier, signer.sign(claims(x="x" * (room * 3 // 4 + 4))))


class TestDoors:
    """Both doors share one key set; audience and type keep them apart."""

    @pytest.fixture
    def settings(self, signer: Signer) -> Settings:
        """Settings for both doors."""
        return Settings.model_validate(
            {
                "DATABASE_URL": "postgresql://u@h/d",
                "AUTH_ISSUER": ISSUER,
                "AUTH_AUDIENCE": AUDIENCE,
                "AUTH_JWKS_JSON": key_set(signer),
                "MCP_RESOURCE_URL": RESOURCE,
            }
        )

    def test_chat(self, settings: Settings, signer: Signer) -> None:
        """A session token, and only with the chat API's audience."""
        assert create_chat_verifier(settings).verify(signer.sign(claims()))
        assert_refused(create_chat_verifier(settings), signer.sign(claims(aud=RESOURCE)))
        assert_refused(create_chat_verifier(settings), signer.sign(claims(), typ="at+jwt"))

    def test_mcp(self, settings: Settings, signer: Signer) -> None:
        """An access token, and only with the endpoint's audience."""
        for typ in ("at+jwt", "application/at+jwt"):
            assert create_mcp_verifier(settings).verify(signer.sign(claims(aud=RESOURCE), typ=typ))
        for other in (None, "JWT"):
            assert_refused(create_mcp_verifier(settings), signer.sign(claims(aud=RESOURCE), typ=other))
        assert_refused(create_mcp_verifier(settings), signer.sign(claims(), typ="at+jwt"))


class TestAuthorizationHeader:
    """Exactly one, and well-formed."""

    @pytest.mark.parametrize("header", ["Bearer a.b-c_d", "bearer a.b-c_d", "BEARER   a.b-c_d"])
    def test_the_token_in_it(self, header: str) -> None:
        """The scheme's case and spaces after it don't matter."""
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
    def test_none_in_it(self, headers: list[str]) -> None:
        """No header, several, several in one, and other schemes."""
        with pytest.raises(Unauthenticated):
            read_bearer_token(headers)


@dataclass
class KeyServer:
    """A real HTTP server that publishes a key set, or whatever else it is told to answer."""

    url: str = ""
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """What http.server makes for each request."""
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
                """Nothing to the terminal."""

        return Handler


@contextmanager
def listening() -> Iterator[KeyServer]:
    """Such a server, on a port of its own."""
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
    """The server."""
    with listening() as state:
        yield state


@dataclass
class Clock:
    """Time that passes when the test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        """What time it is."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The key set's clock."""
    return Clock()


@pytest.fixture
def fetching(server: KeyServer, clock: Clock) -> Verifier:
    """A verifier whose keys come from the server."""
    return Verifier(KeySet(server.url, None, clock), ISSUER, AUDIENCE)


def assert_unavailable(verifier: Verifier, token: str) -> None:
    """Nobody can tell whether the token is good, and the caller is told when to come back."""
    with pytest.raises(KeySetUnavailable) as raised:
        verifier.verify(token)
    assert raised.value.retry_after == KEY_SET_COOLDOWN


@contextmanager
def dripping(part: str, body: bytes) -> Iterator[tuple[str, list[bool]]]:
    """A server that takes five seconds for a header or the body; gives its address, and whether it was left before."""
    left: list[bool] = []
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n" % (len(body) + 100)
    first, drop, last = (head, b"x-a: 1\r\n", b"\r\n" + b" " * 100) if part == "header" else (head + b"\r\n", b" ", b"")

    def drip(connection: socket.socket) -> bool:
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
            left.append(drip(connection))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/jwks", left
        thread.join()


def most_memory(work: Callable[[], object]) -> int:
    """Bytes that Python held at once for some work at most."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class TestFetching:
    """Keys from a URL: fetched rarely, kept through an outage."""

    @pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256"])
    def test_three_algorithms(
        self, fetching: Verifier, server: KeyServer, signers: dict[str, Signer], algorithm: str
    ) -> None:
        """The keys serve as they do from a static set."""
        server.body = key_set(*signers.values()).encode()
        assert fetching.verify(signers[algorithm].sign(claims()))["sub"] == USER

    def test_once(self, fetching: Verifier, server: KeyServer, signer: Signer, clock: Clock) -> None:
        """However many tokens come until the keys are old."""
        server.body = key_set(signer).encode()
        for _ in range(3):
            fetching.verify(signer.sign(claims()))
            clock.now += KEY_SET_TTL / 3
        assert server.requests == ["/jwks"]

    def test_again_when_old(self, fetching: Verifier, server: KeyServer, signer: Signer, clock: Clock) -> None:
        """A key that was taken out of the set is good for no longer than that."""
        server.body = key_set(signer).encode()
        fetching.verify(signer.sign(claims()))
        server.body = key_set().encode()
        clock.now += KEY_SET_TTL + 1
        assert_refused(fetching, signer.sign(claims()))
        assert len(server.requests) == 2

    def test_time_in_which_the_process_was_frozen_counts(
        self, server: KeyServer, signer: Signer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A monotonic clock may stand still while Lambda freezes the process; the time of day goes on."""
        verifier = Verifier(KeySet(server.url, None), ISSUER, AUDIENCE)
        server.body = key_set(signer).encode()
        token, now = signer.sign(claims()), time.time()
        verifier.verify(token)
        monkeypatch.setattr(time, "time", lambda: now + KEY_SET_TTL + 1)
        verifier.verify(token)
        assert len(server.requests) == 2

    def test_a_clock_that_is_set_back(
        self, fetching: Verifier, server: KeyServer, signer: Signer, clock: Clock
    ) -> None:
        """The keys are fetched anew, and not kept until the clock has caught up; an outage is told as one."""
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

    def test_an_unknown_key_id(self, fetching: Verifier, server: KeyServer, signer: Signer, clock: Clock) -> None:
        """A set that has rotated is looked up again at once, if the last look-up is not too recent."""
        server.body = key_set().encode()
        assert_refused(fetching, signer.sign(claims()))
        server.body = key_set(signer).encode()
        clock.now += KEY_SET_COOLDOWN
        assert fetching.verify(signer.sign(claims()))
        assert len(server.requests) == 2

    def test_invented_key_ids(self, fetching: Verifier, server: KeyServer, signer: Signer, clock: Clock) -> None:
        """Whoever invents key ids makes one fetch per cooldown, and hinders nobody."""
        server.body = key_set(signer).encode()
        for number in range(50):
            assert_refused(fetching, signer.sign(claims(), kid=f"invented-{number}"))
            assert fetching.verify(signer.sign(claims()))
        assert len(server.requests) == 1
        clock.now += KEY_SET_COOLDOWN
        assert_refused(fetching, signer.sign(claims(), kid="invented"))
        assert len(server.requests) == 2

    def test_no_signature_no_fetch(self, fetching: Verifier, server: KeyServer) -> None:
        """What is no token at all makes none."""
        assert_refused(fetching, "a.b.c")
        assert server.requests == []

    def test_stale_keys(self, fetching: Verifier, server: KeyServer, signer: Signer, clock: Clock) -> None:
        """Through an outage the keys there are still serve, and the server is asked once per cooldown."""
        server.body = key_set(signer).encode()
        fetching.verify(signer.sign(claims()))
        server.status = 503
        for _ in range(3):
            clock.now += KEY_SET_TTL + 1
            assert fetching.verify(signer.sign(claims()))
            assert fetching.verify(signer.sign(claims()))
        assert len(server.requests) == 4

    def test_an_unknown_key_id_in_an_outage(
        self, fetching: Verifier, server: KeyServer, signer: Signer, clock: Clock
    ) -> None:
        """The key may be a new one: nobody can tell."""
        server.body = key_set(signer).encode()
        fetching.verify(signer.sign(claims()))
        server.status = 503
        clock.now += KEY_SET_COOLDOWN
        assert_unavailable(fetching, signer.sign(claims(), kid="new"))

    def test_never_reachable(self, signer: Signer, clock: Clock) -> None:
        """Nothing listens: every caller is told to come back, within the cooldown too."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        verifier = Verifier(KeySet(f"http://127.0.0.1:{port}/jwks", None, clock), ISSUER, AUDIENCE)
        for _ in range(3):
            assert_unavailable(verifier, signer.sign(claims()))

    def test_back_again(self, fetching: Verifier, server: KeyServer, signer: Signer, clock: Clock) -> None:
        """After an outage, the first fetch that succeeds ends it."""
        server.status, server.body = 500, key_set(signer).encode()
        assert_unavailable(fetching, signer.sign(claims()))
        server.status = 200
        assert_unavailable(fetching, signer.sign(claims()))
        clock.now += KEY_SET_COOLDOWN
        assert fetching.verify(signer.sign(claims()))

    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    def test_a_redirect(self, fetching: Verifier, server: KeyServer, signer: Signer, status: int) -> None:
        """Not followed: keys come from the address that was configured, or from nowhere."""
        server.status, server.headers, server.body = status, {"location": "/elsewhere"}, key_set(signer).encode()
        assert_unavailable(fetching, signer.sign(claims()))
        assert server.requests == ["/jwks"]

    @pytest.mark.parametrize("status", [204, 400, 401, 404, 500])
    def test_another_status(self, fetching: Verifier, server: KeyServer, signer: Signer, status: int) -> None:
        """Only a 200 carries keys."""
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
    def test_no_key_set(self, fetching: Verifier, server: KeyServer, signer: Signer, body: bytes) -> None:
        """Broken JSON, JSON of another shape, and JSON without an end."""
        server.body = body
        assert_unavailable(fetching, signer.sign(claims()))

    def test_oversized(self, fetching: Verifier, server: KeyServer, signer: Signer, clock: Clock) -> None:
        """64 KiB are read; a byte more is not."""
        server.body = key_set(signer).encode().ljust(auth.KEY_SET_MAX_BYTES + 1)
        assert_unavailable(fetching, signer.sign(claims()))
        server.body = server.body[:-1]
        clock.now += KEY_SET_COOLDOWN
        assert fetching.verify(signer.sign(claims()))

    @pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", b"nonsense\r\n\r\n"])
    def test_a_server_that_hangs_up(self, signer: Signer, clock: Clock, answer: bytes) -> None:
        """Before it answers, in the middle, or after something that is no HTTP."""
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

    def test_a_server_that_never_answers(self, signer: Signer, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        """Waiting for it has an end."""
        monkeypatch.setattr(auth, "KEY_SET_TIMEOUT", 0.1)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/jwks"
            assert_unavailable(Verifier(KeySet(url, None, clock), ISSUER, AUDIENCE), signer.sign(claims()))

    @pytest.mark.parametrize("part", ["header", "body"])
    def test_a_server_that_drips(
        self, signer: Signer, clock: Clock, monkeypatch: pytest.MonkeyPatch, part: str
    ) -> None:
        """Each piece in time, but all of them too late: it is left while it is still sending, and not listened to."""
        monkeypatch.setattr(auth, "KEY_SET_TIMEOUT", 0.2)
        with dripping(part, key_set(signer).encode()) as (url, left):
            assert_unavailable(Verifier(KeySet(url, None, clock), ISSUER, AUDIENCE), signer.sign(claims()))
        assert left == [True]

    def test_a_name_that_is_looked_up_for_ever(
        self, server: KeyServer, signer: Signer, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nothing ends a look-up, and nobody waits for one longer than for all the rest."""
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

    def test_a_body_that_grows_when_it_is_unpacked(
        self, fetching: Verifier, server: KeyServer, signer: Signer, clock: Clock
    ) -> None:
        """It is not unpacked: 64 KiB are 64 KiB in memory too, and a key set that was packed is none."""
        server.headers = {"content-encoding": "gzip"}
        server.body = gzip.compress(key_set(signer).encode().ljust(50_000_000))
        assert len(server.body) < auth.KEY_SET_MAX_BYTES
        assert most_memory(partial(assert_unavailable, fetching, signer.sign(claims()))) < 10_000_000
        clock.now += KEY_SET_COOLDOWN
        server.body = gzip.compress(key_set(signer).encode())
        assert_unavailable(fetching, signer.sign(claims()))


class TestKeySet:
    """Which keys of a set are taken."""

    BAD: tuple[Callable[[dict[str, Any]], Any], ...] = (
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

    @pytest.mark.parametrize("spoil", BAD)
    def test_an_unusable_key(
        self, fetching: Verifier, server: KeyServer, signer: Signer, spoil: Callable[[dict[str, Any]], Any]
    ) -> None:
        """A key of another kind or purpose, or broken, verifies nothing, and hinders no other key of the set."""
        other = Signer("EdDSA", ed25519.Ed25519PrivateKey.generate())
        server.body = json.dumps({"keys": [spoil(other.jwk), signer.jwk]}).encode()
        assert fetching.verify(signer.sign(claims()))
        assert_refused(fetching, other.sign(claims()))

    @pytest.mark.parametrize(
        "says", [{"alg": "EdDSA"}, {"use": "sig"}, {"key_ops": ["verify"]}, {"key_ops": ["sign", "verify"]}], ids=str
    )
    def test_a_key_that_says_what_it_is_for(
        self, fetching: Verifier, server: KeyServer, signer: Signer, says: dict[str, Any]
    ) -> None:
        """If that is what it is used for here, it serves."""
        server.body = json.dumps({"keys": [signer.jwk | says]}).encode()
        assert fetching.verify(signer.sign(claims()))

    def test_a_shared_secret_in_the_set(self, fetching: Verifier, server: KeyServer) -> None:
        """A secret that is published is none: no token signed with it is believed."""
        server.body = json.dumps(
            {"keys": [{"kty": "oct", "k": encoded(b"x" * 32), "kid": "s", "alg": "HS256"}]}
        ).encode()
        assert_refused(fetching, jwt.encode(claims(), b"x" * 32, "HS256", {"kid": "s"}))

    def test_several_keys(self, fetching: Verifier, server: KeyServer) -> None:
        """Parallel requests make Better Auth mint several at once: each of them serves."""
        minted = [Signer("EdDSA", ed25519.Ed25519PrivateKey.generate()) for _ in range(5)]
        server.body = key_set(*minted).encode()
        for signer in minted:
            assert fetching.verify(signer.sign(claims()))

    def test_the_static_set_comes_first(self, server: KeyServer, signer: Signer, clock: Clock) -> None:
        """A key that stands there is used without a fetch; others are looked up."""
        other = Signer("EdDSA", ed25519.Ed25519PrivateKey.generate())
        server.body = key_set(other).encode()
        verifier = Verifier(KeySet(server.url, key_set(signer), clock), ISSUER, AUDIENCE)
        assert verifier.verify(signer.sign(claims()))
        assert server.requests == []
        assert verifier.verify(other.sign(claims()))


class TestSettings:
    """What would let nobody in is said at the start, not at each request."""

    @pytest.mark.parametrize("missing", ["auth_issuer", "auth_audience", "auth_jwks_json"])
    def test_the_chat_api_needs(self, missing: str) -> None:
        """Issuer, audience, and keys from somewhere."""
        with pytest.raises(SettingsError, match=missing.upper()):
            create_chat_verifier(_settings(missing))

    @pytest.mark.parametrize("missing", ["auth_issuer", "mcp_resource_url", "auth_jwks_json"])
    def test_the_mcp_door_needs(self, missing: str) -> None:
        """Issuer, its own address, and keys from somewhere."""
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
