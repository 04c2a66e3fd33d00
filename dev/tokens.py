"""Issue tokens for development and tests. They look like Better Auth's, and the same code verifies them."""

import base64
import hashlib
import json
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from dev.standin_model.domain import domain

LIFETIME = timedelta(minutes=15)  # Better Auth's own
MCP_SCOPE = " ".join(domain.examples.scopes)


@dataclass(frozen=True)
class Issuer:
    """Holds a private key, signs tokens with it, and gives the key set that verifies them."""

    key: Ed25519PrivateKey

    @classmethod
    def new(cls) -> "Issuer":
        """Return an issuer with a new key, for a test."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def stored(cls, path: Path) -> "Issuer":
        """Return the issuer whose key is at `path`. The first call makes it, so that the developer stays one user."""
        if not path.exists():
            unfinished = path.with_suffix(".new")
            unfinished.touch(mode=0o600)
            unfinished.write_bytes(cls.new().key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            unfinished.rename(path)
        key = load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise TypeError(f"{path} holds another kind of key")
        return cls(key)

    @property
    def kid(self) -> str:
        """The key's id, derived from the key: so it is the same in every process."""
        return _fingerprint(self._public)

    @property
    def developer(self) -> str:
        """The developer's user id: 32 letters and digits, as Better Auth makes them."""
        return _fingerprint(b"developer" + self._public)

    @property
    def jwks_json(self) -> str:
        """The key set, for `AUTH_JWKS_JSON`."""
        x = base64.urlsafe_b64encode(self._public).rstrip(b"=").decode()
        return json.dumps({"keys": [{"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": self.kid, "x": x}]})

    def derive(self, purpose: str) -> str:
        """Return a password for the purpose, which is the same in every process that has the key."""
        return _fingerprint(purpose.encode() + self.key.private_bytes_raw())

    @property
    def _public(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    def mint(
        self,
        user_id: str,
        *,
        issuer: str,
        audience: str,
        lifetime: timedelta = LIFETIME,
        typ: str | None = None,
        **claims: object,
    ) -> str:
        """Return a signed token for the user. Further `claims` are added to the usual ones, or replace them."""
        now = int(time.time())
        usual = {"sub": user_id, "iss": issuer, "aud": audience, "iat": now, "exp": now + int(lifetime.total_seconds())}
        return jwt.encode(usual | claims, self.key, algorithm="EdDSA", headers={"kid": self.kid, "typ": typ})

    def mint_for_mcp(self, user_id: str, *, issuer: str, resource: str, lifetime: timedelta = LIFETIME) -> str:
        """Return an access token for the MCP endpoint at `resource` (RFC 9068), with all scopes."""
        return self.mint(user_id, issuer=issuer, audience=resource, lifetime=lifetime, typ="at+jwt", scope=MCP_SCOPE)


def _fingerprint(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
