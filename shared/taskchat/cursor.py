"""Write the place where a page ended as opaque text, and read it back."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any, Final

MAX_CURSOR: Final = 1_000
"""Characters of a cursor at most."""


class BadCursor(ValueError):
    """Raised for a text that `write` did not return."""

    def __init__(self) -> None:
        super().__init__("not a next_cursor of this list")


def write(*place: str | int | None) -> str:
    """Return a cursor for the values by which the page's last row is found again."""
    return urlsafe_b64encode(json.dumps(place, separators=(",", ":")).encode()).decode().rstrip("=")


def read(cursor: str, *parsers: Callable[[Any], Any]) -> list[Any]:
    """Return the values in a cursor, each as its parser returns it. Raises BadCursor.

    A parser raises ValueError or TypeError for a value that it does not take. None stays None.
    """
    try:
        place = json.loads(urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
        if len(cursor) > MAX_CURSOR or write(*place) != cursor:
            raise BadCursor
        return [None if value is None else parse(value) for parse, value in zip(parsers, place, strict=True)]
    except (ValueError, TypeError, RecursionError):
        raise BadCursor from None
