"""Call a tool for a user, as the agent does."""

from typing import Any
from uuid import uuid4

from taskchat.toolcalls.call import CallContext, calling


class Outcome:
    """Hold the end of a call: its structured content, or the sentence of its error."""

    def __init__(self, result: Any, call: CallContext) -> None:
        self.content = result.structured_content
        self.failure = result.content[0].text if result.is_error else None
        self.record = call.records[0]


async def acall(user_id: str, name: str, arguments: dict[str, Any], **context: Any) -> Outcome:
    """Call a tool for the user, and return how the call ended. `context` adds to the call's context."""
    from chat.app import process

    context.setdefault("conversation_id", uuid4())
    call = CallContext(user_id, "chat", turn_id=uuid4(), call_id=uuid4().hex, **context)
    with calling(call):
        return Outcome(await process.tools.call_tool(name, arguments), call)
