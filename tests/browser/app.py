"""Serve what `make dev` serves, with a development token for the person that the browser's cookie names.

So each test has a person of its own, and nothing between the browser and the server is faked. uvicorn runs this module.
"""

import json
import os
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from dev import app as development
from dev import page, state
from dev.tokens import Issuer
from taskchat.http.auth import KeySet
from taskchat.http.web_adapter import observe
from tests.browser.names import AUTH, PANEL, PERSON, TURN_SECONDS

if TURN_SECONDS in os.environ:
    development.observed = observe(development.functions, float(os.environ[TURN_SECONDS]))

if PANEL in os.environ:
    page.panel = lambda: Path(os.environ[PANEL]) if os.environ[PANEL] else None

if AUTH in os.environ:
    development.authorization.keys = KeySet(None, os.environ["AUTH_JWKS_JSON"])
    origin = os.environ[AUTH].removesuffix("/api/auth")
    page.HEADERS["Content-Security-Policy"] = page.POLICY.replace("connect-src 'self'", f"connect-src 'self' {origin}")


async def config(_: Request) -> Response:
    """Return the page's settings, with Better Auth instead of the development token if the test names one."""
    answer = await page._config(_)
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
    routes=[Route("/dev/token", token), Route("/config.json", config), Mount("", development.app)],
    lifespan=lambda _: development.lifespan(development.app),
)
