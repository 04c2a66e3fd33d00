"""Serve the tools to MCP clients over stateless streamable HTTP, and make the Lambda handler."""

import asyncio
from dataclasses import replace
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

from mcp_tools.error_filter import filter_errors
from taskchat import deadline
from taskchat.errors import OutOfTime, Unauthenticated
from taskchat.http.auth import Verifier, create_mcp_verifier
from taskchat.http.gateway import Event, lambda_handler
from taskchat.http.middleware import JSON, answer_safely, check_address, limit_body, require_json
from taskchat.http.problems import answer_routing_error
from taskchat.limits import Limits
from taskchat.process import Process, run_concurrently, start
from taskchat.tasks import toolset

METADATA_PATH: Final = "/.well-known/oauth-protected-resource"
"""Clients look here if they do not get the address from WWW-Authenticate, which some gateways rename."""

NO_API: Final = "https://api-id.execute-api."
"""The beginning of a MCP_RESOURCE_URL without the API's id, which no deployment can know: the API names its functions,
so they are made first. No real id has a hyphen."""

_EXACT_URL: Final = TypeAdapter(Annotated[AnyHttpUrl, UrlConstraints(preserve_empty_path=True)])
"""A URL without the slash that pydantic adds at its end: with it, clients would see another issuer."""


class _TokenVerifier(TokenVerifier):
    """Verifies tokens for FastMCP with our own verifier."""

    def __init__(self, verifier: Verifier) -> None:
        super().__init__()
        self._verifier = verifier

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return the token's user and scopes, or None for an invalid token. Raises KeySetUnavailable."""
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
    """The objects that requests to the MCP function share."""

    @cached_property
    def verifier(self) -> Verifier:
        """Return the verifier of access tokens, which keeps public keys between requests. Raises SettingsError."""
        return create_mcp_verifier(self.settings)

    @cached_property
    def app(self) -> StarletteWithLifespan:
        return create_app(self)

    def use_api(self, event: Event) -> None:
        """Complete MCP_RESOURCE_URL with the id of the API that sent the first request."""
        if event.api_id and self.verifier.audience.startswith(NO_API):
            completed = self.verifier.audience.replace("api-id", event.api_id, 1)
            self.verifier = replace(self.verifier, audience=completed)
            self.app = create_app(self)

    def get_ready(self) -> None:
        """Open what the first request would wait for: app, connection and keys. Raises SettingsError."""
        asyncio.get_event_loop().run_until_complete(self._start_app())
        run_concurrently(self.connect, self.verifier.keys.fetch_ahead)

    async def _start_app(self) -> None:
        """Start the app and stop it again: FastMCP imports a part of itself only then."""
        async with self.app.router.lifespan_context(self.app):
            await self.tools.list_tools()


class _Admission:
    """Checks content type, deadline and limits of each authenticated request."""

    def __init__(self, app: ASGIApp, process: McpProcess) -> None:
        self._app, self._process = app, process
        # The clients bring a model of their own: there is no quota of model tokens.
        self._limits = Limits("mcp", process.settings.mcp_burst, process.settings.mcp_requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises UnsupportedMediaType, OutOfTime, TooManyRequests or DatabaseUnavailable."""
        user = scope.get("user")
        if isinstance(user, AuthenticatedUser):
            headers = MutableHeaders(scope=scope)
            require_json(headers)
            headers["content-type"] = JSON  # the library accepts lower case only
            if deadline.remaining() <= 0:
                raise OutOfTime
            user_id = str(user.access_token.subject)
            if self._limits.any:
                with self._process.database.transaction(user_id) as session:
                    self._limits.spend(session, user_id)
        await self._app(scope, receive, send)


def create_app(process: McpProcess) -> StarletteWithLifespan:
    """Return the tool server at the path of MCP_RESOURCE_URL. Raises SettingsError if no token could be valid."""
    resource, auth = process.verifier.audience, _create_auth(process)
    path = urlsplit(resource).path
    (metadata,) = auth.get_routes(path)
    routes: list[BaseRoute] = [Route(METADATA_PATH, metadata.endpoint, methods=["GET", "OPTIONS"])]
    app = create_streamable_http_app(
        process.tools, path, auth=auth, json_response=True, stateless_http=True, routes=routes
    )
    app.router.redirect_slashes = False
    app.routes[:] = [_admit_first(route, path, process) for route in app.routes]
    app.add_exception_handler(HTTPException, answer_routing_error)
    # The innermost first. All are outside the library's own middleware, which raises when it verifies the token.
    app.add_middleware(filter_errors)
    app.add_middleware(limit_body)
    app.add_middleware(check_address, resource, process.settings.cors_origins, public=METADATA_PATH)
    app.add_middleware(answer_safely)
    return app


def _create_auth(process: McpProcess) -> RemoteAuthProvider:
    resource = urlsplit(process.verifier.audience)
    return RemoteAuthProvider(
        token_verifier=_TokenVerifier(process.verifier),
        authorization_servers=[_EXACT_URL.validate_python(process.settings.auth_issuer)],
        base_url=f"{resource.scheme}://{resource.netloc}",
        scopes_supported=list(process.toolset.scopes),
    )


def _admit_first(route: BaseRoute, path: str, process: McpProcess) -> BaseRoute:
    """Put admission before the tools' route, which takes no DELETE: there is no session to end."""
    if not isinstance(route, Route) or route.path != path:
        return route
    return Route(path, _Admission(route.endpoint, process), methods=["POST"])


process: Final = McpProcess(toolset)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one request. A process that starts from a snapshot makes its app from its own settings."""
    await process.app(scope, receive, send)


# The session manager lives as long as the lifespan, which is one invocation here.
handler: Final = lambda_handler(app, lifespan="auto", prepare=process.use_api)
start(process)  # on Lambda only: settings, connection and keys are ready before the first request
