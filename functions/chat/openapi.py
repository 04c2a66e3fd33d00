"""Describe what FastAPI cannot read from the routes: the token, the body, and every response.

`make openapi` writes the description to docs/openapi.json. `chat.description` completes it, and no start pays for that.
"""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel

from chat.schemas import ChatRequest
from chat.stream.ag_ui import AgUiRequest
from chat.stream.ai_sdk import AiSdkEncoder, AiSdkRequest
from chat.stream.encoding import MEDIA_TYPE as EVENT_STREAM
from taskchat import cursor
from taskchat.errors import (
    BodyTooLarge,
    ConfirmationRequired,
    DatabaseUnavailable,
    Forbidden,
    InvalidInput,
    KeyReused,
    KeySetUnavailable,
    ModelFailed,
    NotFound,
    NotJson,
    OutOfTime,
    TaskchatError,
    TooManyRequests,
    TurnInProgress,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
)
from taskchat.http.problems import MEDIA_TYPE, type_of

Described = dict[int | str, dict[str, Any]]
"""Responses by their status."""


class DescribedApi(FastAPI):
    """An app with a complete description of its API."""

    def openapi(self) -> dict[str, Any]:
        """Return the description, which is made once."""
        if not self.openapi_schema:
            from chat.description import complete

            self.openapi_schema = complete(super().openapi())
        return self.openapi_schema


def operation_id(route: APIRoute) -> str:
    """Return the route's function name as a client's method: `list_conversations` becomes `listConversations`."""
    first, *others = route.name.split("_")
    return first + "".join(map(str.capitalize, others))


SCHEMA_REFERENCE: Final = "#/components/schemas/{model}"


def refer_to(name: str) -> dict[str, Any]:
    """Return a reference to a schema."""
    return {"$ref": SCHEMA_REFERENCE.format(model=name)}


def problem_name(error: type[TaskchatError]) -> str:
    """Return the name of the schema of a problem type: `not-found` becomes `NotFoundProblem`."""
    return "".join(map(str.capitalize, error.slug.split("-"))) + "Problem"


def _header(description: str, schema: dict[str, Any], *, always: bool = True) -> dict[str, Any]:
    return {"description": description, "required": always, "schema": schema}


def _problem(description: str, *errors: type[TaskchatError], **headers: dict[str, Any]) -> Described:
    """Describe the response to errors of one status. `_` in a header's name stands for `-`."""
    [status] = {error.status for error in errors}
    refers = [refer_to(problem_name(error)) for error in errors]
    schema = refers[0] if len(refers) == 1 else {"anyOf": refers}
    examples = {error.slug: {"value": problem_example(error)} for error in errors}
    named = {name.replace("_", "-"): header for name, header in headers.items()}
    content = {MEDIA_TYPE: {"schema": schema, "examples": examples}}
    return {status: {"description": description, "content": content, "headers": named}}


_ID, _TURN_ID = "ae3eab65-dc8e-54c7-8f70-a6d486101f0f", "67520f27-af92-5a0e-8003-77f79be5d6db"
CALL_EXAMPLE: Final[dict[str, Any]] = {
    "call_id": "call_fb6949c94242d9c1683c0055",
    "tool": "add_item",
    "arguments": {"text": "buy milk"},
    "outcome": "ok",
    "result": {"id": 1, "text": "buy milk"},
    "duration_ms": 3.139,
}
_MEMBERS: Final[dict[type[TaskchatError], dict[str, Any]]] = {
    InvalidInput: {"fields": [{"field": "message", "message": "Field required"}]},
    ModelFailed: {"conversation_id": _ID, "turn_id": _TURN_ID, "tool_calls": []},
}


def problem_example(error: type[TaskchatError]) -> dict[str, Any]:
    """Return a problem of this type."""
    return {"type": type_of(error), "title": error.title, "status": error.status} | _MEMBERS.get(error, {})


_SECONDS: Final = {"type": "integer", "minimum": 1}
_WAIT: Final = _header("Seconds to wait before the next try.", _SECONDS)
_MAY_WAIT: Final = _header("Seconds to wait before the next try, if the model said so.", _SECONDS, always=False)
_CHALLENGE: Final = _header("The scheme of the token.", {"type": "string", "const": "Bearer"})
_REPLAYED: Final = _header("Set if the turn was done before.", {"type": "string", "const": "true"}, always=False)

