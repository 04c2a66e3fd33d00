"""Pass Better Auth's paths on to it, and show the two pages that a person needs: sign in, and agree."""

import html
import json
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from string import Template
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx2
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from dev.authorization.server import OF_ONE_CONNECTION, AuthorizationServer
from dev.processes import StartupError
from taskchat.http.problems import MEDIA_TYPE

PASSED_ON: Final = (
    "/api/auth/{path:path}",
    "/.well-known/oauth-authorization-server",
    "/.well-known/openid-configuration",
)
METHODS: Final = ["GET", "POST", "OPTIONS"]
PAGES: Final = Path(__file__).parent
PAGE_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'",
}
JSON: Final = [("content-type", "application/json"), ("accept", "application/json")]
WRONG_INPUT: Final = "Better Auth refused this."

Answer = Callable[[Request], Awaitable[Response]]


class Routes:
    """The paths of the authorization server."""

    def __init__(self, server: AuthorizationServer) -> None:
        """Serve `server`."""
        self._server = server

    def all(self) -> list[Route]:
        """Return the routes."""
        passed_on = [Route(path, _refused_clearly(self.pass_on), methods=METHODS) for path in PASSED_ON]
        pages = (("/sign-in", self.sign_in), ("/consent", self.consent))
        return [*passed_on, *(Route(path, _refused_clearly(page), methods=["GET", "POST"]) for path, page in pages)]

    async def pass_on(self, request: Request) -> Response:
        """Return Better Auth's own answer."""
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        answer = await self._server.ask(request.method, path, request.headers.items(), await request.body())
        response = Response(answer.content, answer.status_code)
        response.raw_headers += [
            (name.encode(), value.encode())
            for name, value in answer.headers.multi_items()
            if name not in OF_ONE_CONNECTION
        ]
        return response

    async def sign_in(self, request: Request) -> Response:
        """Show the form, or sign in and go on to what the client asked for."""
        if request.method == "GET":
            return _page("sign-in.html", error="")
        form = await _form(request)
        if form.get("as") == "developer":
            given = self._server.developer
            answer = await self._post(request, "sign-in/email", given)
            if answer.status_code == HTTPStatus.UNAUTHORIZED:  # the first time
                answer = await self._post(request, "sign-up/email", given | {"name": "Developer"})
        else:
            given = {name: form.get(name, "") for name in ("email", "password")}
            kind = "sign-up" if form.get("as") == "new" else "sign-in"
            answer = await self._post(request, f"{kind}/email", given | {"name": given["email"]})
        return _go_on(answer) or _page("sign-in.html", error=_reason(answer))

    async def consent(self, request: Request) -> Response:
        """Show which client asks for what, or give it the person's answer."""
        asked = dict(parse_qsl(request.url.query))
        if request.method == "GET":
            return _page("consent.html", error="", **await self._describe(request, asked))
        accept = (await _form(request)).get("answer") == "allow"
        answer = await self._post(request, "oauth2/consent", {"accept": accept})
        return _go_on(answer) or _page("consent.html", error=_reason(answer), **await self._describe(request, asked))

    async def _describe(self, request: Request, asked: dict[str, str]) -> dict[str, str]:
        path = "/api/auth/oauth2/public-client?" + urlencode({"client_id": asked.get("client_id", "")})
        answer = await self._server.ask("GET", path, [*JSON, ("cookie", request.headers.get("cookie", ""))])
        known = answer.json() if answer.status_code == HTTPStatus.OK else {}
        return {
            "client": known.get("client_name") or asked.get("client_id", ""),
            "address": urlsplit(asked.get("redirect_uri", "")).netloc,
            "scopes": asked.get("scope", ""),
        }

    async def _post(self, request: Request, path: str, values: dict[str, Any]) -> httpx2.Response:
        """Post as the page would, with the query that Better Auth signed."""
        body = json.dumps(values | ({"oauth_query": request.url.query} if request.url.query else {})).encode()
        if request.headers.get("origin", self._server.url) != self._server.url:
            raise HTTPException(HTTPStatus.FORBIDDEN, "Another site sent this form.")
        headers = [*JSON, ("origin", self._server.url), ("cookie", request.headers.get("cookie", ""))]
        return await self._server.ask("POST", f"/api/auth/{path}", headers, body)


def _refused_clearly(answer: Answer) -> Answer:
    """Return the endpoint with a 503 that says what is missing when Better Auth cannot start."""

    async def serve(request: Request) -> Response:
        try:
            return await answer(request)
        except StartupError as error:
            problem = {
                "title": "The authorization server could not start.",
                "status": HTTPStatus.SERVICE_UNAVAILABLE,
                "detail": str(error),
                "error": "temporarily_unavailable",  # the two members that OAuth clients read
                "error_description": str(error),
            }
            return JSONResponse(problem, HTTPStatus.SERVICE_UNAVAILABLE, media_type=MEDIA_TYPE)

    return serve


async def _form(request: Request) -> dict[str, str]:
    return dict(parse_qsl((await request.body()).decode(errors="replace")))


def _page(name: str, **values: str) -> HTMLResponse:
    escaped = {key: html.escape(value) for key, value in values.items()}
    text = Template((PAGES / name).read_text()).substitute(escaped)
    return HTMLResponse(text, HTTPStatus.BAD_REQUEST if values["error"] else HTTPStatus.OK, PAGE_HEADERS)


def _go_on(answer: httpx2.Response) -> Response | None:
    """Return the redirect to where Better Auth sends the person, or None if it refused."""
    if answer.status_code >= HTTPStatus.BAD_REQUEST:
        return None
    where = answer.headers.get("location") or answer.json().get("url") or "/"
    response = RedirectResponse(where, HTTPStatus.SEE_OTHER)
    response.raw_headers += [(b"set-cookie", value.encode()) for value in answer.headers.get_list("set-cookie")]
    return response


def _reason(answer: httpx2.Response) -> str:
    try:
        content = answer.json()
    except ValueError:
        return WRONG_INPUT
    return str(content.get("message") or content.get("error_description") or content.get("error") or WRONG_INPUT)
