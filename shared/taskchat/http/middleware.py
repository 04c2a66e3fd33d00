"""What stands in front of an app: headers on every answer, a limit to every body, and whom a browser may speak for."""

from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskchat.errors import BodyTooLarge, Misdirected, OriginRefused, UnsupportedMediaType

SECURITY_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=63072000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
}
"""On every answer of both doors: kept by no cache, and nothing that a browser would run, frame or guess the type of."""

JSON: Final = "application/json"

MAX_BODY: Final = 32 * 1024
"""Bytes of a body at most: the longest message takes half of it in UTF-8, and up to one and a half of it in escapes."""

_DEFAULT_PORTS: Final = {"https": ":443", "http": ":80"}


def require_json(headers: Headers) -> None:
    """Raise UnsupportedMediaType unless the body is declared as JSON, in whatever case and with whatever parameters."""
    if headers.get("content-type", "").split(";")[0].strip().lower() != JSON:
        raise UnsupportedMediaType


class SecurityHeaders:
    """Puts the security headers on every answer, whoever within gave it. To stand before everything else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def protect(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        await self._app(scope, receive, protect)


class BodyLimit:
    """Ends a request whose body is too large at the byte that is too many, for whoever reads it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises BodyTooLarge when more is read than may be."""
        received = 0

        async def count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY:
                raise BodyTooLarge
            return message

        await self._app(scope, count, send)


class OwnAddress:
    """Lets in who calls the resource by its own name, and of other sites' pages only those that are allowed.

    A page can point a name of its own at a server (DNS rebinding), and the browser takes the two for one site. What
    gives it away is that name, in Host and Origin. Clients that are no browsers send no Origin.
    """

    def __init__(self, app: ASGIApp, url: str, origins: frozenset[str], public: str) -> None:
        """`url` is the resource's, `origins` are other sites' that may call it, `public` begins paths that any may."""
        self._app, self._public = app, public
        address = urlsplit(url)
        self._port = _DEFAULT_PORTS.get(address.scheme, "")
        self._host = self._without_port(address.netloc)
        self._origins = origins | {f"{address.scheme}://{self._host}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises Misdirected or OriginRefused."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if [self._without_port(host) for host in headers.getlist("host")] != [self._host]:
                raise Misdirected
            if not self._origins.issuperset(headers.getlist("origin")) and not scope["path"].startswith(self._public):
                raise OriginRefused
        await self._app(scope, receive, send)

    def _without_port(self, host: str) -> str:
        """The host as names are compared: in lower case, without the port that goes without saying."""
        return host.lower().removesuffix(self._port)
