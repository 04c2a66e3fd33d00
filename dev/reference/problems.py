"""Write docs/problems.md from the classes of errors and the API's description."""

import re
from collections.abc import Iterator
from typing import Any, Final

from chat.app import app
from chat.schemas import Problem
from dev.reference.markdown import Schema, code, fill, table
from dev.reference.source import in_one_line
from taskchat import errors
from taskchat.errors import TaskchatError
from taskchat.http.problems import MEDIA_TYPE

_HEADS: Final = ("Type, after `urn:taskchat:problem:`", "Status", "Title", "When", "A retry", "More fields")
_OWN: Final = re.compile(r"Raised (?:when|for) (.*)")
_RETRY: Final = re.compile(r"A retry (.*?)\.(?: |$)")


class UndescribedError(Exception):
    """Raised for a problem whose class does not say when it is raised."""


def page() -> str:
    """Return the page. Raises UndescribedError."""
    rows = sorted((_row(error) for error in _problems()), key=lambda row: row[1])
    return fill("problems", table(_HEADS, rows))


def _problems() -> list[type[TaskchatError]]:
    """Return one class of each problem type that a client can get."""
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, TaskchatError)]
    by_slug: dict[str, type[TaskchatError]] = {}
    for error in classes:
        by_slug.setdefault(error.slug, error)
    del by_slug[errors.ToolFailure.slug]  # the model reads it, and no client
    return list(by_slug.values())


def _row(error: type[TaskchatError]) -> list[str]:
    text = in_one_line(error.__doc__ or "")
    when, retry = _OWN.search(text), _RETRY.search(text)
    if not when:
        raise UndescribedError(f"The docstring of {error.__name__} must say when it is raised.")
    cause = _RETRY.sub("", when[1]).strip()
    members = ", ".join(map(code, _members(error)))
    helps = retry[1].removeprefix("of the same request ") if retry else "gives the same problem"
    return [code(error.slug), str(error.status), error.title, cause[0].upper() + cause[1:], helps, members]


def _members(error: type[TaskchatError]) -> list[str]:
    """Return the members of the problem besides those of all problems, from the API's description."""
    document = app.openapi()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    responses = [operation["responses"].get(str(error.status), {}) for operation in operations]
    found = [
        response["content"][MEDIA_TYPE]["schema"] for response in responses if MEDIA_TYPE in response.get("content", {})
    ]
    schemas = [each for schema in found for each in _choices(schema, document["components"]["schemas"])]
    names = [name for schema in schemas if _fits(schema, error) for name in schema["properties"]]
    return [name for name in dict.fromkeys(names) if name not in Problem.model_fields]


def _choices(schema: Schema, schemas: Schema) -> Iterator[Schema]:
    """Return the object that the schema describes, or those of its alternatives."""
    if "$ref" in schema:
        yield from _choices(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    elif alternatives := schema.get("anyOf") or schema.get("oneOf"):
        for each in alternatives:
            yield from _choices(each, schemas)
    else:
        yield schema


def _fits(schema: Schema, error: type[TaskchatError]) -> bool:
    """Return whether the schema describes this problem: it names its type, or no type at all."""
    named: dict[str, Any] = schema["properties"]["type"]
    names = [named["const"]] if "const" in named else named.get("enum")
    return names is None or f"urn:taskchat:problem:{error.slug}" in names
