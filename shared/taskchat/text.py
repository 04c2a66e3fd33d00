"""Check and clean the texts of people and models: what they may hold, and what Postgres can store."""

import json
import math
import re
from itertools import groupby
from typing import Any, Final
from unicodedata import category, combining, normalize

from pydantic import BeforeValidator
from pydantic_core import PydanticKnownError

from taskchat.invisible import remove_invisible

LONGEST_COMPOSED: Final = 4
"""Characters that become one at most when Unicode composes them. A text that is so many times longer than a limit stays
above the limit, so it is refused before it is composed."""

MAX_MARKS: Final = 30
"""Combining marks in a row: Unicode's own bound for text in a stream (UAX #15), far above the need of any script.
Composing sorts them, in time that grows with the square of their number."""

_ALLOWED_CONTROLS: Final = "\n\t"
_BLANK: Final = "\u2800"
"""The empty cell of Braille: a sign that shows nothing."""
_UNSEEN: Final = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})

_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")

_write_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def plain_text(most: int) -> BeforeValidator:
    """Return an annotation for a `str` of at most `most` characters: composed (NFC), without invisible characters.

    It refuses control characters other than line breaks and tabs.
    """

    def check(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if len(value) > LONGEST_COMPOSED * most:
            raise PydanticKnownError("string_too_long", {"max_length": most})
        return _clean(value)

    return BeforeValidator(check)


def _clean(value: str) -> str:
    """Return the text composed, without invisible characters. Raises ValueError for a text that is not allowed."""
    if {category(c) for c in set(value) - set(_ALLOWED_CONTROLS)} & {"Cc", "Cs"}:
        raise ValueError("text must not hold control characters")
    kept = remove_invisible(value)
    if value.strip() and not any(map(_is_seen, kept)):
        raise ValueError("text must hold something that can be seen")
    while kept != value:  # composing brings letters together, so look for invisible characters again
        value = _compose(kept)
        kept = remove_invisible(value)
    return _compose(value)


def _compose(value: str) -> str:
    """Return the composed form (NFC). Raises ValueError for marks that would take too long to sort."""
    if any(is_mark and len(list(run)) > MAX_MARKS for is_mark, run in groupby(map(combining, value), bool)):
        raise ValueError("text must not pile up marks on a letter")
    return normalize("NFC", value)


def _is_seen(character: str) -> bool:
    return category(character) not in _UNSEEN and character != _BLANK


def as_json(value: Any) -> str:
    """Return short JSON for a model, without invisible characters."""
    return remove_invisible(_write_json(value))


def as_data(value: Any) -> str:
    """Return short JSON for a place between two tags. It writes `<` in another way, so it cannot close the tag."""
    return as_json(value).replace("<", "\\u003c")


def is_storable(value: Any) -> bool:
    """Return whether Postgres can store the JSON value as it is."""
    return bool(make_storable(value) == value)


def make_storable(value: Any) -> Any:
    """Return the JSON value as Postgres can store it: U+FFFD for NUL and lone surrogates, null for NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {make_storable(key): make_storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [make_storable(item) for item in value]
    return value
