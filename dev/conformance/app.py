"""The MCP door as it is deployed, and once more with the suite's own tools behind it, for a client without a token."""

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
    """Puts a person's access token on each request: the suite knows no way to be given one."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        """Stand before `app`, whose settings name issuer and resource."""
        self._app, self._settings, self._issuer = app, settings, issuer()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        resource = str(self._settings.mcp_resource_url)
        token = self._issuer.mint_for_mcp(self._issuer.developer, issuer=self._settings.auth_issuer, resource=resource)
        headers = [*scope["headers"], (b"authorization", f"Bearer {token}".encode())]
        await self._app({**scope, "headers": headers}, receive, send)


_settings: Final = process.settings
_resource: Final = str(_settings.mcp_resource_url).removesuffix("/mcp") + FIXTURES_PATH
_fixture_settings: Final = _settings.model_copy(update={"mcp_resource_url": _resource})
own_door: Final = process.app
_fixture_process: Final = McpProcess(process.toolset, _fixture_settings)
_fixture_process.tools = fixtures
fixture_door: Final = _fixture_process.app
_with_token: Final = {True: WithToken(fixture_door, _fixture_settings), False: WithToken(own_door, _settings)}


async def doors(scope: Scope, receive: Receive, send: Send) -> None:
    """By path, which each door knows in full."""
    await _with_token[scope["path"] == FIXTURES_PATH](scope, receive, send)


@contextlib.asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[None]:
    """Start and stop both, and go when the runner goes."""
    processes.leave_with_parent()
    async with own_door.router.lifespan_context(own_door), fixture_door.router.lifespan_context(fixture_door):
        yield


app = Starlette(routes=[Mount("", doors)], lifespan=lifespan)
