"""A rehearsal: one request before the first person's, so that what is built at first use is built when nobody waits.

All of the way is real, from the gateway's event to the database, but the parts of those outside are played by
understudies: who signs tokens, and the model. Nothing of it is logged, counted or kept.
"""

import json
import logging
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from types import SimpleNamespace
from typing import Any, Final, Literal, TypeVar
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from taskchat import deadline
from taskchat.gateway import Handler
from taskchat.settings import Settings

T = TypeVar("T")

ISSUER: Final = "https://rehearsal.invalid"

_understudies: ContextVar[Mapping[Callable[[], Any], Any] | None] = ContextVar("understudies", default=None)


class RehearsalFailed(Exception):
    """Raised when the rehearsed request was not answered with 200: so may be the first real one."""


def played(part: Callable[[], T]) -> T:
    """What the function returns, or what stands in for that in a rehearsal."""
    understudies = _understudies.get() or {}
    player: T = understudies[part] if part in understudies else part()
    return player


@contextmanager
def standing_in(understudies: Mapping[Callable[[], Any], Any]) -> Iterator[None]:
    """Have each function's part played by another, in the block and for nobody else."""
    token = _understudies.set(understudies)
    try:
        yield
    finally:
        _understudies.reset(token)


class Person:
    """Somebody who has never been there before, with a key of their own to sign tokens with."""

    def __init__(self) -> None:
        self.id = f"rehearsal-{uuid4().hex}"
        self._key = Ed25519PrivateKey.generate()

    @cached_property
    def key_set(self) -> str:
        """The key set that their tokens are judged by."""
        public = urlsafe_b64encode(self._key.public_key().public_bytes_raw()).rstrip(b"=").decode()
        return json.dumps({"keys": [{"kid": self.id, "kty": "OKP", "crv": "Ed25519", "x": public}]})

    def trusted_by(self, settings: Settings) -> Settings:
        """The settings with them in the issuer's place."""
        return settings.model_copy(
            update={"auth_issuer": ISSUER, "auth_jwks_url": None, "auth_jwks_json": self.key_set},
        )

    def token(self, audience: str, kind: Literal["JWT", "at+jwt"], scope: str = "") -> str:
        """A token of theirs, for a minute."""
        now = int(time.time())
        claims = {"sub": self.id, "iss": ISSUER, "aud": audience, "iat": now, "exp": now + 60, "scope": scope}
        return jwt.encode(claims, self._key, algorithm="EdDSA", headers={"kid": self.id, "typ": kind})


def request(path: str, token: str, body: Any, **headers: str) -> dict[str, Any]:
    """A request as API Gateway hands it over."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return {
        "version": "2.0",
        "rawPath": path,
        "headers": {"authorization": f"Bearer {token}", "content-type": "application/json", **sent},
        "body": json.dumps(body),
        "requestContext": {"http": {"method": "POST", "path": path, "sourceIp": "127.0.0.1"}},
    }


def perform(answer: Handler, event: dict[str, Any]) -> dict[str, Any]:
    """Have a request answered, in silence. Raises RehearsalFailed."""
    context = SimpleNamespace(get_remaining_time_in_millis=lambda: 1000 * deadline.remaining())
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # the audit tells of what was done, and nothing is
    try:
        response = answer(event, context)
    finally:
        logging.disable(before)
    if response["statusCode"] != 200:
        raise RehearsalFailed(str(response["statusCode"]))
    return response
