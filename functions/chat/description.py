"""Complete the OpenAPI description that FastAPI makes: its problems, its events, and what a generated client needs.

Imported when the description is asked for: no request needs it.
"""

import inspect
from collections.abc import Iterator
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from chat.openapi import CHAT_BODIES, SCHEMA_REFERENCE, problem_name, refer_to
from chat.schemas import Fault, Renaming
from chat.stream.events import Failed, Finished, ToolFinished
from chat.stream.sse import NAMES
from taskchat import errors
from taskchat.errors import TaskchatError
from taskchat.http.problems import type_of
from taskchat.http.telemetry import REQUEST_ID

Schema = dict[str, Any]

_INFO: Final[Schema] = {
    "summary": "Chat with an agent that works for one person, and read or manage what that person owns.",
    "description": (
        "One route, `sendMessage`, expresses an intention: the agent does it with its tools. Every other route reads "
        "or manages what the person owns, without the model.\n\n"
        "Each path under `/api/{user_id}` needs a token whose subject is that user. An error is "
        "`application/problem+json` (RFC 9457): tell errors apart by `type`, which never changes. A client must accept "
        "members and problem types that this version does not name."
    ),
    "license": {"name": "MIT", "identifier": "MIT"},
}
_SERVERS: Final[list[Schema]] = [
    {"url": "/", "description": "The server that gives this description, such as that of `make dev`."},
    {
        "url": "https://{host}",
        "description": "A deployment.",
        "variables": {
            "host": {
                "default": "api-id.execute-api.eu-west-1.amazonaws.com",
                "description": "The host of the stack's output `ApiUrl`, or of `StreamUrl`, which streams.",
            }
        },
    },
]
_TAGS: Final = {
    "chat": "Say what is to be done, and follow how it is done.",
    "conversations": "List, read, rename and delete conversations.",
    "personal data": "Take everything that is stored of a person along, or erase it.",
    "health": "Ask if the process answers.",
}
_DOMAIN_TAG: Final = "Read what the agent's tools keep for the person."

_BODIES: Final = (*CHAT_BODIES, Renaming)

NEVER_ANSWERED: Final = (
    errors.Malformed,  # an event that is no HTTP request: a client cannot send one
    errors.MethodNotAllowed,  # no operation describes another method
    errors.OriginRefused,
    errors.NotAcceptable,
    errors.Misdirected,  # these three are the MCP endpoint's
    errors.ToolFailure,  # the error of a call, not of a request
)
"""The errors that no operation of this API answers with."""

_REQUEST_ID: Final = {
    "description": "The request's id: log lines and records of tool calls have it.",
    "schema": {"type": "string"},
}


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Return the description with all that FastAPI does not know."""
    schemas = document["components"]["schemas"] | _body_schemas() | _problem_schemas() | _event_schemas()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    for operation in operations:
        _complete_operation(operation)
    components = document["components"] | {
        "schemas": {name: _clean(schema) for name, schema in sorted(schemas.items())},
        "headers": {"RequestId": _REQUEST_ID},
    }
    return {
        "openapi": document["openapi"],
        "info": document["info"] | _INFO,
        "servers": _SERVERS,
        "tags": _tags(operations),
        "paths": document["paths"],
        "components": components,
    }


def _tags(operations: list[Schema]) -> list[Schema]:
    """Return the tags that operations have, the domain's after the chat's."""
    used = {tag for operation in operations for tag in operation["tags"]}
    chat, *others = _TAGS
    names = [chat, *sorted(used - _TAGS.keys()), *others]
    return [{"name": name, "description": _TAGS.get(name, _DOMAIN_TAG)} for name in names]


def _complete_operation(operation: Schema) -> None:
    operation.setdefault("security", [])
    operation.setdefault("tags", ["data"])
    for parameter in operation.get("parameters", []):
        parameter["schema"] = _without_null(_clean(parameter["schema"]))
        parameter["schema"].pop("description", None)  # the parameter has it too
    for response in operation["responses"].values():
        headers = {REQUEST_ID: {"$ref": "#/components/headers/RequestId"}}
        response["headers"] = response.get("headers", {}) | headers


def _without_null(schema: Schema) -> Schema:
    """Return the schema of a parameter that may be left out: a query cannot say null."""
    choices = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
    rest = {name: value for name, value in schema.items() if name != "anyOf"}
    return rest | choices[0] if len(choices) == 1 else schema


def _body_schemas() -> dict[str, Schema]:
    _, found = models_json_schema([(model, "validation") for model in _BODIES], ref_template=SCHEMA_REFERENCE)
    return {name: _open(schema) for name, schema in found["$defs"].items()}


def _open(schema: Schema) -> Schema:
    """Say that a protocol's other members are taken, and ignored, where the model does not refuse them."""
    return {"additionalProperties": True} | schema


