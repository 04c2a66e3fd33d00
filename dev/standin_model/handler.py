"""Turn a request into its response, in the same way for both model routes."""

import json
from collections import deque
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from . import failures
from .conversation import Answer, Conversation, Json, dump
from .faults import Fault, Faults
from .hanging import HangingRequests
from .planning import next_answer
from .prompt_cache import PromptCache, count
from .stream import EVENTS, Pace, Stream, StreamedResponse, steadily
from .wire import ApiError, JsonResponse, Usage, WireFormat, new_id

RECORDS = 500  # requests kept for inspection
CLIENT_GONE = 499  # nobody receives this status; it is for the record


class Handler:
    """Answers the model's requests. Holds the state of one running stand-in, and nothing of a conversation."""

    def __init__(self) -> None:
        self.cache = PromptCache()
        self.faults = Faults()
        self.hanging = HangingRequests()
        self.records: deque[Json] = deque(maxlen=RECORDS)
        self.keys: frozenset[str] | None = None
        """The API keys that are accepted. None: any key will do."""

    async def handle(self, request: Request, wire: WireFormat) -> Response:
        """Record the request and answer it, with the error object of the API if it is wrong."""
        record = _record(request)
        self.records.append(record)
        try:
            response = await self._respond(request, wire, record)
        except ApiError as error:
            response = error.response()
        response.headers["x-request-id"] = new_id("req")
        record["status"] = response.status_code
        return response

    def check_key(self, request: Request) -> None:
        """Raise ApiError if the request has no API key, or one that is not accepted."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise ApiError(401, "No API key was sent: the Authorization header must be 'Bearer <key>'.")
        if self.keys is not None and key.strip() not in self.keys:
            raise ApiError(401, "This API key is not valid.", code="invalid_api_key")

    async def _respond(self, request: Request, wire: WireFormat, record: Json) -> Response:
        self.check_key(request)
        record["body"] = body = parse(await request.body())
        conversation = wire.read(body)
        record["message"] = conversation.turn.message
        fault = self.faults.take(conversation, is_streamed=bool(body.get("stream")))
        record["fault"] = fault and fault.name
        if fault and (response := await self._fail_early(fault, request)):
            return response
        answer = _answer(conversation, fault)
        usage = self._usage(wire, body, answer)
        record["tokens"] = usage.input + usage.output
        payload = wire.write(answer, body, usage)
        if not body.get("stream"):
            return _spoiled(dump(payload).encode(), JsonResponse.media_type, fault) or JsonResponse(payload)
        chunks = list(wire.stream(payload, body, answer.split))
        if spoiled := _spoiled(b"".join(chunk.data for chunk in chunks), EVENTS, fault):
            return spoiled
        pace = _pace(fault) or partial(steadily, seconds=answer.seconds_per_piece)
        return StreamedResponse(pace(Stream(chunks, request, self.hanging)), record)

    async def _fail_early(self, fault: Fault, request: Request) -> Response | None:
        if fault.name in failures.INSTEAD:
            response: Response = failures.INSTEAD[fault.name](**fault.parameters)
            return response
        wait = failures.BEFORE.get(fault.name)
        if wait and not await wait(self.hanging, request, **fault.parameters):
            return Response(status_code=CLIENT_GONE)
        return None

    def _usage(self, wire: WireFormat, body: Json, answer: Answer) -> Usage:
        output = "".join([*answer.texts, answer.refusal or "", *(call.arguments for call in answer.calls)])
        return Usage(*self.cache.tokens(wire.prompt(body)), count(output))


def _answer(conversation: Conversation, fault: Fault | None) -> Answer:
    answer = next_answer(conversation)
    if fault and fault.name in failures.ANSWERS:
        answer = failures.ANSWERS[fault.name](answer, **fault.parameters)
    return answer


def _spoiled(content: bytes, media_type: str, fault: Fault | None) -> Response | None:
    if not fault or fault.name not in failures.BODIES:
        return None
    response: Response = failures.BODIES[fault.name](content, media_type, **fault.parameters)
    return response


def _pace(fault: Fault | None) -> Pace | None:
    if not fault or fault.name not in failures.STREAMS:
        return None
    return partial(failures.STREAMS[fault.name], **fault.parameters)


def _record(request: Request) -> Json:
    headers = dict(request.headers)
    if "authorization" in headers:
        headers["authorization"] = "Bearer ***"
    empty = dict.fromkeys(("body", "fault", "status", "tokens", "first_piece"))
    return {"method": request.method, "path": request.url.path, "headers": headers, "message": "", "pieces": 0, **empty}


def parse(body: bytes) -> Json:
    """Return the body as a JSON object. Raises ApiError if it is none."""
    try:
        parsed: Any = json.loads(body)
    except ValueError as error:
        raise ApiError(400, "The body is not JSON.") from error
    if not isinstance(parsed, dict):
        raise ApiError(400, "The body is not a JSON object.")
    return parsed
