"""Send one message (`make chat MESSAGE="..."`) to the running development server, or to one started for it."""

import contextlib
import json
import os
import sys
import uuid
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from dev import backend, client, processes, state
from dev.client import UnreachableError
from dev.processes import StartupError
from dev.standin_model.domain import domain

RESULT_CHARACTERS = 300  # enough for one thing; a long list is better read on the page
USAGE = f'Give a message: make chat MESSAGE="{domain.examples.add}" (add CONVERSATION=<id> to continue a conversation).'


def main() -> int:
    """Run the turn and print it. The exit code is 1 when it failed, 2 when there is no message."""
    message = os.environ.get("MESSAGE", "").strip()
    if not message:
        print(USAGE, file=sys.stderr)
        return 2
    try:
        processes.stop_on_signals()
        with _server() as url:
            return _turn(url, message, os.environ.get("CONVERSATION") or None)
    except (StartupError, UnreachableError, OSError) as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
    return 1


@contextlib.contextmanager
def _server() -> Iterator[str]:
    """Yield the URL of the running server, or start one for the block."""
    url = state.server_url()
    if url is not None and _answers(url):
        yield url
        return
    progress = backend.Progress(sys.stderr)
    progress.print("No development server is running (`make dev` starts one). Starting one for this message:")
    with backend.running(processes.free_port(backend.HOST), progress, reload=False) as own:
        progress.print()
        yield own.url


def _answers(url: str) -> bool:
    try:
        client.token(url)
    except UnreachableError:
        return False
    return True


def _turn(url: str, message: str, conversation: str | None) -> int:
    identity = client.token(url)
    headers = {"Authorization": f"Bearer {identity['token']}", "Idempotency-Key": str(uuid.uuid4())}
    body = {"message": message, "conversation_id": conversation}
    status, answer = client.call(url, f"/api/{identity['user_id']}/chat", body, headers)
    if not isinstance(answer, dict):
        answer = {"title": "The answer is not JSON."}
    if status == HTTPStatus.OK:
        print(answer["response"])
    else:
        print(_problem(status, answer), file=sys.stderr)
    for call in answer.get("tool_calls", ()):
        print(_tool_call(call))
    if identifier := answer.get("conversation_id"):
        print(f'\nContinue with: make chat CONVERSATION={identifier} MESSAGE="..."')
    return 0 if status == HTTPStatus.OK else 1


def _problem(status: int, problem: dict[str, Any]) -> str:
    fields = [f"{fault['field']}: {fault['message']}" for fault in problem.get("fields", ())]
    return " ".join(filter(None, (f"{status} {problem.get('title')}", problem.get("detail"), "; ".join(fields))))


def _tool_call(call: dict[str, Any]) -> str:
    result = json.dumps(call["result"], ensure_ascii=False)
    if len(result) > RESULT_CHARACTERS:
        result = result[:RESULT_CHARACTERS] + " ..."
    arguments = ", ".join(
        f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in call["arguments"].items()
    )
    return f"\n  {call['tool']}({arguments})\n  {call['outcome']} in {call['duration_ms']:.0f} ms: {result}"


if __name__ == "__main__":
    sys.exit(main())
