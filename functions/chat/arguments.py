"""Read the arguments of a tool call, which a model has written."""

import json
from typing import Any, Final

MAX_ARGUMENTS: Final = 32 * 1024
"""Bytes of a call's arguments. The longest texts of a tool take less, however their letters are escaped, and the
arguments of all calls of a turn are far below what Lambda can return."""

MAX_DEPTH: Final = 64
"""Levels of a call's arguments. No tool needs three, and JSON that is nested too deeply cannot be encoded."""

NO_ARGUMENTS: Final = "null"
"""JSON text that replaces arguments that cannot be read. It is no object, so the call fails."""


def parse_arguments(text: str) -> dict[str, Any] | None:
    """Return the arguments of a call, or None for no JSON object, or one that is too long or too deep."""
    if len(text.encode(errors="surrogatepass")) > MAX_ARGUMENTS:
        return None
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return None
    return arguments if isinstance(arguments, dict) and is_shallow(arguments, MAX_DEPTH) else None


def readable_arguments(text: str) -> str:
    """Return the text, or NO_ARGUMENTS for one that cannot be parsed: the SDK parses it too, and its run would end."""
    return NO_ARGUMENTS if parse_arguments(text) is None else text


def is_shallow(value: Any, depth: int) -> bool:
    """Tell if a JSON value has at most so many levels."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > 0 and all(is_shallow(item, depth - 1) for item in inner)
