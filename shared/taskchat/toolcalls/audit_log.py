"""Write the audit line: one log line for each tool call, without any text of a person or a model."""

from collections.abc import Mapping
from typing import Any, Final

from aws_lambda_powertools import Logger

from taskchat import genai, measures

SCHEMA: Final = "taskchat.audit/1"
"""Version of the audit line. A field may be added to a version, but never changed or removed.

`outcome` is `ok` or `error`, as in the call's record, or `unknown`: the database did not answer the commit, and could
not be asked again in time. The call may have taken effect and have a record. If the process learns the outcome later,
it writes a second line with the same `call_id`.
"""

logger = Logger()


def describe(tool: str, arguments: Mapping[str, Any], properties: dict[str, Any] | None) -> dict[str, Any]:
    """Return what may be logged of a call: no name that the caller made up, and no argument that can hold a text."""
    if properties is None:
        return {"tool": "unknown", "tool_arguments": {}}
    impersonal = [name for name in properties if _is_impersonal(arguments.get(name), properties[name])]
    return {"tool": tool, "tool_arguments": {name: arguments[name] for name in impersonal}}


def _is_impersonal(value: Any, schema: dict[str, Any]) -> bool:
    """Return whether the value is a number, a boolean, or a choice that the schema lists."""
    kinds = {kind.get("type") for kind in schema.get("anyOf", [schema])}
    return value in schema.get("enum", ()) or (isinstance(value, int | float) and "string" not in kinds)


def report(record: Mapping[str, Any], described: dict[str, Any]) -> None:
    """Write the audit line of a call from its record and from what `describe` returned, and count it."""
    tool, outcome = described["tool"], record["outcome"]
    conversation_id = record["conversation_id"] and str(record["conversation_id"])
    measures.current().tool_calls[tool, outcome] += 1
    logger.info(
        "tool call",
        extra={
            "schema": SCHEMA,
            "request_id": record["request_id"],
            "turn_id": str(record["turn_id"]),
            "conversation_id": conversation_id,
            "actor": record["user_id"],
            "door": record["door"],
            "call_id": record["call_id"],
            **described,
            "outcome": outcome,
            "duration_ms": record["duration_ms"],
            **genai.describe_tool_call(tool, record["call_id"], conversation_id, outcome),
        },
    )
