"""Who is calling: Better Auth's JSON Web Tokens, judged against its key set.

Chat tokens and MCP access tokens are signed with the same keys, so what tells them apart is checked strictly: the
audience, and the `typ` of the header.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
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
"""Seconds between a token's iat and exp at most: nobody can take a token back sooner than it expires."""
MAX_TOKEN_LENGTH: Final = 8192
KEY_SET_TTL: Final = 300
"""Seconds after which the key set is fetched again."""
KEY_SET_COOLDOWN: Final = 10
"""Seconds between fetches at least, whatever key ids callers invent."""
KEY_SET_TIMEOUT: Final = 2.0
"""Seconds until the key set must have come, from looking up its server's name to its last byte."""
KEY_SET_MAX_BYTES: Final = 64 * 1024
USER_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")

_COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+){2}")
"""Three parts in base64url without padding (RFC 7515), which decoders are more generous about."""
_ALGORITHM_OF_KEY: Final = {("OKP", "Ed25519"): "EdDSA", ("EC", "P-256"): "ES256", ("RSA", None): "RS256"}
_FORBIDDEN_HEADERS: Final = frozenset({"jku", "x5u", "jwk", "x5c", "crit"})
"""Headers that bring a key of their own, or ask for rules this program does not know."""

Claims = dict[str, Any]

logger = Logger()


def _time_of_day() -> float:
    """Return the time by a clock that goes on while Lambda freezes the process. Its monotonic clock may stand still."""
    return time.time()


class KeySet:
    """Public keys by key id: static ones, or fetched, kept for a while, and served stale through an outage."""

    def __init__(self, url: str | None, static: str | None, clock: Callable[[], float] = _time_of_day) -> None:
        """`url` is fetched when a key is needed; `static` is a key set in JSON, for where nothing can be fetched."""
        self._url = url
        self._clock = clock
        self._is_down = False
        self._static = _parse(static) if static else {}
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")

    def find(self, key_id: str) -> jwt.PyJWK:
        """The key with this id. Raises Unauthenticated if there is none, KeySetUnavailable if nobody can tell."""
        if key := self._static.get(key_id):
            return key
        if self._url and (key_id not in self._keys or not self._is_within(KEY_SET_TTL, self._fetched_at)):
            self._refresh()
        if key := self._keys.get(key_id):
            return key
        if self._is_down:
            raise KeySetUnavailable(retry_after=KEY_SET_COOLDOWN)
        raise Unauthenticated

    def fetch_ahead(self) -> None:
        """Fetch the keys before anybody needs them. If that fails, the first who does tries again without delay."""
        if self._url:
            self._refresh()
        if self._is_down:
            self._tried_at = float("-inf")

    def _is_within(self, seconds: float, since: float) -> bool:
        """Return whether so little time has passed. A clock that was set back tells of no time at all."""
        return 0 <= self._clock() - since < seconds

    def _refresh(self) -> None:
        if self._is_within(KEY_SET_COOLDOWN, self._tried_at):
            return
        self._tried_at, self._is_down = self._clock(), True
        try:
            self._keys = _parse(_fetch(str(self._url)))
            self._fetched_at, self._is_down = self._tried_at, False
        except (httpx2.HTTPError, TimeoutError, ValueError, RecursionError) as error:
            # The keys there were still serve; who needs another is told 503.
            logger.error("key set unavailable", extra={"reason": type(error).__name__})


def _fetch(url: str) -> bytes:
    """What is published there. Raises TimeoutError, httpx2.HTTPError or ValueError.

    By a thread of its own, for which nobody waits too long: nothing ends the look-up of a name but its answer.
    """
    published: Future[bytes] = Future()

    def fetch() -> None:
        try:
            published.set_result(asyncio.run(_download(url)))
        except Exception as error:
            published.set_exception(error)

    Thread(target=fetch, daemon=True).start()
    return published.result(KEY_SET_TIMEOUT)


async def _download(url: str) -> bytes:
    """The body as it comes over the wire: unpacked, it could grow a thousandfold. Raises as _fetch does."""
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


def _parse(text: str | bytes) -> dict[str, jwt.PyJWK]:
    """The usable keys of a key set, all others left out. Raises ValueError when it is no key set."""
    document = json.loads(text)
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("not a key set")
    return {jwk["kid"]: key for jwk in document["keys"] if (key := _usable(jwk))}


