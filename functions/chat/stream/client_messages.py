"""Read the last user message of a client's list. The rest of the list is untrusted: history is the database's."""

from typing import Annotated, Any, Final

from pydantic import BaseModel, Field

_INSTRUCTIONS: Final = ("system", "developer")


class ClientMessage(BaseModel):
    """A message of a client's list. Of all but the last user message, only the role is read."""

    role: Annotated[str, Field(json_schema_extra={"not": {"enum": [*_INSTRUCTIONS]}})]


def last_user_message(messages: Any) -> Any:
    """Return the last message of the role `user`. Raises ValueError for a list without one, or with instructions."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("must be a list of messages")
    roles = [message.get("role") for message in messages]
    if not all(isinstance(role, str) for role in roles):
        raise ValueError("every message must have a role")
    if any(role in _INSTRUCTIONS for role in roles):
        raise ValueError("must hold no system or developer message: the instructions are the server's")
    if "user" not in roles:
        raise ValueError("must hold a message of the user")
    return messages[-1 - roles[::-1].index("user")]


def join_texts(parts: Any) -> Any:
    """Return the text of a message's parts. Raises ValueError for a part that is no text."""
    if not isinstance(parts, list) or not all(map(_is_text, parts)):
        raise ValueError("must be text: attachments and data are not supported")
    return "\n".join(part["text"] for part in parts)


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
