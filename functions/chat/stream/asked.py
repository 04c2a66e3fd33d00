"""Hold a checked request for a turn, whichever protocol it came in, and the encoder of its answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final
from uuid import UUID, uuid5

from pydantic import StringConstraints

from chat.stream.encoding import Encoder
from taskchat.conversations.turns import Request

Key = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern="^[!-~]+$")]
"""The type of an id that a client makes. It allows what the header Idempotency-Key allows: visible ASCII."""

_THREADS: Final = UUID("5b0a3c86-3f4e-4d0c-9c37-1e4e3b7b6a19")  # namespace of conversation ids; random, made once


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked request. `key` is its idempotency key."""

    key: str | None
    request: Request
    encoder: Callable[[], Encoder] | None
    """Makes the encoder of one response. None for the JSON answer."""


def conversation_id_of(user_id: str, thread: str) -> UUID:
    """Return the conversation of a client's thread: a UUID is its id, any other text has an id of its own per user."""
    try:
        found = UUID(thread)
    except ValueError:
        return uuid5(_THREADS, f"{user_id}\n{thread}")
    # Python reads a UUID in braces or without hyphens too. Such a text is another thread than the UUID.
    return found if str(found) == thread.lower() else uuid5(_THREADS, f"{user_id}\n{thread}")