_UI_STREAM: Final = {
    name: _header(
        "The version of the AI SDK's protocol, if the request is one of it.",
        {"type": "string", "const": value},
        always=False,
    )
    for name, value in AiSdkEncoder.headers.items()
}
_IDS: Final = f'"conversation_id":"{_ID}","turn_id":"{_TURN_ID}"'
_EVENTS_OF_A_TURN: Final = f"""\
event: accepted
id: 0
data: {{{_IDS},"replayed":false}}

event: text
id: 1
data: {{"message":0,"text":"Hello."}}

event: finished
id: 2
data: {{{_IDS},"response":"Hello.","tool_calls":[]}}

"""
_PARTS_OF_A_TURN: Final = """\
data: {"type":"start","messageId":"67520f27-af92-5a0e-8003-77f79be5d6db"}

data: {"type":"start-step"}

data: {"type":"text-start","id":"0"}

data: {"type":"text-delta","id":"0","delta":"Hello."}

data: {"type":"text-end","id":"0"}

data: {"type":"finish-step"}

data: {"type":"finish"}

data: [DONE]

"""


def _stream(description: str, example: str, **content: Any) -> dict[str, Any]:
    """Describe a body of server-sent events: a text, whose content a generated client does not read."""
    return {EVENT_STREAM: {"schema": {"type": "string", "description": description} | content, "example": example}}


CHAT_RESPONSES: Final[Described] = {
    200: {
        "description": "The reply and the tool calls: as one object, or as the events of the turn.",
        "headers": {"Idempotent-Replayed": _REPLAYED} | _UI_STREAM,
        "content": {
            "application/json": {
                "example": {
                    "conversation_id": _ID,
                    "turn_id": _TURN_ID,
                    "response": "Added buy milk (1).",
                    "tool_calls": [CALL_EXAMPLE],
                }
            }
        }
        | _stream(
            "Server-sent events while the turn runs, if `Accept` prefers them: a list of TurnEvent. A body of AG-UI or "
            "of the AI SDK gets the events of its protocol. docs/streaming.md describes the three.",
            _EVENTS_OF_A_TURN,
            contentMediaType=EVENT_STREAM,
            contentSchema={"type": "array", "items": refer_to("TurnEvent")},
        ),
    },
    **_problem("The body is not JSON in UTF-8.", NotJson),
    **_problem("There is no token, or an invalid one.", Unauthenticated, WWW_Authenticate=_CHALLENGE),
    **_problem("The path and the token name different users.", Forbidden),
    **_problem("The path is unknown, or the user has no such conversation.", NotFound),
    **_problem("Another turn holds the conversation, or took it during this turn.", TurnInProgress, Retry_After=_WAIT),
    **_problem(
        "The body is larger than 32 KiB, which escapes can make of fewer than 4,000 characters. A body of AG-UI or of "
        "the AI SDK may have 1 MiB.",
        BodyTooLarge,
    ),
    **_problem("The body is not declared as application/json.", UnsupportedMediaType),
    **_problem(
        "A field is missing, unknown or wrong, or the key was used for another request.", InvalidInput, KeyReused
    ),
    **_problem("The user has reached a limit.", TooManyRequests, Retry_After=_WAIT),
    **_problem("The server failed unexpectedly.", TaskchatError),
    **_problem("The model failed.", ModelFailed, Retry_After=_MAY_WAIT),
    **_problem(
        "Database or key set cannot be reached, or the server stops.",
        DatabaseUnavailable,
        KeySetUnavailable,
        Unavailable,
        Retry_After=_WAIT,
    ),
    **_problem("The time ended before the turn.", OutOfTime),
}

DATA_RESPONSES: Final[Described] = {
    401: CHAT_RESPONSES[401],
    403: CHAT_RESPONSES[403],
    **_problem("The path is unknown, or the user has nothing of this id.", NotFound),
    **_problem("A field or a parameter is missing, unknown or wrong.", InvalidInput),
    **_problem("The user has reached the limit of requests for their data.", TooManyRequests, Retry_After=_WAIT),
    500: CHAT_RESPONSES[500],
    **_problem("Database or key set cannot be reached.", DatabaseUnavailable, KeySetUnavailable, Retry_After=_WAIT),
    **_problem("The time ended before anything was done.", OutOfTime),
}
"""The problems of every route on which a person reads and manages their own data."""

