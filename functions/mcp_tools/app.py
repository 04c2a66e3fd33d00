"""The MCP door: the tool server over stateless streamable HTTP, for any client with a token for this resource."""

from typing import Any, Final
from urllib.parse import urlsplit

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.logging import correlation_paths
from aws_lambda_powertools.utilities.typing import LambdaContext
from fastmcp.server.auth import AccessToken, RemoteAuthProvider, TokenVerifier
from fastmcp.server.http import StarletteWithLifespan, create_streamable_http_app
from mangum import Mangum
from pydantic import AnyHttpUrl
from starlette.middleware import Middleware

from taskchat.auth import Verifier, mcp_verifier
from taskchat.errors import Unauthenticated
from taskchat.gateway import readable
from taskchat.problems import ErrorBoundary
from taskchat.settings import Settings, SettingsError, get_settings
from taskchat.tools import server

SCOPES: Final = ["tasks:read", "tasks:write"]

logger = Logger()
metrics = Metrics()


class _TokenVerifier(TokenVerifier):
    """Hands FastMCP the person whom our own verifier finds in a token."""

    def __init__(self, verifier: Verifier) -> None:
        super().__init__()
        self._verifier = verifier

    async def verify_token(self, token: str) -> AccessToken | None:
        """The token's person and scopes, or None for a token that proves nothing. Raises KeySetUnavailable."""
        try:
            claims = self._verifier.verify(token)
        except Unauthenticated:
            return None
        return AccessToken(
            token=token,
            client_id=str(claims.get("client_id") or claims.get("azp") or claims["sub"]),
            scopes=str(claims.get("scope", "")).split(),
            expires_at=int(claims["exp"]),
            subject=claims["sub"],
        )


def make_app(settings: Settings) -> StarletteWithLifespan:
    """The tool server at the path of MCP_RESOURCE_URL. Raises SettingsError when that is not set."""
    if not settings.mcp_resource_url:
        raise SettingsError("MCP_RESOURCE_URL is not set.")
    resource = urlsplit(settings.mcp_resource_url)
    auth = RemoteAuthProvider(
        token_verifier=_TokenVerifier(mcp_verifier(settings)),
        authorization_servers=[AnyHttpUrl(settings.auth_issuer)],
        base_url=f"{resource.scheme}://{resource.netloc}",
        scopes_supported=SCOPES,
    )
    return create_streamable_http_app(
        server,
        streamable_http_path=resource.path,
        auth=auth,
        json_response=True,
        stateless_http=True,
        middleware=[Middleware(ErrorBoundary)],
    )


app: Final = make_app(get_settings())
# The session manager lives as long as its lifespan, and here that is one invocation.
_adapter: Final = Mangum(app, lifespan="auto")


@logger.inject_lambda_context(correlation_id_path=correlation_paths.API_GATEWAY_HTTP, clear_state=True)
@metrics.log_metrics(capture_cold_start_metric=True)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Lambda's entry point for API Gateway's HTTP API events (payload 2.0)."""
    return _adapter(readable(event), context)  # type: ignore[arg-type]  # the same object, typed by two libraries
