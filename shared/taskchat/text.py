"""What text may be: what a person or a model may send, and what Postgres can hold."""

import json
import math
from itertools import groupby
from typing import Any, Final
from unicodedata import category, combining, normalize

from pydantic import BeforeValidator
from pydantic_core import PydanticKnownError

from taskchat.invisible import remove_invisible

LONGEST_COMPOSED: Final = 4
"""Characters that composing makes one of at most, by the tables of Unicode. What is longer than so many times a limit
stays above it, and need not be composed to see that."""

MAX_MARKS: Final = 30
"""Combining marks in a row: Unicode's own bound for text that can be composed in a stream (UAX #15), far above what any
script needs. Composing sorts them, which takes time by the square of their number."""

_ALLOWED_CONTROLS: Final = "\n\t"
_BLANK: Final = "\u2800"
"""An empty cell of Braille, which is a sign and shows nothing."""
_UNSEEN: Final = frozenset({"Cf", "Zs", "Zl", "Zp"})

_write_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def plain_text(most: int) -> BeforeValidator:
    """Annotates a `str` of at most `most` characters that people read: composed (NFC), without control characters but
    line breaks and tabs, and without what nobody sees."""

    def check(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if len(value) > LONGEST_COMPOSED * most:
            raise PydanticKnownError("string_too_long", {"max_length": most})
        return _plain(value)

    return BeforeValidator(check)


def _plain(value: str) -> str:
    """The text as people read it, composed. Raises ValueError for what is no text, or shows nothing."""
    if {category(c) for c in set(value) - set(_ALLOWED_CONTROLS)} & {"Cc", "Cs"}:
        raise ValueError("text must not hold control characters")
    if value.strip() and not any(map(_is_seen, remove_invisible(value))):
        raise ValueError("text must hold something that can be seen")
    return _composed(value)


def _composed(value: str) -> str:
    """Leave out what is invisible and compose the rest. Composing brings letters together, so look again after it."""
    kept = remove_invisible(value)
    while kept != value:
        value = _compose(kept)
        kept = remove_invisible(value)
    return _compose(value)


def _compose(value: str) -> str:
    """Return the composed form (NFC). Raises ValueError for marks that would take too long to sort."""
    if any(is_mark and len(list(run)) > MAX_MARKS for is_mark, run in groupby(value, _is_mark)):
        raise ValueError("text must not pile up marks on a letter")
    return normalize("NFC", value)


def _is_mark(character: str) -> bool:
    return combining(character) > 0


def _is_seen(character: str) -> bool:
    is_space = character in _ALLOWED_CONTROLS or category(character) in _UNSEEN
    return not is_space and character not in _BLANK


def as_json(value: Any) -> str:
    """Return JSON as a model reads it: in as few characters as it takes, and none of them invisible."""
    return remove_invisible(_write_json(value))


def as_data(value: Any) -> str:
    """The same for a place between two tags, which it can't close from inside: every `<` has another spelling."""
    return as_json(value).replace("<", "\\u003c")


def is_storable(value: Any) -> bool:
    """Whether Postgres can hold a JSON value: no NUL or lone surrogate in its texts and keys, no infinite number."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return "\x00" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return all(is_storable(key) and is_storable(item) for key, item in value.items())
    return not isinstance(value, list) or all(map(is_storable, value))


def make_storable(value: Any) -> Any:
    """The same JSON value with what Postgres cannot hold replaced: characters by U+FFFD, numbers by null."""
    if isinstance(value, float):
        return value if is_storable(value) else None
    if isinstance(value, str):
        return value if is_storable(value) else "".join(c if is_storable(c) else "\ufffd" for c in value)
    if isinstance(value, dict):
        return {make_storable(key): make_storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [make_storable(item) for item in value]
    return value
