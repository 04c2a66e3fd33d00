"""The MCP door: the tool server over stateless streamable HTTP, for any client with a token for this resource."""

import json
import logging
from functools import lru_cache
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from fastmcp import FastMCP
from fastmcp.server.auth import AccessToken, RemoteAuthProvider, TokenVerifier
from fastmcp.server.http import StarletteWithLifespan, create_streamable_http_app
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from pydantic import AnyHttpUrl, TypeAdapter, UrlConstraints
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mcp_tools.plain_errors import PlainErrors
from taskchat import deadline, lifecycle
from taskchat.audit import READ, WRITE
from taskchat.auth import Verifier, mcp_verifier
from taskchat.errors import OutOfTime, Unauthenticated
from taskchat.gateway import answering, lambda_handler
from taskchat.guards import JSON, BodyLimit, OwnAddress, SecurityHeaders, require_json
from taskchat.limits import Limits, mcp_limits
from taskchat.problems import ErrorBoundary, expected, tell_routing
from taskchat.rehearsal import Person, perform, request
from taskchat.settings import Settings, forget_settings, get_settings
from taskchat.tools import database, server

METADATA_PATH: Final = "/.well-known/oauth-protected-resource"
"""Where clients look that don't get to see the address in WWW-Authenticate, which some gateways rename."""

_AS_WRITTEN: Final = TypeAdapter(Annotated[AnyHttpUrl, UrlConstraints(preserve_empty_path=True)])
"""Addresses without the slash that pydantic puts at their end: clients would take it for another issuer's."""


class _Discreet(logging.Handler):
    """Logs the kind and place of an exception that the MCP library reports, and none of its words."""

    def emit(self, record: logging.LogRecord) -> None:
        """Called for every record of the library's. Those without an exception are of no interest here."""
        if record.exc_info and isinstance(record.exc_info[1], Exception):
            expected(record.exc_info[1])


_library: Final = logging.getLogger("mcp")
_library.handlers[:] = [_Discreet()]
_library.propagate = False  # its tracebacks quote arguments, which are a person's words


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


class _Admission:
    """Lets in each authenticated POST of JSON that there is time for, and takes it from what its person has left."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises UnsupportedMediaType, OutOfTime, TooManyRequests or DatabaseUnavailable."""
        user = scope.get("user")
        if isinstance(user, AuthenticatedUser):
            headers = MutableHeaders(scope=scope)
            require_json(headers)
            headers["content-type"] = JSON  # the library knows it in lower case alone
            self._admit(str(user.access_token.subject))
        await self._app(scope, receive, send)

    def _admit(self, person: str) -> None:
        if deadline.remaining() <= 0:
            raise OutOfTime
        if self._limits.any:
            with database().transaction(person) as session:
                self._limits.spend(session, person)


@lru_cache(maxsize=1)
def verifier() -> Verifier:
    """The verifier of this process, which keeps public keys between requests. Raises SettingsError."""
    return mcp_verifier(get_settings())


@lru_cache(maxsize=1)
def door() -> StarletteWithLifespan:
    """The app of this process, as its settings say. Raises SettingsError."""
    return _make_app(get_settings(), verifier(), server)


def make_app(settings: Settings, tools: FastMCP = server) -> StarletteWithLifespan:
    """A tool server at the path of MCP_RESOURCE_URL. Raises SettingsError when it could let nobody in."""
    return _make_app(settings, mcp_verifier(settings), tools)


def _make_app(settings: Settings, verifier: Verifier, tools: FastMCP) -> StarletteWithLifespan:
    resource = urlsplit(verifier.audience)
    auth = RemoteAuthProvider(
        token_verifier=_TokenVerifier(verifier),
        authorization_servers=[_AS_WRITTEN.validate_python(settings.auth_issuer)],
        base_url=f"{resource.scheme}://{resource.netloc}",
        scopes_supported=[READ, WRITE],
    )
    (metadata,) = auth.get_routes(resource.path)
    app = create_streamable_http_app(
        tools,
        streamable_http_path=resource.path,
        auth=auth,
        json_response=True,
        stateless_http=True,
        routes=[Route(METADATA_PATH, metadata.endpoint, methods=["GET", "OPTIONS"])],
    )
    app.router.redirect_slashes = False
    app.routes[:] = [_admitting(route, resource.path, mcp_limits(settings)) for route in app.routes]
    app.add_exception_handler(HTTPException, tell_routing)
    # From the innermost on. They stand before the library's own, which fails where the token is judged.
    app.add_middleware(PlainErrors)
    app.add_middleware(BodyLimit)
    app.add_middleware(OwnAddress, verifier.audience, settings.cors_origins, public=METADATA_PATH)
    app.add_middleware(ErrorBoundary)
    app.add_middleware(SecurityHeaders)
    return app


def _admitting(route: BaseRoute, path: str, limits: Limits) -> BaseRoute:
    """Return the route, behind admission if it is the tools'. It takes no DELETE, which would end a session."""
    if not isinstance(route, Route) or route.path != path:
        return route
    return Route(path, _Admission(route.endpoint, limits), methods=["POST"])


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The app of this process, or whichever it has by then: one that is started from a snapshot makes its own."""
    await door()(scope, receive, send)


# The session manager lives as long as its lifespan, and here that is one invocation.
handler: Final = lambda_handler(app, lifespan="auto")


def get_ready() -> None:
    """Have everything that the first request would wait for or build. Raises SettingsError."""
    door()
    lifecycle.side_by_side(database().connect, verifier().keys.fetch_ahead)
    lifecycle.attempt(rehearse)


def rehearse() -> None:
    """Some requests of nobody's, of which nothing stays. Raises RehearsalFailed, or what connecting raises."""
    person = Person()
    settings = person.trusted_by(get_settings())
    resource = str(settings.mcp_resource_url)
    token, address = person.token(resource, "at+jwt", f"{READ} {WRITE}"), urlsplit(resource)
    answer = answering(make_app(settings), lifespan="auto")

    def ask(method: str, **params: Any) -> dict[str, Any]:
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        both = "application/json, text/event-stream"
        response = perform(answer, request(address.path, token, message, host=address.netloc, accept=both))
        result: dict[str, Any] = json.loads(response["body"])["result"]
        return result

    with database().rehearsal():
        ask("initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo={"name": "", "version": ""})
        ask("tools/list")
        task = ask("tools/call", name="add_task", arguments={"title": "rehearse"})["structuredContent"]
        this = {"task_id": task["id"]}
        ask("tools/call", name="list_tasks", arguments={})
        ask("tools/call", name="list_tasks", arguments={"status": "pending"})
        ask("tools/call", name="update_task", arguments=this | {"title": "rehearsed"})
        ask("tools/call", name="complete_task", arguments=this)
        ask("tools/call", name="delete_task", arguments=this)


def forget() -> None:
    """Drop what must be fresh in each process that is started from a snapshot of this one."""
    database().close()
    for made in (verifier, door, database):
        made.cache_clear()
    forget_settings()
