"""Name the log fields of model and tool calls as OpenTelemetry does.

The names are not stable yet: only this module has them. https://opentelemetry.io/docs/specs/semconv/gen-ai/
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

_OPENAI: Final = "api.openai.com"
_TOOL_ERROR: Final = "tool_error"
"""The convention's type of every error that a tool reports to the model."""


class LoggedModelCall(NamedTuple):
    """Hold the fields of a model call's log line that an operator's command shows."""

    model: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    error: str | None


def provider_of(base_url: str | None) -> str:
    """Return the provider's name: `openai`, or the host of the endpoint that the operator has set."""
    host = urlsplit(base_url or "").hostname or _OPENAI
    return "openai" if host == _OPENAI else host


def describe_tool_call(tool: str, call_id: str, conversation_id: str | None, outcome: str) -> dict[str, Any]:
    """Return the fields of a tool call's log line."""
    return {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": tool,
        "gen_ai.tool.call.id": call_id,
        **({"gen_ai.conversation.id": conversation_id} if conversation_id else {}),
        **({"error.type": _TOOL_ERROR} if outcome == "error" else {}),
    }


def describe_model_call(
    provider: str, model: str, input_tokens: int, cached_tokens: int, output_tokens: int, error: str | None
) -> dict[str, Any]:
    """Return the fields of the log line about one try of a model call."""
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": model,
        "gen_ai.usage.input_tokens": input_tokens,
        "gen_ai.usage.cache_read.input_tokens": cached_tokens,
        "gen_ai.usage.output_tokens": output_tokens,
        **({"error.type": error} if error else {}),
    }


def read_model_call(line: Mapping[str, Any]) -> LoggedModelCall:
    """Return the fields of a log line that `describe_model_call` made."""
    return LoggedModelCall(
        line.get("gen_ai.request.model", ""),
        line.get("gen_ai.usage.input_tokens", 0),
        line.get("gen_ai.usage.cache_read.input_tokens", 0),
        line.get("gen_ai.usage.output_tokens", 0),
        line.get("error.type"),
    )
