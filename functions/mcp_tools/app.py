"""The MCP door: the tool server over stateless streamable HTTP, for any client with a token for this resource."""

import asyncio
from functools import cached_property
from typing import Annotated, Final
from urllib.parse import urlsplit

import key_value.aio.adapters.pydantic
import key_value.aio.stores.memory  # noqa: F401  (FastMCP would import both in the first request: 0.3 s)
from fastmcp.server.auth import AccessToken, RemoteAuthProvider, TokenVerifier
from fastmcp.server.http import StarletteWithLifespan, create_streamable_http_app
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from pydantic import AnyHttpUrl, TypeAdapter, UrlConstraints
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mcp_tools.error_filter import PlainErrors
from taskchat import deadline
from taskchat.errors import OutOfTime, Unauthenticated
from taskchat.http.auth import Verifier, mcp_verifier
from taskchat.http.gateway import lambda_handler
from taskchat.http.middleware import JSON, BodyLimit, OwnAddress, SecurityHeaders, require_json
from taskchat.http.problems import ErrorBoundary, tell_routing
from taskchat.limits import mcp_limits
from taskchat.process import Process, run_concurrently, start
from taskchat.tasks import toolset

METADATA_PATH: Final = "/.well-known/oauth-protected-resource"
"""Where clients look that don't get to see the address in WWW-Authenticate, which some gateways rename."""

_AS_WRITTEN: Final = TypeAdapter(Annotated[AnyHttpUrl, UrlConstraints(preserve_empty_path=True)])
"""Addresses without the slash that pydantic puts at their end: clients would take it for another issuer's."""


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
            subject=claims["sub"],
        )


class McpProcess(Process):
    """What the MCP function's requests share."""

    @cached_property
    def verifier(self) -> Verifier:
        """Return the verifier of MCP tokens, which keeps public keys between requests. Raises SettingsError."""
        return mcp_verifier(self.settings)

    @cached_property
    def app(self) -> StarletteWithLifespan:
        """Return the app that the settings describe. Raises SettingsError."""
        return create_app(self)

    def get_ready(self) -> None:
        """Open what the first request would wait for: app, connection and keys. Raises SettingsError."""
        asyncio.get_event_loop().run_until_complete(self._start_app())
        run_concurrently(self.connect, self.verifier.keys.fetch_ahead)

    async def _start_app(self) -> None:
        """Start the app and stop it again: FastMCP imports a part of itself only then."""
        async with self.app.router.lifespan_context(self.app):
            await self.tools.list_tools()


class _Admission:
    """Admits each authenticated POST of JSON while time remains, and takes it from what the caller's limits allow."""

    def __init__(self, app: ASGIApp, process: McpProcess) -> None:
        self._app, self._process, self._limits = app, process, mcp_limits(process.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises UnsupportedMediaType, OutOfTime, TooManyRequests or DatabaseUnavailable."""
        user = scope.get("user")
        if isinstance(user, AuthenticatedUser):
            headers = MutableHeaders(scope=scope)
            require_json(headers)
            headers["content-type"] = JSON  # the library knows it in lower case alone
            self._admit(str(user.access_token.subject))
        await self._app(scope, receive, send)

    def _admit(self, user_id: str) -> None:
        if deadline.remaining() <= 0:
            raise OutOfTime
        if self._limits.any:
            with self._process.database.transaction(user_id) as session:
                self._limits.spend(session, user_id)


def create_app(process: McpProcess) -> StarletteWithLifespan:
    """Return a tool server at the path of MCP_RESOURCE_URL. Raises SettingsError when no token could be accepted."""
    settings, verifier = process.settings, process.verifier
    resource = urlsplit(verifier.audience)
    auth = RemoteAuthProvider(
        token_verifier=_TokenVerifier(verifier),
        authorization_servers=[_AS_WRITTEN.validate_python(settings.auth_issuer)],
        base_url=f"{resource.scheme}://{resource.netloc}",
        scopes_supported=list(process.toolset.scopes),
    )
    (metadata,) = auth.get_routes(resource.path)
    app = create_streamable_http_app(
        process.tools,
        streamable_http_path=resource.path,
        auth=auth,
        json_response=True,
        stateless_http=True,
        routes=[Route(METADATA_PATH, metadata.endpoint, methods=["GET", "OPTIONS"])],
    )
    app.router.redirect_slashes = False
    app.routes[:] = [_admitting(route, resource.path, process) for route in app.routes]
    app.add_exception_handler(HTTPException, tell_routing)
    # From the innermost on. They stand before the library's own, which fails where the token is judged.
    app.add_middleware(PlainErrors)
    app.add_middleware(BodyLimit)
    app.add_middleware(OwnAddress, verifier.audience, settings.cors_origins, public=METADATA_PATH)
    app.add_middleware(ErrorBoundary)
    app.add_middleware(SecurityHeaders)
    return app


def _admitting(route: BaseRoute, path: str, process: McpProcess) -> BaseRoute:
    """Return the route, behind admission if it is the tools'. It takes no DELETE, which would end a session."""
    if not isinstance(route, Route) or route.path != path:
        return route
    return Route(path, _Admission(route.endpoint, process), methods=["POST"])


process: Final = McpProcess(toolset)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve with the process's app. A process that starts from a snapshot makes its own, from the settings of then."""
    await process.app(scope, receive, send)


# The session manager lives as long as its lifespan, and here that is one invocation.
handler: Final = lambda_handler(app, lifespan="auto")
start(process)  # on Lambda only: settings, connection and keys are ready before the first request
