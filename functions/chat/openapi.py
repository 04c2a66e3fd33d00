"""Describe what FastAPI cannot read from the routes: the token, the body, and every response.

`make openapi` writes the description to docs/openapi.json. No route serves it.
"""

from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from chat.schemas import ChatRequest, FieldProblem, Problem, Renaming, TurnProblem
from chat.stream.ag_ui import AgUiRequest
from chat.stream.ai_sdk import AiSdkEncoder, AiSdkRequest
from chat.stream.encoding import MEDIA_TYPE as EVENT_STREAM
from taskchat.http.problems import MEDIA_TYPE
from taskchat.http.telemetry import REQUEST_ID

CHAT_BODIES: Final = (ChatRequest, AgUiRequest, AiSdkRequest)
"""The bodies of the chat route, one for each protocol."""


class DescribedApi(FastAPI):
    """An app whose description includes the schemas of request and problems."""

    def openapi(self) -> dict[str, Any]:
        models = (*CHAT_BODIES, Renaming, Problem, FieldProblem, TurnProblem)
        _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_SCHEMA_REFERENCE)
        document = super().openapi()
        document["components"]["schemas"] |= schemas["$defs"]
        operations = (operation for path in document["paths"].values() for operation in path.values())
        for response in (each for operation in operations for each in operation["responses"].values()):
            response["headers"] = response.get("headers", {}) | {REQUEST_ID: _REQUEST_ID}
        return document


_SCHEMA_REFERENCE: Final = "#/components/schemas/{model}"


def _refer_to(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": _SCHEMA_REFERENCE.format(model=model.__name__)}


def _header(description: str, schema: dict[str, Any], *, always: bool = True) -> dict[str, Any]:
    return {"description": description, "required": always, "schema": schema}


def _problem(description: str, model: type[Problem] = Problem, **headers: dict[str, Any]) -> dict[str, Any]:
    """Describe a problem response. `_` in a header's name stands for `-`."""
    named = {name.replace("_", "-"): header for name, header in headers.items()}
    return {"description": description, "content": {MEDIA_TYPE: {"schema": _refer_to(model)}}, "headers": named}


_REQUEST_ID: Final = _header(
    "The request's id: log lines and records of tool calls have it.", {"type": "string"}, always=False
)
_SECONDS: Final = {"type": "integer", "minimum": 1}
_WAIT: Final = _header("Seconds to wait before the next try.", _SECONDS)
_MAY_WAIT: Final = _header("Seconds to wait before the next try, if the model said so.", _SECONDS, always=False)
_CHALLENGE: Final = _header("The scheme of the token.", {"const": "Bearer"})
_REPLAYED: Final = _header("Set if the turn was done before.", {"const": "true"}, always=False)

_UI_STREAM: Final = {
    name: _header("The version of the AI SDK's protocol, if the request is one of it.", {"const": value}, always=False)
    for name, value in AiSdkEncoder.headers.items()
}
_EVENTS: Final = {
    EVENT_STREAM: {
        "schema": {
            "type": "object",
            "description": "One of the server-sent events: docs/streaming.md lists them.",
            "required": ["data"],
            "properties": {
                "event": {"type": "string"},
                "id": {"type": "string"},
                "retry": {"type": "integer", "description": "Milliseconds to wait before the next try."},
                "data": {"type": "string", "description": "JSON, or [DONE] at the end of an AI SDK stream."},
            },
        }
    }
}

CHAT_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The reply and the tool calls: as one object, or as the events of the turn.",
        "headers": {"Idempotent-Replayed": _REPLAYED} | _UI_STREAM,
        "content": _EVENTS,
    },
    400: _problem("The body is not JSON in UTF-8."),
    401: _problem("There is no token, or an invalid one.", WWW_Authenticate=_CHALLENGE),
    403: _problem("The path and the token name different users."),
    404: _problem("The path is unknown, or the user has no such conversation."),
    409: _problem("Another turn holds the conversation, or took it during this turn.", TurnProblem, Retry_After=_WAIT),
    413: _problem(
        "The body is larger than 32 KiB, which escapes can make of fewer than 4,000 characters. A body of AG-UI or of "
        "the AI SDK may have 1 MiB."
    ),
    415: _problem("The body is not declared as application/json."),
    422: _problem("A field is missing, unknown or wrong, or the key was used for another request.", FieldProblem),
    429: _problem("The user has reached a limit.", TurnProblem, Retry_After=_WAIT),
    500: _problem("The server failed unexpectedly.", TurnProblem),
    502: _problem("The model failed.", TurnProblem, Retry_After=_MAY_WAIT),
    503: _problem("Database or key set cannot be reached, or the server stops.", TurnProblem, Retry_After=_WAIT),
    504: _problem("The time ended before the turn.", TurnProblem),
}

