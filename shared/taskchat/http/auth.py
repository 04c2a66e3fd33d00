"""Verify the caller's token: a JSON Web Token of Better Auth, against its key set.

The same keys sign chat tokens and MCP access tokens. The audience and the `typ` header tell the two apart.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import Any, Final

import httpx2
import jwt
from aws_lambda_powertools import Logger

from taskchat.errors import KeySetUnavailable, Unauthenticated
from taskchat.settings import Settings, SettingsError

LEEWAY: Final = 30
"""Seconds by which clocks may differ."""
MAX_LIFETIME: Final = 3600
"""Seconds between a token's iat and exp at most: no server can revoke a token before it expires."""
MAX_TOKEN_LENGTH: Final = 8192
KEY_SET_TTL: Final = 300
"""Seconds after which the key set is fetched again."""
KEY_SET_COOLDOWN: Final = 10
"""Seconds between two fetches at least, whatever key ids callers invent."""
KEY_SET_TIMEOUT: Final = 2.0
"""Seconds for the whole fetch, from the look-up of the server's name to the last byte."""
KEY_SET_MAX_BYTES: Final = 64 * 1024
USER_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")

_COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+){2}")
"""Three parts in base64url without padding (RFC 7515). Decoders accept more than that."""
_ALGORITHM_OF_KEY: Final = {("OKP", "Ed25519"): "EdDSA", ("EC", "P-256"): "ES256", ("RSA", None): "RS256"}
_FORBIDDEN_HEADERS: Final = frozenset({"jku", "x5u", "jwk", "x5c", "crit"})
"""Headers that bring a key of their own, or ask for rules that this program does not know."""

logger = Logger()


def _read_clock() -> float:
    """Return the time of day. While Lambda freezes the process, this clock goes on; the monotonic one may stop."""
    return time.time()


class KeySet:
    """Keeps public keys by key id. While the server of the key set is down, the old keys still serve."""

    def __init__(self, url: str | None, static: str | None, clock: Callable[[], float] = _read_clock) -> None:
        """Fetch from `url` when a key is needed. `static` is a key set in JSON, for where none can be fetched."""
        self._url = url
        self._clock = clock
        self._is_down = False
        self._static = _parse_key_set(static) if static else {}
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")

    def find(self, key_id: str) -> jwt.PyJWK:
        """Return the key with this id.

        Raises Unauthenticated if there is none, and KeySetUnavailable if the key set cannot be fetched.
        """
        if key := self._static.get(key_id):
            return key
        if self._url and (key_id not in self._keys or not self._is_within(KEY_SET_TTL, self._fetched_at)):
            self._refresh(self._url)
        if key := self._keys.get(key_id):
            return key
        if self._is_down:
            raise KeySetUnavailable(retry_after=KEY_SET_COOLDOWN)
        raise Unauthenticated

    def fetch_ahead(self) -> None:
        """Fetch the keys before a request needs them. If that fails, the first request tries again without delay."""
        if self._url:
            self._refresh(self._url)
        if self._is_down:
            self._tried_at = float("-inf")

    def _is_within(self, seconds: float, since: float) -> bool:
        """Return whether less time than that has passed. A clock that was set back counts as more."""
        return 0 <= self._clock() - since < seconds

    def _refresh(self, url: str) -> None:
        if self._is_within(KEY_SET_COOLDOWN, self._tried_at):
            return
        self._tried_at, self._is_down = self._clock(), True
        try:
            self._keys = _parse_key_set(_fetch(url))
            self._fetched_at, self._is_down = self._tried_at, False
        except (httpx2.HTTPError, TimeoutError, ValueError, RecursionError) as error:
            # The old keys still serve. A caller that needs another key gets 503.
            logger.error("key set unavailable", extra={"reason": type(error).__name__})


def _fetch(url: str) -> bytes:
    """Return the body at the URL. Raises TimeoutError, httpx2.HTTPError or ValueError.

    A thread of its own does it, and the request waits for it no longer than KEY_SET_TIMEOUT: nothing can stop the
    look-up of a name.
    """
    body: Future[bytes] = Future()

    def fetch() -> None:
        try:
            body.set_result(asyncio.run(_download(url)))
        except Exception as error:
            body.set_exception(error)

    Thread(target=fetch, daemon=True).start()
    return body.result(KEY_SET_TIMEOUT)


