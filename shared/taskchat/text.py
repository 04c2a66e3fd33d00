"""What text may be: what a person or a model may send, and what Postgres can hold."""

import math
import unicodedata
from typing import Any, Final

from pydantic import BeforeValidator

_ALLOWED_CONTROLS: Final = "\n\t"


def _plain(value: Any) -> Any:
    """Text in its composed form. Raises ValueError when it holds control characters or lone surrogates."""
    if not isinstance(value, str):
        return value
    if any(unicodedata.category(c) in ("Cc", "Cs") and c not in _ALLOWED_CONTROLS for c in value):
        raise ValueError("text must not hold control characters")
    return unicodedata.normalize("NFC", value)


PLAIN_TEXT: Final = BeforeValidator(_plain)
"""Annotates a `str` that people read: composed (NFC), and without control characters but line breaks and tabs."""


def is_storable(value: Any) -> bool:
    """Whether Postgres can hold a JSON value: no NUL or lone surrogate in its texts and keys, no infinite number."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return "\x00" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return all(is_storable(key) and is_storable(item) for key, item in value.items())
    return not isinstance(value, list) or all(map(is_storable, value))


def storable(value: Any) -> Any:
    """The same JSON value with what Postgres cannot hold replaced: characters by U+FFFD, numbers by null."""
    if isinstance(value, float):
        return value if is_storable(value) else None
    if isinstance(value, str):
        return value if is_storable(value) else "".join(c if is_storable(c) else "\ufffd" for c in value)
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [storable(item) for item in value]
    return value