RESUME_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The events of the turn that runs in the conversation, from its first one.",
        "headers": _UI_STREAM,
        "content": _EVENTS,
    },
    204: {"description": "No turn runs in the conversation."},
    **{status: CHAT_RESPONSES[status] for status in (401, 403, 404, 422, 429, 500, 503, 504)},
}
"""The responses of the route on which a client of the AI SDK picks up a running turn."""

DATA_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    401: CHAT_RESPONSES[401],
    403: CHAT_RESPONSES[403],
    404: _problem("The path is unknown, or the user has nothing of this id."),
    422: _problem("A field or a parameter is missing, unknown or wrong.", FieldProblem),
    429: _problem("The user has reached the limit of requests for their data.", Retry_After=_WAIT),
    500: _problem("The server failed unexpectedly."),
    503: _problem("Database or key set cannot be reached.", Retry_After=_WAIT),
    504: _problem("The time ended before anything was done."),
}
"""The problems of every route on which a person reads and manages their own data."""

BODY_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {status: CHAT_RESPONSES[status] for status in (400, 413, 415)}
"""The problems of a route with a body."""

BUSY_RESPONSE: Final[dict[int | str, dict[str, Any]]] = {
    409: _problem("A turn is running in the conversation.", Retry_After=_WAIT)
}

_EXPORTED: Final[dict[str, Any]] = {
    "version": "taskchat.export/1",
    "user_id": "hruAvtq0oTgdta9IOx7dVU7RZiKQ0DLw",
    "tables": {
        "allowance": [
            {"door": "data", "full_at": "2026-11-21T21:18:52.25+00:00", "day": "2026-11-21", "model_tokens": 0}
        ],
        "conversation": [],
    },
    "next_cursor": None,
}
EXPORT_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The page. docs/export.schema.json describes the rows of each table.",
        "content": {"application/json": {"example": _EXPORTED}},
    }
}
ERASURE_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    204: {"description": "Nothing is stored of the person any more. A repeated request is answered alike."},
    428: _problem("The header Confirm is missing, or has another value."),
    503: _problem("Database or key set cannot be reached. The same request goes on.", Retry_After=_WAIT),
    504: _problem("The time ended before everything was erased. The same request goes on."),
}
ERASURE_REQUEST: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "Confirm",
            "in": "header",
            "required": True,
            "description": "Says that the erasure is meant.",
            "schema": {"const": "erase"},
            "example": "erase",
        }
    ]
}


def body_of(model: type[BaseModel], example: dict[str, Any] | None = None) -> dict[str, Any]:
    """Describe the body of a route that reads it itself."""
    shown = {"schema": _refer_to(model)} | ({"example": example} if example else {})
    return {"requestBody": {"required": True, "content": {"application/json": shown}}}


def answers_with(description: str, example: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """Describe a 200 by an example. Its schema is that of the route's model."""
    return {200: {"description": description, "content": {"application/json": {"example": example}}}}


_TEXT: Final = "Add buy milk"
_EXAMPLES: Final[dict[str, Any]] = {
    "taskchat": {"message": _TEXT, "conversation_id": None, "timezone": "Europe/Paris"},
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
_CHAT_BODY: Final[dict[str, Any]] = {
    "schema": {"anyOf": [_refer_to(model) for model in CHAT_BODIES]},
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
        }
    ],
}
