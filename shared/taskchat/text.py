"""What text may be: what a person or a model may send, and what Postgres can hold."""

import math
import unicodedata
from typing import Any, Final

from pydantic import BeforeValidator

_ALLOWED_CONTROLS: Final = "\n\t"
_REORDERING: Final = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])
"""Embeddings, overrides and isolates, left out: they can make a text read as another than it is."""


def _plain(value: Any) -> Any:
    """Text in its composed form. Raises ValueError when it holds control characters, or nothing that can be seen."""
    if not isinstance(value, str):
        return value
    value = value.translate(_REORDERING)
    kinds = {unicodedata.category(c) for c in value if c not in _ALLOWED_CONTROLS}
    if kinds & {"Cc", "Cs"}:
        raise ValueError("text must not hold control characters")
    if value.strip() and kinds <= {"Cf", "Zs", "Zl", "Zp"}:
        raise ValueError("text must hold something that can be seen")
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
