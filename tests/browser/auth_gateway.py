"""Pass requests on to Better Auth, and allow them to the page's origin, as the gateway before a sign-in server does.

At the page's own origin, nothing has to be allowed: the distribution of decision 30 passes requests on and no more.
"""

import httpx2
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

PASSED_ON = ("content-type", "cookie", "origin")
PASSED_BACK = ("content-type", "set-cookie", "x-retry-after")


def create_app(better_auth: str, page: str) -> ASGIApp:
    """Return the app for pages of this origin."""

    async def pass_on(request: Request) -> Response:
        sent = {name: value for name, value in request.headers.items() if name in PASSED_ON}
        async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
            url = f"{better_auth}{request.url.path}"
            answer = await client.request(request.method, url, content=await request.body(), headers=sent)
        response = Response(answer.content, answer.status_code)
        for name, value in answer.headers.multi_items():
            if name.lower() in PASSED_BACK:
                response.headers.append(name, value)
        return response

    allowed = {"allow_origins": [page], "allow_methods": ["GET", "POST"], "allow_headers": ["content-type"]}
    cors = Middleware(CORSMiddleware, allow_credentials=True, **allowed)
    return Starlette(routes=[Route("/{path:path}", pass_on, methods=["GET", "POST"])], middleware=[cors])