async def _download(url: str) -> bytes:
    """Return the body as it was sent: decompressed, it could grow a thousandfold. Raises as _fetch does."""
    body = b""
    async with (
        asyncio.timeout(KEY_SET_TIMEOUT),
        httpx2.AsyncClient(follow_redirects=False, headers={"Accept-Encoding": "identity"}) as client,
        client.stream("GET", url) as response,
    ):
        if response.status_code != httpx2.codes.OK:
            raise ValueError("no key set")
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > KEY_SET_MAX_BYTES:
                raise ValueError("key set too large")
    return body


def _parse_key_set(text: str | bytes) -> dict[str, jwt.PyJWK]:
    """Return the usable keys by their ids, and leave out the others. Raises ValueError for another text."""
    document = json.loads(text)
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("not a key set")
    return {str(key.key_id): key for key in map(_make_key, document["keys"]) if key}


def _make_key(jwk: Any) -> jwt.PyJWK | None:
    """Return the key, bound to the algorithm of its kind. Return None for another kind or use, or a broken key."""
    try:
        algorithm = _ALGORITHM_OF_KEY[jwk["kty"], None if jwk["kty"] == "RSA" else jwk["crv"]]
        operations = jwk.get("key_ops", ["verify"])
        verifies = jwk.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations
        is_usable = verifies and jwk.get("alg", algorithm) == algorithm and isinstance(jwk["kid"], str)
        return jwt.PyJWK(jwk, algorithm) if is_usable else None
    except (jwt.PyJWTError, AttributeError, LookupError, TypeError, ValueError):
        return None


@dataclass(frozen=True)
class Verifier:
    """Verifies the tokens of one audience."""

    keys: KeySet
    issuer: str
    audience: str
    types: frozenset[str | None] = frozenset({None, "JWT"})
    """Accepted values of the `typ` header. Better Auth's session tokens have no such header."""

    def verify(self, token: str) -> dict[str, Any]:
        """Return the claims of a valid token. Raises Unauthenticated, or KeySetUnavailable if it cannot be checked."""
        try:
            key = self.keys.find(self._read_key_id(token))
            claims: dict[str, Any] = jwt.decode(
                token,
                key=key,
                algorithms=[str(key.algorithm_name)],  # the key's, whatever the header says
                audience=self.audience,
                issuer=self.issuer,
                leeway=LEEWAY,
                options={"require": ["exp", "iat", "sub", "aud", "iss"], "strict_aud": True},
            )
            # The subject must fit into a path.
            if not USER_ID.fullmatch(claims["sub"]) or claims["exp"] - claims["iat"] > MAX_LIFETIME:
                raise Unauthenticated
        except (jwt.PyJWTError, ValueError, TypeError):
            raise Unauthenticated from None
        return claims

    def _read_key_id(self, token: str) -> str:
        if len(token) > MAX_TOKEN_LENGTH or not _COMPACT.fullmatch(token):
            raise Unauthenticated
        header = jwt.get_unverified_header(token)
        key_id = header.get("kid")
        if header.get("typ") not in self.types or _FORBIDDEN_HEADERS & header.keys() or not isinstance(key_id, str):
            raise Unauthenticated
        return key_id


def create_chat_verifier(settings: Settings) -> Verifier:
    """Return the verifier of Better Auth's session tokens. Raises SettingsError if no token could be valid."""
    return _create_verifier(settings, "auth_audience", Verifier.types)


def create_mcp_verifier(settings: Settings) -> Verifier:
    """Return the verifier of access tokens for the MCP endpoint. Raises SettingsError if no token could be valid."""
    return _create_verifier(settings, "mcp_resource_url", frozenset({"at+jwt", "application/at+jwt"}))


def _create_verifier(settings: Settings, audience: str, types: frozenset[str | None]) -> Verifier:
    for name in ("auth_issuer", audience):
        if not getattr(settings, name):
            raise SettingsError(f"{name.upper()} is not set.")
    if not settings.auth_jwks_url and not settings.auth_jwks_json:
        raise SettingsError("Neither AUTH_JWKS_URL nor AUTH_JWKS_JSON is set.")
    keys = KeySet(settings.auth_jwks_url, settings.auth_jwks_json)
    return Verifier(keys, settings.auth_issuer, getattr(settings, audience), types)


def read_bearer_token(authorization: list[str]) -> str:
    """Return the token of the request's only Authorization header. Raises Unauthenticated."""
    match = re.fullmatch(r"Bearer +([A-Za-z0-9._-]+)", authorization[0], re.IGNORECASE) if authorization else None
    if match is None or len(authorization) != 1:
        raise Unauthenticated
    return match.group(1)
