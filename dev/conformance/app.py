"""Serve the MCP endpoint twice, as it is deployed and with the suite's own tools, to a client without a token."""

import contextlib
from collections.abc import AsyncIterator
from typing import Final

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from dev import processes
from dev.conformance import issuer
from dev.conformance.fixtures import fixtures
from mcp_tools.app import McpProcess, process
from taskchat.settings import Settings

FIXTURES_PATH: Final = "/fixtures/mcp"


class WithToken:
    """Middleware that adds a user's access token to each request: the suite cannot be given one."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        """Wrap `app`, whose settings name issuer and resource."""
        self._app, self._settings, self._issuer = app, settings, issuer()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a new token."""
        resource = str(self._settings.mcp_resource_url)
        token = self._issuer.mint_for_mcp(self._issuer.developer, issuer=self._settings.auth_issuer, resource=resource)
        headers = [*scope["headers"], (b"authorization", f"Bearer {token}".encode())]
        await self._app({**scope, "headers": headers}, receive, send)


_settings: Final = process.settings
_resource: Final = str(_settings.mcp_resource_url).removesuffix("/mcp") + FIXTURES_PATH
_fixture_settings: Final = _settings.model_copy(update={"mcp_resource_url": _resource})
own_endpoint: Final = process.app
_fixture_process: Final = McpProcess(process.toolset)
_fixture_process.settings = _fixture_settings
_fixture_process.tools = fixtures
fixture_endpoint: Final = _fixture_process.app
_with_token: Final = {True: WithToken(fixture_endpoint, _fixture_settings), False: WithToken(own_endpoint, _settings)}


async def endpoints(scope: Scope, receive: Receive, send: Send) -> None:
    """Pass the request to one of the two endpoints, by its path."""
    await _with_token[scope["path"] == FIXTURES_PATH](scope, receive, send)


@contextlib.asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[None]:
    """Start and stop both endpoints, and end this process when the command that started it ends."""
    processes.leave_with_parent()
    async with (
        own_endpoint.router.lifespan_context(own_endpoint),
        fixture_endpoint.router.lifespan_context(fixture_endpoint),
    ):
        yield


app = Starlette(routes=[Mount("", endpoints)], lifespan=lifespan)