def _problem_schemas() -> dict[str, Schema]:
    """Return a schema for each problem type of the API, and one for any of them."""
    found = {problem_name(error): _problem_schema(error) for error in answered_errors()}
    any_problem = {"description": "Any problem of this API.", "anyOf": [refer_to(name) for name in sorted(found)]}
    return found | {"Problem": any_problem, "Fault": Fault.model_json_schema()}


def answered_errors() -> Iterator[type[TaskchatError]]:
    """Yield the error of each problem type of the API."""
    known: list[type[TaskchatError]] = [TaskchatError, *_descendants(TaskchatError)]
    slugs: set[str] = set()
    for error in known:  # an error without a slug of its own is a case of its base
        if error.__module__ == errors.__name__ and error not in NEVER_ANSWERED and error.slug not in slugs:
            slugs.add(error.slug)
            yield error


def _descendants(kind: type[TaskchatError]) -> Iterator[type[TaskchatError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _descendants(child)


_TEXT: Final = {"type": "string"}
_OF_A_TURN: Final[Schema] = {
    "conversation_id": {"type": "string", "format": "uuid", "description": "The turn's conversation."},
    "turn_id": {"type": "string", "format": "uuid"},
    "tool_calls": {
        "type": "array",
        "items": refer_to("ToolCallView"),
        "description": "The calls that took effect. Left out if the database could not tell which did. The same "
        "request with its Idempotency-Key continues after them.",
    },
}
_TURN_ERRORS: Final = (
    errors.TurnInProgress,
    errors.TooManyRequests,  # a turn may use up the day
    errors.TaskchatError,
    errors.ModelFailed,
    errors.Unavailable,
    errors.DatabaseUnavailable,
    errors.OutOfTime,
)
"""The errors that interrupt a turn. They hold its state, if it had begun."""


def _problem_schema(error: type[TaskchatError]) -> Schema:
    members: Schema = {
        "type": {"type": "string", "const": type_of(error)},
        "title": _TEXT | {"description": "A sentence for a person.", "examples": [error.title]},
        "status": {"type": "integer", "const": error.status},
        "detail": _TEXT | {"description": "A sentence more, if there is one."},
    }
    required = ["type", "title", "status"]
    if error is errors.InvalidInput:
        members["fields"] = {"type": "array", "items": refer_to("Fault"), "description": "The fields at fault."}
        required.append("fields")
    if error in _TURN_ERRORS:
        members |= _OF_A_TURN
    if error is errors.ModelFailed:  # a turn has begun
        required += ["conversation_id", "turn_id"]
    return {"type": "object", "description": error.title, "required": required, "properties": members}


_WRAPPED: Final[dict[type[Any], str]] = {ToolFinished: "ToolCallView", Finished: "ChatResponse", Failed: "Problem"}
"""The events whose only field is their data, and its schema."""


def _event_schemas() -> dict[str, Schema]:
    """Return the schema of each server-sent event of a turn, and one for any of them."""
    found = {f"{kind.__name__}Event": _event_schema(kind, name) for kind, name in NAMES.items()}
    any_event = {
        "description": "An event of a turn, with its `data` parsed. docs/streaming.md says what each one means.",
        "anyOf": [refer_to(name) for name in found],
    }
    return found | {"TurnEvent": any_event}


def _event_schema(kind: type[Any], name: str) -> Schema:
    members: Schema = {"event": {"type": "string", "const": name}, "id": {"type": "string"}, "data": _data_of(kind)}
    if kind is Failed:
        members["retry"] = {"type": "integer", "description": "Milliseconds to wait before the next try."}
    required = ["event", "id", "data"]
    return {"type": "object", "description": inspect.getdoc(kind), "required": required, "properties": members}


def _data_of(kind: type[Any]) -> Schema:
    """Return the schema of an event's data: the event's fields, or its only field where that is the data."""
    if kind in _WRAPPED:
        return refer_to(_WRAPPED[kind])
    schema = TypeAdapter(kind).json_schema(mode="serialization")
    return {name: value for name, value in schema.items() if name in ("type", "properties", "required")}


_VALUES: Final = ("example", "examples", "const", "enum")
"""The members of a schema that hold values, and no schemas."""


def _clean(schema: Any) -> Any:
    """Return the schema without the titles that pydantic makes of names, and without defaults of null.

    A generator takes a member with a default for one that is always there.
    """
    if isinstance(schema, list):
        return [_clean(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {name: _clean_member(name, value) for name, value in schema.items() if not _is_noise(name, value)}


def _clean_member(name: str, value: Any) -> Any:
    if name in _VALUES:
        return value
    if name == "properties":
        return {member: _clean(each) for member, each in value.items()}
    return _clean(value)


def _is_noise(name: str, value: Any) -> bool:
    return (name == "title" and isinstance(value, str)) or (name == "default" and value is None)
