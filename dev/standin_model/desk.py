"""From a request to its response: what both model routes do."""

import json
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from . import failures
from .conversation import Answer, Conversation, Json, dump
from .faults import Fault, Faults
from .planning import next_answer
from .prompt_cache import PromptCache, count
from .waiting import WaitingRoom
from .wire import ApiError, JsonResponse, Usage, Wire, new_id

RECORDS = 500  # requests kept for inspection
CLIENT_GONE = 499  # a status that no one receives; it is for the record


class Desk:
    """What one running stand-in holds. Nothing of a conversation is among it."""

    def __init__(self) -> None:
        self.cache = PromptCache()
        self.faults = Faults()
        self.room = WaitingRoom()
        self.records: deque[Json] = deque(maxlen=RECORDS)

    async def handle(self, request: Request, wire: Wire) -> Response:
        record = _record(request)
        self.records.append(record)
        try:
            response = await self._respond(request, wire, record)
        except ApiError as error:
            response = error.response()
        response.headers["x-request-id"] = new_id("req")
        record["status"] = response.status_code
        return response

    async def _respond(self, request: Request, wire: Wire, record: Json) -> Response:
        check_key(request)
        record["body"] = body = parse(await request.body())
        conversation = wire.read(body)
        record["message"] = conversation.turn.said
        fault = self.faults.strike(conversation)
        record["fault"] = fault and fault.name
        if fault and (response := await self._fail_early(fault, request)):
            return response
        answer = _answer(conversation, fault)
        usage = self._usage(wire, body, answer)
        record["tokens"] = usage.input + usage.output
        payload = wire.write(answer, body, usage)
        chunks = wire.stream(payload, body) if body.get("stream") else None
        return _deliver(payload, chunks, fault)

    async def _fail_early(self, fault: Fault, request: Request) -> Response | None:
        if fault.name in failures.INSTEAD:
            response: Response = failures.INSTEAD[fault.name](**fault.parameters)
            return response
        wait = failures.BEFORE.get(fault.name)
        if wait and not await wait(self.room, request, **fault.parameters):
            return Response(status_code=CLIENT_GONE)
        return None

    def _usage(self, wire: Wire, body: Json, answer: Answer) -> Usage:
        output = (answer.text or answer.refusal or "") + "".join(call.arguments for call in answer.calls)
        return Usage(*self.cache.tokens(wire.prompt(body)), count(output))


def _answer(conversation: Conversation, fault: Fault | None) -> Answer:
    answer = next_answer(conversation)
    if fault and fault.name in failures.ANSWERS:
        answer = failures.ANSWERS[fault.name](answer, **fault.parameters)
    return answer


def _deliver(payload: Json, chunks: Iterable[bytes] | None, fault: Fault | None) -> Response:
    media_type = "application/json" if chunks is None else failures.EVENTS
    if fault and fault.name in failures.BODIES:
        content = dump(payload).encode() if chunks is None else b"".join(chunks)
        response: Response = failures.BODIES[fault.name](content, media_type, **fault.parameters)
        return response
    return JsonResponse(payload) if chunks is None else StreamingResponse(_each(chunks), media_type=media_type)


async def _each(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Starlette would iterate a plain iterator in a thread, at many times the cost."""
    for chunk in chunks:
        yield chunk


def _record(request: Request) -> Json:
    headers = dict(request.headers)
    if "authorization" in headers:
        headers["authorization"] = "Bearer ***"
    empty = dict.fromkeys(("body", "fault", "status", "tokens"))
    return {"method": request.method, "path": request.url.path, "headers": headers, "message": "", **empty}


def check_key(request: Request) -> None:
    """Any key will do, but there must be one."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise ApiError(401, "No API key was sent: the Authorization header must be 'Bearer <key>'.")


def parse(body: bytes) -> Json:
    try:
        parsed: Any = json.loads(body)
    except ValueError as error:
        raise ApiError(400, "The body is not JSON.") from error
    if not isinstance(parsed, dict):
        raise ApiError(400, "The body is not a JSON object.")
    return parsed
