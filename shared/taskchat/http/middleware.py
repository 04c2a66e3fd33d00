"""Wrap both apps: safe responses, a limit to each body, and a check of Host and Origin."""

from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskchat.errors import BodyTooLarge, Misdirected, OriginRefused, UnsupportedMediaType
from taskchat.http.problems import problem_response
from taskchat.logs import to_problem

SECURITY_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=63072000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
}
"""No cache may keep a response, and no browser may run or frame it, or guess its type."""

JSON: Final = "application/json"

MAX_BODY: Final = 32 * 1024
"""Bytes of a body at most. The longest message takes half of it in UTF-8, and up to one and a half of it in escapes."""

_DEFAULT_PORTS: Final = {"https": ":443", "http": ":80"}


def require_json(headers: Headers) -> None:
    """Raise UnsupportedMediaType unless the body is declared as JSON, in any case and with any parameters."""
    if headers.get("content-type", "").split(";")[0].strip().lower() != JSON:
        raise UnsupportedMediaType


def answer_safely(app: ASGIApp) -> ASGIApp:
    """Return the app with the security headers on every response, and a problem in place of each exception.

    It must be the outermost middleware. It raises an exception that comes after the beginning of the response.
    """

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def send_protected(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        try:
            await app(scope, receive, send_protected)
        except Exception as error:
            if has_begun or scope["type"] != "http":
                raise
            await problem_response(to_problem(error))(scope, receive, send_protected)

    return serve


def limit_body(app: ASGIApp, max_bytes: int = MAX_BODY) -> ASGIApp:
    """Return the app with a limit: it raises BodyTooLarge when the app reads more bytes of a body.

    Starlette's own limit looks at the declared length too, and would answer 413 in place of 401.
    """

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def receive_within_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > max_bytes:
                raise BodyTooLarge
            return message

        await app(scope, receive_within_limit, send)

    return serve


def check_address(app: ASGIApp, url: str, origins: frozenset[str], public: str) -> ASGIApp:
    """Return the app for the host in `url`, its own pages and pages of `origins`; for `public` paths, for all pages.

    A page can point a name of its own at a server (DNS rebinding), and the browser takes the two for one site. Host and
    Origin show that name. Clients that are no browsers send no Origin. (FastMCP's check admits localhost.)
    """
    address = urlsplit(url)
    port = _DEFAULT_PORTS.get(address.scheme, "")
    host = address.netloc.lower().removesuffix(port)
    allowed = origins | {f"{address.scheme}://{host}"}

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if [name.lower().removesuffix(port) for name in headers.getlist("host")] != [host]:
                raise Misdirected
            if not allowed.issuperset(headers.getlist("origin")) and not scope["path"].startswith(public):
                raise OriginRefused
        await app(scope, receive, send)

    return serve
