"""The HTTP server: both model routes, the control routes, and the ways to run it."""

import json
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from . import chat_completions, prompt_cache, responses
from .client import StandIn
from .conversation import Answer
from .planning import next_answer
from .wire import ApiError, Json, Usage, Wire, dump

RECORDS = 500  # requests kept for inspection
KEEP_ALIVE = 65  # seconds; longer than clients keep an idle connection, so that they never write to one just closed


class JsonResponse(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dump(content).encode()


class Desk:
    """What one running stand-in holds: the prompt cache and the recorded requests. Nothing of a conversation."""

    def __init__(self) -> None:
        self.cache = prompt_cache.PromptCache()
        self.records: deque[Json] = deque(maxlen=RECORDS)

    async def responses(self, request: Request) -> Response:
        return await self._recorded(request, responses)

    async def chat_completions(self, request: Request) -> Response:
        return await self._recorded(request, chat_completions)

    async def _recorded(self, request: Request, wire: Wire) -> Response:
        record = _record(request)
        self.records.append(record)
        try:
            response = await self._respond(request, wire, record)
        except ApiError as error:
            response = _error_response(error)
        record["status"] = response.status_code
        return response

    async def _respond(self, request: Request, wire: Wire, record: Json) -> Response:
        _check_key(request)
        record["body"] = body = _parse(await request.body())
        conversation = wire.read(body)
        record["message"] = conversation.turn.said
        answer = next_answer(conversation)
        payload = wire.write(answer, body, self._usage(wire, body, answer))
        if body.get("stream"):
            return StreamingResponse(_each(wire.stream(payload, body)), media_type="text/event-stream")
        return JsonResponse(payload)

    def _usage(self, wire: Wire, body: Json, answer: Answer) -> Usage:
        output = (answer.text or answer.refusal or "") + "".join(call.arguments for call in answer.calls)
        return Usage(*self.cache.tokens(wire.prompt(body)), prompt_cache.count(output))

    async def list_requests(self, request: Request) -> Response:
        match = request.query_params.get("match", "")
        return JsonResponse([record for record in self.records if match in record["message"]])

    async def forget_requests(self, request: Request) -> Response:
        self.records.clear()
        return Response(status_code=204)


async def _each(events: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Starlette would iterate a plain iterator in a thread, at many times the cost."""
    for event in events:
        yield event


def _record(request: Request) -> Json:
    headers = dict(request.headers)
    if "authorization" in headers:
        headers["authorization"] = "Bearer ***"
    return {"path": request.url.path, "headers": headers, "body": None, "message": "", "status": None}


def _check_key(request: Request) -> None:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise ApiError(401, "No API key was sent: the Authorization header must be 'Bearer <key>'.")


def _parse(body: bytes) -> Json:
    try:
        parsed = json.loads(body)
    except ValueError as error:
        raise ApiError(400, "The body is not JSON.") from error
    if not isinstance(parsed, dict):
        raise ApiError(400, "The body is not a JSON object.")
    return parsed


def _error_response(error: ApiError) -> Response:
    return JsonResponse(error.body(), error.status)


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _error_response(ApiError(status, f"There is no {request.method} {request.url.path} here."))


async def _models(request: Request) -> Response:
    _check_key(request)
    model = {"id": "stand-in", "object": "model", "created": 0, "owned_by": "taskchat"}
    return JsonResponse({"object": "list", "data": [model]})


async def _api_error(request: Request, error: Exception) -> Response:
    return _error_response(cast(ApiError, error))


async def _health(request: Request) -> Response:
    return JsonResponse({"status": "ok"})


def create_app() -> Starlette:
    """The stand-in as an ASGI application, with a desk of its own."""
    desk = Desk()
    return Starlette(
        routes=[
            Route("/v1/responses", desk.responses, methods=["POST"]),
            Route("/v1/chat/completions", desk.chat_completions, methods=["POST"]),
            Route("/v1/models", _models),
            Route("/healthz", _health),
            Route("/control/requests", desk.list_requests, methods=["GET"]),
            Route("/control/requests", desk.forget_requests, methods=["DELETE"]),
        ],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error},
    )


def create_server() -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            create_app(), log_config=None, access_log=False, lifespan="off", ws="none", timeout_keep_alive=KEEP_ALIVE
        )
    )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. asyncio turns Nagle off only where the protocol is named; else each answer takes 40 ms."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen()
    return listener


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{host}:{port}/v1"


@contextmanager
def running(host: str = "127.0.0.1", port: int = 0) -> Iterator[StandIn]:
    """A stand-in in a thread of this process; port 0 takes a free one."""
    listener = listen(host, port)
    server = create_server()
    thread = threading.Thread(target=server.run, args=([listener],), name="stand-in-model")
    thread.start()
    try:
        yield StandIn(address(listener))
    finally:
        server.should_exit = True
        thread.join()
