"""Decide how hard the model is to think before it answers, and which models are asked to."""

import re
from typing import Final

from openai.types.shared import Reasoning

from taskchat.settings import Settings

_REASONING_MODELS: Final = re.compile(r"(.*/)?(o\d|gpt-[5-9])(?!.*chat)")
"""Names of models that reason. Others of this vendor refuse every parameter of it."""

EFFORT_FIELDS: Final = frozenset({"reasoning", "reasoning_effort"})
"""Fields of a request that hold the effort, by either API's names."""


def reasons(model: str) -> bool:
    """Tell if a model reasons, by its name."""
    return bool(_REASONING_MODELS.match(model))


def effort(settings: Settings) -> Reasoning | None:
    """Return REASONING_EFFORT for the requests, or None where it is empty or the model would refuse it.

    A name that says nothing may be that of another vendor's model that reasons. Such a model gets an effort that is
    set, and not the default.
    """
    is_wanted = settings.openai_base_url is not None and "reasoning_effort" in settings.model_fields_set
    if not settings.reasoning_effort or not (reasons(settings.model) or is_wanted):
        return None
    return Reasoning(effort=settings.reasoning_effort)
