"""Sign a caller's requests, and make them events of API Gateway."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode
from uuid import uuid4

from dev.tokens import Issuer
from testing.gateway import event

AUTH: Final = "https://auth.example.com"
"""The issuer and the audience of tokens for the chat route."""

RESOURCE: Final = "https://api.example.com/mcp"
"""The audience of tokens for the MCP endpoint."""


def identity(issuer: Issuer) -> dict[str, str]:
    """Return the environment variables with which the functions accept the issuer's tokens."""
    return {
        "AUTH_ISSUER": AUTH,
        "AUTH_AUDIENCE": AUTH,
        "AUTH_JWKS_JSON": issuer.jwks_json,
        "MCP_RESOURCE_URL": RESOURCE,
    }


@dataclass(frozen=True)
class Caller:
    """Hold a user and the issuer of their tokens."""

    id: str
    issuer: Issuer

    @classmethod
    def new(cls, issuer: Issuer) -> "Caller":
        """Return a user that the service does not know yet."""
        return cls(uuid4().hex, issuer)

    @property
    def token(self) -> str:
        """Mint a token for the chat route."""
        return self.issuer.mint(self.id, issuer=AUTH, audience=AUTH)

    @property
    def mcp_token(self) -> str:
        """Mint an access token for the MCP endpoint."""
        return self.issuer.mint_for_mcp(self.id, issuer=AUTH, resource=RESOURCE)

    def request(self, body: Any, key: str | None = None, **headers: str) -> dict[str, Any]:
        """Return the event of a chat request. Bytes are sent as they are, any other body as JSON."""
        sent = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        sent |= {"idempotency-key": key} if key else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return event("POST", f"/api/{self.id}/chat", headers=sent, body=raw)

    def own(
        self,
        method: str,
        rest: str = "",
        *,
        body: Any = None,
        query: str | Mapping[str, Any] = "",
        of: str | None = None,
        **headers: str,
    ) -> dict[str, Any]:
        """Return the event of a request about the caller's own data, or `of` another user's.

        `rest` is the path behind the user's id. Bytes are sent as they are, any other body as JSON.
        """
        sent = {"authorization": f"Bearer {self.token}", **headers}
        sent |= {"content-type": "application/json"} if body is not None else {}
        raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        given = query if isinstance(query, str) else urlencode(query)
        return event(method, f"/api/{of or self.id}{rest}", query=given, headers=sent, body=raw)
