"""What the OpenAPI description says that the code of the routes does not: who may call, and every answer.

It is kept in docs/openapi.json for whoever writes a client, and served to nobody.
"""

from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from chat.schemas import ChatRequest, FieldProblem, Problem, TurnProblem
from taskchat.http.auth import USER_ID, read_bearer_token
from taskchat.http.problems import MEDIA_TYPE

Responses = dict[int | str, dict[str, Any]]


class BearerToken(SecurityBase):
    """The token of a request, where the description says it is."""

    def __init__(self) -> None:
        self.model = HTTPBearer(bearerFormat="JWT", description="A token of the Better Auth server.")
        self.scheme_name = "bearer"

    async def __call__(self, request: Request) -> str:
        """The token, not yet judged. Raises Unauthenticated."""
        return read_bearer_token(request.headers.getlist("authorization"))


class DescribedApi(FastAPI):
    """An app whose description has the schemas that the one below refers to."""

    def openapi(self) -> dict[str, Any]:
        """The description, made at the first call."""
        models = (ChatRequest, Problem, FieldProblem, TurnProblem)
        _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_PLACE)
        document = super().openapi()
        document["components"]["schemas"] |= schemas["$defs"]
        return document


_PLACE: Final = "#/components/schemas/{model}"


def _reference(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": _PLACE.format(model=model.__name__)}


def _header(description: str, schema: dict[str, Any], *, always: bool) -> dict[str, Any]:
    return {"description": description, "required": always, "schema": schema}


def _problem(description: str, model: type[Problem] = Problem, **headers: dict[str, Any]) -> dict[str, Any]:
    """The answer with a problem; of the headers' names, `_` stands for `-`."""
    named = {name.replace("_", "-"): header for name, header in headers.items()}
    return {"description": description, "content": {MEDIA_TYPE: {"schema": _reference(model)}}, "headers": named}


_SECONDS: Final = {"type": "integer", "minimum": 1}
_COME_BACK: Final = _header("Seconds after which to try again.", _SECONDS, always=True)
_MAY_COME_BACK: Final = _header("Seconds after which to try again, if the model said when.", _SECONDS, always=False)
_CHALLENGE: Final = _header("How to do better.", {"const": "Bearer"}, always=True)
_REPLAYED: Final = _header("Set when the turn had been done before.", {"const": "true"}, always=False)

CHAT_RESPONSES: Final[Responses] = {
    200: {"description": "What was done.", "headers": {"Idempotent-Replayed": _REPLAYED}},
    400: _problem("The body is no JSON text in UTF-8."),
    401: _problem("There is no token, or one that proves nothing.", WWW_Authenticate=_CHALLENGE),
    403: _problem("The path names somebody other than the token does."),
    404: _problem("There is no such path, or no such conversation of this person's."),
    409: _problem("A turn is running in this conversation.", Retry_After=_COME_BACK),
    413: _problem("The body is larger than 32 KiB, which escapes can make of fewer than 4,000 characters."),
    415: _problem("The body is not declared as application/json."),
    422: _problem("A field is missing, unknown or wrong, or the key was used for another request.", FieldProblem),
    429: _problem("This person has asked for too much.", TurnProblem, Retry_After=_COME_BACK),
    502: _problem("The model failed.", TurnProblem, Retry_After=_MAY_COME_BACK),
    503: _problem("Database or key set cannot be reached, or the server stops.", TurnProblem, Retry_After=_COME_BACK),
    504: _problem("The time was over before the turn was.", TurnProblem),
}

USER_ID_SCHEMA: Final = {"pattern": f"^{USER_ID.pattern}$"}
"""For a reader. Nothing is judged by it: who is calling comes first, and an odd path is one that is not there."""

CHAT_REQUEST: Final[dict[str, Any]] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": _reference(ChatRequest)}}},
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "Makes retries safe: the same key gives the same answer.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
        }
    ],
}
