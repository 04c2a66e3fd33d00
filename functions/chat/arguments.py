"""Read the arguments of a tool call, which a model has written."""

import json
from collections.abc import Iterable
from typing import Any, Final

MAX_ARGUMENTS: Final = 32 * 1024
"""Bytes of a call's arguments. The longest texts of a tool take less, however their letters are escaped, and the
arguments of all calls of a turn are far below what Lambda can return."""

MAX_DEPTH: Final = 64
"""Levels of a call's arguments. No tool needs three, and JSON that is nested too deeply cannot be encoded."""


def parse_arguments(text: str) -> dict[str, Any] | None:
    """Return the arguments of a call, or None for no JSON object, or one that is too long or too deep."""
    if len(text.encode(errors="surrogatepass")) > MAX_ARGUMENTS:
        return None
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return None
    return arguments if isinstance(arguments, dict) and _is_shallow(arguments, MAX_DEPTH) else None


def inner_values(value: Any) -> Iterable[Any]:
    """Return the values inside a JSON object or list. No other value has any."""
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _is_shallow(value: Any, depth: int) -> bool:
    return depth > 0 and all(_is_shallow(item, depth - 1) for item in inner_values(value))