RESUME_RESPONSES: Final[Described] = {
    200: {
        "description": "The events of the turn that runs in the conversation, from its first one.",
        "headers": _UI_STREAM,
        "content": _stream("The parts of the AI SDK's UI message stream, version 1.", _PARTS_OF_A_TURN),
    },
    204: {"description": "No turn runs in the conversation."},
    **{status: DATA_RESPONSES[status] for status in (401, 403, 404, 422, 429, 500, 503, 504)},
}
"""The responses of the route on which a client of the AI SDK picks up a running turn."""

BODY_RESPONSES: Final[Described] = {status: CHAT_RESPONSES[status] for status in (400, 413, 415)}
"""The problems of a route with a body."""

BUSY_RESPONSE: Final[Described] = _problem("A turn is running in the conversation.", TurnInProgress, Retry_After=_WAIT)

_EXPORTED: Final[dict[str, Any]] = {
    "version": "taskchat.export/1",
    "user_id": "hruAvtq0oTgdta9IOx7dVU7RZiKQ0DLw",
    "tables": {
        "allowance": [
            {"door": "data", "full_at": "2026-11-21T21:18:52.25+00:00", "day": "2026-11-21", "model_tokens": 0}
        ],
        "conversation": [],
    },
    "next_cursor": cursor.write("allowance", "data"),  # FastAPI leaves a null of an example out
}
EXPORT_RESPONSES: Final[Described] = {
    200: {
        "description": "The page. docs/export.schema.json describes the rows of each table.",
        "content": {"application/json": {"example": _EXPORTED}},
    }
}
ERASURE_RESPONSES: Final[Described] = {
    204: {"description": "Nothing is stored of the person any more. A repeated request is answered alike."},
    **_problem("The header Confirm is missing, or has another value.", ConfirmationRequired),
    **_problem(
        "Database or key set cannot be reached. The same request goes on.",
        DatabaseUnavailable,
        KeySetUnavailable,
        Retry_After=_WAIT,
    ),
    **_problem("The time ended before everything was erased. The same request goes on.", OutOfTime),
}
ERASURE_REQUEST: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "Confirm",
            "in": "header",
            "required": True,
            "description": "Says that the erasure is meant.",
            "schema": {"type": "string", "enum": ["erase"]},  # a const in a header is more than some generators read
            "example": "erase",
        }
    ]
}


def body_of(model: type[BaseModel], example: dict[str, Any] | None = None) -> dict[str, Any]:
    """Describe the body of a route that reads it itself."""
    shown = {"schema": refer_to(model.__name__)} | ({"example": example} if example else {})
    return {"requestBody": {"required": True, "content": {"application/json": shown}}}


def answers_with(description: str, example: dict[str, Any]) -> Described:
    """Describe a 200 by an example. Its schema is that of the route's model."""
    return {200: {"description": description, "content": {"application/json": {"example": example}}}}


HEALTH_RESPONSES: Final = answers_with("The process answers.", {"status": "ok"})

_TEXT: Final = "Add buy milk"
_EXAMPLES: Final[dict[str, Any]] = {
    "taskchat": {"message": _TEXT, "timezone": "Europe/Paris"},
    "AG-UI": {
        "threadId": "ae3eab65-dc8e-54c7-8f70-a6d486101f0f",
        "runId": "67520f27-af92-4a0e-8003-77f79be5d6db",
        "messages": [{"id": "1", "role": "user", "content": _TEXT}],
        "tools": [],
        "context": [],
        "state": {},
        "forwardedProps": {"timezone": "Europe/Paris"},
    },
    "AI SDK": {
        "id": "ae3eab65-dc8e-54c7-8f70-a6d486101f0f",
        "messages": [{"id": "Vh1mC0ZrP2cYq8Ld", "role": "user", "parts": [{"type": "text", "text": _TEXT}]}],
        "trigger": "submit-message",
        "timezone": "Europe/Paris",
    },
}
CHAT_BODIES: Final = (ChatRequest, AgUiRequest, AiSdkRequest)
"""The bodies of the chat route, one for each protocol."""

_CHAT_BODY: Final[dict[str, Any]] = {
    "schema": {"anyOf": [refer_to(model.__name__) for model in CHAT_BODIES]},
    "examples": {name: {"value": example} for name, example in _EXAMPLES.items()},
}

CHAT_REQUEST: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "AG-UI's has threadId and runId, the AI SDK's has id and messages. Another body is taskchat's.",
        "content": {"application/json": _CHAT_BODY},
    },
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "Makes retries safe: the same key gives the same answer. AG-UI's runId and the id of the AI "
            "SDK's last user message do it in this header's place.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
            "example": "0d1f6e3c",
        }
    ],
}
