"""Check an audit line against docs/audit.schema.json. The search of all logs does it for every line of the run."""

import json
from functools import cache
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft202012Validator, FormatChecker

PATH: Final = Path(__file__).parent.parent / "docs" / "audit.schema.json"
_MARK: Final = '"taskchat.audit/'


@cache
def schema() -> dict[str, Any]:
    """Return the schema of the docs."""
    document: dict[str, Any] = json.loads(PATH.read_text())
    return document


@cache
def _validator() -> Draft202012Validator:
    """Return a validator that allows no field besides those of the docs. Readers must allow later ones."""
    return Draft202012Validator(schema() | {"additionalProperties": False}, format_checker=FormatChecker())


def fault_of(line: str) -> str | None:
    """Return the fault of an audit line, and None for a valid one and for every other line."""
    if _MARK not in line or not line.startswith("{"):
        return None
    error = next(_validator().iter_errors(json.loads(line)), None)
    return None if error is None else f"an audit line that breaks its schema ({error.message})"
