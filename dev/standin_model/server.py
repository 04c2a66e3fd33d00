"""The HTTP server: the routes, and the ways to run them."""

import socket
import threading
from asyncio import BaseTransport
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from . import chat_completions, responses
from .client import StandIn
from .faults import Fault
from .handler import Handler, parse
from .wire import ApiError, JsonResponse

KEEP_ALIVE = 65  # seconds; longer than clients keep an idle connection, so that they never write to one just closed


class Routes:
    """The endpoints, which share one handler."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def all(self) -> list[Route]:
        return [
            Route("/v1/responses", self._responses, methods=["POST"]),
            Route("/v1/chat/completions", self._chat_completions, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/healthz", self._health),
            Route("/control/faults", self._set_fault, methods=["POST"]),
            Route("/control/faults", self._clear_faults, methods=["DELETE"]),
            Route("/control/keys", self._set_keys, methods=["POST"]),
            Route("/control/requests", self._list_requests),
            Route("/control/requests", self._forget_requests, methods=["DELETE"]),
            Route("/control/waiting", self._waiting),
            Route("/control/release", self._release, methods=["POST"]),
        ]

    async def _responses(self, request: Request) -> Response:
        return await self._handler.handle(request, responses)

    async def _chat_completions(self, request: Request) -> Response:
        return await self._handler.handle(request, chat_completions)

    async def _models(self, request: Request) -> Response:
        self._handler.check_key(request)
        model = {"id": "stand-in", "object": "model", "created": 0, "owned_by": "taskchat"}
        return JsonResponse({"object": "list", "data": [model]})

    async def _health(self, request: Request) -> Response:
        return JsonResponse({"status": "ok"})

    async def _set_fault(self, request: Request) -> Response:
        self._handler.faults.set(Fault.from_request(parse(await request.body())))
        return Response(status_code=204)

    async def _clear_faults(self, request: Request) -> Response:
        self._handler.faults.clear()
        return Response(status_code=204)

    async def _set_keys(self, request: Request) -> Response:
        keys = parse(await request.body())["keys"]
        self._handler.keys = None if keys is None else frozenset(keys)
        return Response(status_code=204)

    async def _list_requests(self, request: Request) -> Response:
        match = request.query_params.get("match", "").lower()
        return JsonResponse([record for record in self._handler.records if match in record["message"].lower()])

    async def _forget_requests(self, request: Request) -> Response:
        self._handler.records.clear()
        return Response(status_code=204)

    async def _waiting(self, request: Request) -> Response:
        number = int(request.query_params.get("at_least", 0))
        return JsonResponse({"waiting": await self._handler.hanging.at_least(number)})

    async def _release(self, request: Request) -> Response:
        await self._handler.hanging.release()
        return Response(status_code=204)


async def _api_error(request: Request, error: Exception) -> Response:
    return cast(ApiError, error).response()


async def _http_error(request: Request, error: Exception) -> Response:
    status = cast(HTTPException, error).status_code
    return ApiError(status, f"There is no {request.method} {request.url.path} here.").response()


def create_app(handler: Handler | None = None) -> Starlette:
    """The stand-in as an ASGI application."""
    handlers = {ApiError: _api_error, HTTPException: _http_error}
    return Starlette(routes=Routes(handler or Handler()).all(), exception_handlers=handlers)


class Protocol(H11Protocol):
    """HTTP/1.1 that hands the application its connection, for a fault may have to drop it."""

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self.app_state = self.app_state | {"transport": transport}


class Server(uvicorn.Server):
    """A server that lets hanging requests go before it waits for them to end."""

    def __init__(self) -> None:
        self._handler = Handler()
        config = uvicorn.Config(
            create_app(self._handler),
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE,
        )
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._handler.hanging.close()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. asyncio turns Nagle off only where the protocol is named; else each answer takes 40 ms."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen()
    return listener


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()
    return f"http://{host}:{port}/v1"


@contextmanager
def running(host: str = "127.0.0.1", port: int = 0) -> Iterator[StandIn]:
    """A stand-in in a thread of this process; port 0 takes a free one."""
    listener = listen(host, port)
    server = Server()
    thread = threading.Thread(target=server.run, args=([listener],), name="stand-in-model")
    thread.start()
    try:
        yield StandIn(address(listener))
    finally:
        server.should_exit = True
        thread.join()
