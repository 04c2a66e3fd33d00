"""Set the effort of models that reason, and remove reasoning from requests to a provider that cannot read it."""

import re
from typing import Final

from openai.types.shared import Reasoning

from chat.answers import Json
from taskchat.settings import Settings

_REASONING_MODELS: Final = re.compile(r"(.*/)?(o\d|gpt-[5-9])(?!.*chat)")
"""Names of models that reason. Others of this vendor refuse each parameter of it."""

_EFFORT_FIELDS: Final = frozenset({"reasoning", "reasoning_effort"})
"""Fields of a request that hold the effort, of both APIs."""


def reasons(model: str) -> bool:
    """Tell if a model reasons, by its name."""
    return bool(_REASONING_MODELS.match(model))


def effort(settings: Settings) -> Reasoning | None:
    """Return REASONING_EFFORT for the requests, or None where it is empty or the model would refuse it.

    An unknown name may be that of another vendor's model that reasons. Such a model gets an effort that is set, and not
    the default.
    """
    is_wanted = settings.openai_base_url is not None and "reasoning_effort" in settings.model_fields_set
    if not settings.reasoning_effort or not (reasons(settings.model) or is_wanted):
        return None
    return Reasoning(effort=settings.reasoning_effort)


def for_fallback(body: Json, model: str) -> Json:
    """Return the request for another model, without the reasoning of the first one."""
    plain = _without_reasoning(body) if isinstance(body.get("input"), list) else body
    refused = frozenset() if reasons(model) else _EFFORT_FIELDS
    return {name: value for name, value in plain.items() if name not in refused} | {"model": model}


def self_contained(body: Json) -> Json:
    """Return the request without reasoning that it only names: the provider was asked not to keep any."""
    is_named = any(item.get("type") == "reasoning" and not item.get("encrypted_content") for item in body["input"])
    return _without_reasoning(body) if is_named else body


def _without_reasoning(body: Json) -> Json:
    """Remove the reasoning, which only the model that made it can read, and the ids that tie calls to it."""
    items = [item for item in body["input"] if item.get("type") != "reasoning"]
    return body | {
        "input": [{name: value for name, value in item.items() if name != "id"} for item in items],
        "include": [part for part in body["include"] if not part.startswith("reasoning.")],
    }
