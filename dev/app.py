"""Serve both functions at one address, as API Gateway does, with a page to try them and a token to call them."""

import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chat.app import app as chat
from chat.app import process as chat_process
from dev import page, processes, reader, state
from dev.authorization.routes import Routes
from dev.authorization.server import AuthorizationServer
from dev.standin_model.domain import domain
from dev.tokens import Issuer
from mcp_tools.app import process as mcp_process
from taskchat.http.gateway import MAX_SECONDS
from taskchat.http.web_adapter import REQUEST_CONTEXT, observe

TOKEN_LIFETIME = timedelta(hours=1)  # the longest that taskchat accepts, for the line that `make dev` prints
MCP_PATHS = ("/mcp", "/.well-known/oauth-protected-resource")
LOCAL_NAMES = ["127.0.0.1", "localhost"]


def read_issuer() -> Issuer:
    """Return the issuer of the development token."""
    return Issuer.stored(state.directory() / "issuer.pem")


authorization = AuthorizationServer(
    os.environ["AUTH_ISSUER"],
    os.environ["MCP_RESOURCE_URL"],
    os.environ.get("AUTH_SERVER_DATABASE_URL", ""),
    read_issuer,
)
chat_process.verifier = authorization.accepted_by(chat_process.verifier)
mcp_process.verifier = authorization.accepted_by(mcp_process.verifier)
mcp_tools = mcp_process.app


async def token(_request: Request) -> JSONResponse:
    """Return a fresh token of each kind for the developer, without a login."""
    issuer, url = read_issuer(), os.environ["AUTH_ISSUER"]
    user_id = issuer.developer
    tokens = {
        "user_id": user_id,
        "token": issuer.mint(user_id, issuer=url, audience=os.environ["AUTH_AUDIENCE"], lifetime=TOKEN_LIFETIME),
        "mcp_token": issuer.mint_for_mcp(
            user_id, issuer=url, resource=os.environ["MCP_RESOURCE_URL"], lifetime=TOKEN_LIFETIME
        ),
        "expires_in": int(TOKEN_LIFETIME.total_seconds()),
        "examples": [domain.examples.add, domain.examples.show, *domain.examples.more],
    }
    return JSONResponse(tokens, headers={"Cache-Control": "no-store"})


async def functions(scope: Scope, receive: Receive, send: Send) -> None:
    """Pass MCP's paths to one function and all others to the other, unchanged, as API Gateway routes them."""
    path: str = scope["path"]
    for_mcp = any(path == prefix or path.startswith(f"{prefix}/") for prefix in MCP_PATHS)
    await (mcp_tools if for_mcp else chat)(scope, receive, send)


async def gateway(scope: Scope, receive: Receive, send: Send) -> None:
    """Give the request an id and the time of its arrival, as API Gateway does, in place of any that the client sent."""
    context = {"requestId": str(uuid4()), "requestTimeEpoch": int(time.time() * 1000)}
    sent = [(name, value) for name, value in scope["headers"] if name != REQUEST_CONTEXT.encode()]
    headers = [*sent, (REQUEST_CONTEXT.encode(), json.dumps(context).encode())]
    await observed({**scope, "headers": headers}, receive, send)


observed = observe(functions, MAX_SECONDS)


class AccessLog:
    """Middleware that prints one short line for each HTTP request."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and print its status and time."""
        started, status = time.perf_counter(), 500

        async def watched_send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        finally:
            milliseconds = (time.perf_counter() - started) * 1000
            print(f"{scope['method']} {scope['path']} {status} {milliseconds:.0f} ms", flush=True)


@contextlib.asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[None]:
    """Start and stop both functions' apps. End this process when the parent that reloads it ends."""
    processes.leave_with_parent()
    async with chat.router.lifespan_context(chat), mcp_tools.router.lifespan_context(mcp_tools):
        try:
            yield
        finally:
            authorization.stop()
    await mcp_process.close()


app = Starlette(
    routes=[
        *page.routes,
        *reader.routes(chat),
        Route("/dev/token", token),
        *Routes(authorization).all(),
        Mount("", AccessLog(gateway)),
    ],
    # Only names of this machine: another site could let a name of its own resolve to it, and read the token.
    middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=LOCAL_NAMES)],
    lifespan=lifespan,
)
