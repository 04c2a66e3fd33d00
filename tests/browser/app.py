"""Serve what `make dev` serves, with a development token for the person that the browser's cookie names.

So each test has a person of its own, and nothing between the browser and the server is faked. uvicorn runs this module.
"""

import json
import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import Receive, Scope, Send

from dev import app as development
from dev import page, state
from dev.tokens import Issuer
from taskchat.http.auth import KeySet
from taskchat.http.web_adapter import observe
from tests.browser import auth_gateway
from tests.browser.names import AUTH, HURRIED, PERSON

usual = development.observed
hurried = observe(development.functions, 4)


async def observed(scope: Scope, receive: Receive, send: Send) -> None:
    """Give a request the usual time, or little if the person's id says so."""
    await (hurried if scope["path"].startswith(f"/api/{HURRIED}") else usual)(scope, receive, send)


development.observed = observed
more: list[BaseRoute] = []
if AUTH in os.environ:
    development.authorization.keys = KeySet(None, os.environ["AUTH_JWKS_JSON"])
    origin = os.environ[AUTH].removesuffix("/api/auth")
    if origin:
        policy = page.POLICY.replace("connect-src 'self'", f"connect-src 'self' {origin}")
        page.HEADERS["Content-Security-Policy"] = policy
    else:
        more.append(Mount(os.environ[AUTH], auth_gateway.create_app(os.environ["AUTH_ISSUER"], page="")))


async def config(request: Request) -> Response:
    """Return the page's settings, with Better Auth instead of the development token if the test names one."""
    answer = await page._config(request)
    if AUTH not in os.environ:
        return answer
    return JSONResponse(json.loads(bytes(answer.body)) | {"development": False, "auth": os.environ[AUTH]})


async def token(request: Request) -> JSONResponse:
    """Return the development token, of the cookie's person."""
    answer = await development.token(request)
    if (person := request.cookies.get(PERSON)) is None:
        return answer
    issuer = Issuer.stored(state.directory() / "issuer.pem")
    minted = issuer.mint(person, issuer=os.environ["AUTH_ISSUER"], audience=os.environ["AUTH_AUDIENCE"])
    return JSONResponse({"user_id": person, "token": minted, "expires_in": 900}, headers={"Cache-Control": "no-store"})


app = Starlette(
    routes=[Route("/dev/token", token), Route("/config.json", config), *more, Mount("", development.app)],
    lifespan=lambda _: development.lifespan(development.app),
)
