"""Write docs/problems.md from the classes of errors and the API's description."""

import re
from typing import Final

from chat.app import app
from chat.openapi import problem_name
from dev.reference.markdown import code, fill, table
from dev.reference.source import in_one_line
from taskchat import errors
from taskchat.errors import TaskchatError

COMMON: Final = ("type", "title", "status", "detail")
"""The members of every problem."""
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
    schema = app.openapi()["components"]["schemas"].get(problem_name(error), {"properties": {}})
    return [name for name in schema["properties"] if name not in COMMON]
