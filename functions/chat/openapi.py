"""Describe what FastAPI cannot read from the routes: the token, the body, and every response.

`make openapi` writes the description to docs/openapi.json. No route serves it.
"""

from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from chat.schemas import ChatRequest, FieldProblem, Problem, Renaming, TurnProblem
from taskchat.http.problems import MEDIA_TYPE


class DescribedApi(FastAPI):
    """An app whose description includes the schemas of request and problems."""

    def openapi(self) -> dict[str, Any]:
        models = (ChatRequest, Renaming, Problem, FieldProblem, TurnProblem)
        _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_SCHEMA_REFERENCE)
        document = super().openapi()
        document["components"]["schemas"] |= schemas["$defs"]
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


_SECONDS: Final = {"type": "integer", "minimum": 1}
_WAIT: Final = _header("Seconds to wait before the next try.", _SECONDS)
_MAY_WAIT: Final = _header("Seconds to wait before the next try, if the model said so.", _SECONDS, always=False)
_CHALLENGE: Final = _header("The scheme of the token.", {"const": "Bearer"})
_REPLAYED: Final = _header("Set if the turn was done before.", {"const": "true"}, always=False)

CHAT_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "The reply and the tool calls.", "headers": {"Idempotent-Replayed": _REPLAYED}},
    400: _problem("The body is not JSON in UTF-8."),
    401: _problem("There is no token, or an invalid one.", WWW_Authenticate=_CHALLENGE),
    403: _problem("The path and the token name different users."),
    404: _problem("The path is unknown, or the user has no such conversation."),
    409: _problem("Another turn holds the conversation, or took it during this turn.", TurnProblem, Retry_After=_WAIT),
    413: _problem("The body is larger than 32 KiB. Escapes can make fewer than 4,000 characters so large."),
    415: _problem("The body is not declared as application/json."),
    422: _problem("A field is missing, unknown or wrong, or the key was used for another request.", FieldProblem),
    429: _problem("The user has reached a limit.", TurnProblem, Retry_After=_WAIT),
    500: _problem("The server failed unexpectedly.", TurnProblem),
    502: _problem("The model failed.", TurnProblem, Retry_After=_MAY_WAIT),
    503: _problem("Database or key set cannot be reached, or the server stops.", TurnProblem, Retry_After=_WAIT),
    504: _problem("The time ended before the turn.", TurnProblem),
}

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

RESUME_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    **DATA_RESPONSES,
    200: {
        "description": "The events of the turn, from the first one, as the AI SDK's UI message stream.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    },
    204: {"description": "No turn runs in the conversation."},
}

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


CHAT_REQUEST: Final[dict[str, Any]] = {
    **body_of(ChatRequest),
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "Makes retries safe: the same key gives the same answer.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
        }
    ],
}
