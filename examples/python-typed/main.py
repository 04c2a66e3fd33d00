"""Call taskchat with a generated client: send a message, list tasks, rename the conversation, handle a problem."""

import json
import os
import urllib.request
from uuid import uuid4

from httpx import Timeout
from taskchat_client import AuthenticatedClient
from taskchat_client.api.chat import send_message
from taskchat_client.api.conversations import rename_conversation
from taskchat_client.api.tasks import list_tasks
from taskchat_client.models import (
    ChatRequest,
    ChatResponse,
    ConversationView,
    InvalidInputProblem,
    ListTasksStatus,
    Renaming,
    TaskPage,
)


def connect() -> tuple[AuthenticatedClient, str]:
    """Return a client and its user id: from the environment, or from the development server."""
    url = os.environ.get("URL", "http://127.0.0.1:8000")
    if "TOKEN" in os.environ:
        token, user_id = os.environ["TOKEN"], os.environ["USER_ID"]
    else:
        with urllib.request.urlopen(f"{url}/dev/token", timeout=10) as answer:
            found = json.load(answer)
        token, user_id = found["token"], found["user_id"]
    return AuthenticatedClient(base_url=url, token=token, timeout=Timeout(30)), user_id


def main() -> None:
    """Take one turn, and look at what it did."""
    client, user_id = connect()

    message = ChatRequest(message="Add buy milk", timezone="Europe/Paris")
    turn = send_message.sync(user_id, client=client, body=message, idempotency_key=str(uuid4()))
    if not isinstance(turn, ChatResponse):
        raise SystemExit(f"No answer: {turn}")
    print(turn.response, [call.tool for call in turn.tool_calls])

    page = list_tasks.sync(user_id, client=client, status=ListTasksStatus.PENDING)
    if isinstance(page, TaskPage):
        for task in page.tasks:
            print(task.id, task.title, task.due or "without a date")

    for title in ("Groceries", ""):
        renamed = rename_conversation.sync(user_id, turn.conversation_id, client=client, body=Renaming(title=title))
        match renamed:
            case ConversationView():
                print(renamed.title)
            case InvalidInputProblem():
                print(renamed.status, [f"{fault.field}: {fault.message}" for fault in renamed.fields])


if __name__ == "__main__":
    main()