def _usable(jwk: Any) -> jwt.PyJWK | None:
    """The key, bound to its algorithm. None if it is of another kind, or broken: the others of its set still serve."""
    algorithm = _algorithm(jwk)
    try:
        return jwt.PyJWK(jwk, algorithm) if algorithm else None
    except (jwt.PyJWTError, ValueError, TypeError):
        return None


def _algorithm(jwk: Any) -> str | None:
    """What the key's kind is used with here. None for another kind, and for a key that says it is for another use."""
    if not isinstance(jwk, dict) or not isinstance(jwk.get("kid"), str):
        return None
    kind = str(jwk.get("kty"))
    algorithm = _ALGORITHM_OF_KEY.get((kind, None if kind == "RSA" else str(jwk.get("crv"))))
    operations = jwk.get("key_ops", ["verify"])
    verifies = jwk.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations
    return algorithm if verifies and jwk.get("alg", algorithm) == algorithm else None


@dataclass(frozen=True)
class Verifier:
    """Judges the tokens of one audience."""

    keys: KeySet
    issuer: str
    audience: str
    types: frozenset[str | None] = field(default=frozenset({None, "JWT"}))
    """Values of the `typ` header that are taken: Better Auth's session tokens have none."""

    def verify(self, token: str) -> Claims:
        """The claims of a token that holds. Raises Unauthenticated, or KeySetUnavailable when nobody can tell."""
        try:
            key = self.keys.find(self._key_id(token))
            claims: Claims = jwt.decode(
                token,
                key=key,
                algorithms=[str(key.algorithm_name)],  # the key's, whatever the header says
                audience=self.audience,
                issuer=self.issuer,
                leeway=LEEWAY,
                options={"require": ["exp", "iat", "sub", "aud", "iss"], "strict_aud": True},
            )
            return _checked(claims)
        except (jwt.PyJWTError, ValueError, TypeError):
            raise Unauthenticated from None

    def _key_id(self, token: str) -> str:
        if len(token) > MAX_TOKEN_LENGTH or not _COMPACT.fullmatch(token):
            raise Unauthenticated
        header = jwt.get_unverified_header(token)
        if header.get("typ") not in self.types or _FORBIDDEN_HEADERS & header.keys():
            raise Unauthenticated
        if not isinstance(key_id := header.get("kid"), str):
            raise Unauthenticated
        return key_id


def _checked(claims: Claims) -> Claims:
    """Refuse a subject that could not stand in a path, and a token that lives too long."""
    if not USER_ID.fullmatch(claims["sub"]) or claims["exp"] - claims["iat"] > MAX_LIFETIME:
        raise Unauthenticated
    return claims


def chat_verifier(settings: Settings) -> Verifier:
    """Judges tokens for the chat API. Raises SettingsError when it could let nobody in."""
    if not settings.auth_audience:
        raise SettingsError("AUTH_AUDIENCE is not set.")
    return Verifier(_keys(settings), settings.auth_issuer, settings.auth_audience)


def mcp_verifier(settings: Settings) -> Verifier:
    """Judges access tokens for the MCP endpoint: type at+jwt, for exactly this resource.

    Raises SettingsError when it could let nobody in.
    """
    if not settings.mcp_resource_url:
        raise SettingsError("MCP_RESOURCE_URL is not set.")
    types: frozenset[str | None] = frozenset({"at+jwt", "application/at+jwt"})
    return Verifier(_keys(settings), settings.auth_issuer, settings.mcp_resource_url, types)


def _keys(settings: Settings) -> KeySet:
    if not settings.auth_issuer:
        raise SettingsError("AUTH_ISSUER is not set.")
    if not settings.auth_jwks_url and not settings.auth_jwks_json:
        raise SettingsError("Neither AUTH_JWKS_URL nor AUTH_JWKS_JSON is set.")
    return KeySet(settings.auth_jwks_url, settings.auth_jwks_json)


def bearer_token(authorization: list[str]) -> str:
    """The token of exactly one well-formed Authorization header. Raises Unauthenticated."""
    match = re.fullmatch(r"Bearer +([A-Za-z0-9._-]+)", authorization[0], re.IGNORECASE) if authorization else None
    if match is None or len(authorization) != 1:
        raise Unauthenticated
    return match.group(1)
