"""Chat with the running development server, or with one started for it (`make chat`).

With a message, take one turn and print it. Without one, take a turn for each line of the input: at a prompt in a
terminal, and without one in a pipe.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from dev import backend, client, processes, state, terminal, turns
from dev.client import UnreachableError
from dev.processes import StartupError
from dev.prompt import Prompt
from dev.standin_model.domain import domain
from dev.turns import Event, Message

RESULT_CHARACTERS = 300  # enough for one thing; a long list is better read on the page
USAGE = f'Give a message: make chat MESSAGE="{domain.examples.add}" (add CONVERSATION=<id> to continue a conversation).'


def main() -> int:
    """Chat. The exit code is 1 when a turn failed, 2 when there is no message, and 130 after Ctrl-C at the prompt."""
    message, conversation = os.environ.get("MESSAGE", "").strip(), _conversation()
    try:
        processes.stop_on_signals()
        if not message and sys.stdin.isatty() and sys.stdout.isatty():
            return _chat_at_prompt(conversation)
        return _take_each([message] if message else _lines(), conversation)
    except (StartupError, UnreachableError, OSError) as error:
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
    return 1


def _conversation() -> str | None:
    parser = argparse.ArgumentParser(prog="python -m dev.chat", description=__doc__)
    parser.add_argument("--conversation", metavar="ID", help="go on with this conversation (CONVERSATION for make)")
    given: str | None = parser.parse_args().conversation
    return given or os.environ.get("CONVERSATION") or None


def _lines() -> Iterator[str]:
    return filter(None, map(str.strip, sys.stdin))


def _chat_at_prompt(conversation: str | None) -> int:
    with _server() as url:
        prompt = Prompt(url, conversation)
        code = prompt.run()
    _print_how_to_continue(prompt.conversation)
    return code


def _take_each(messages: Iterable[str], conversation: str | None) -> int:
    """Take a turn for each message, one after the other, in one conversation. Return the exit code."""
    remaining = iter(messages)
    if (first := next(remaining, None)) is None:
        print(USAGE, file=sys.stderr)
        return 2
    failures, known = 0, None
    with _server() as url:
        for text in chain([first], remaining):
            name, data = _take(url, Message(text, known or conversation))
            known = data.get("conversation_id", known)
            failures += name == "failed"
    _print_how_to_continue(known)
    return int(failures > 0)


@contextlib.contextmanager
def _server() -> Iterator[str]:
    """Yield the URL of the running server, or start one for the block."""
    url = state.server_url()
    if url is not None and _answers(url):
        yield url
        return
    progress = backend.Progress(sys.stderr)
    progress.print("No development server is running (`make dev` starts one). Starting one for this conversation:")
    with backend.running(processes.free_port(backend.HOST), progress, reload=False) as own:
        progress.print()
        yield own.url


def _answers(url: str) -> bool:
    try:
        client.token(url)
    except UnreachableError:
        return False
    return True


def _take(url: str, message: Message) -> Event:
    """Take a turn, show it, and return its last event: at the end, or in a terminal as it happens."""
    events = turns.take(url, message)
    if sys.stdout.isatty():
        with terminal.Turn() as turn:
            last = turn.show(events)
    else:
        *_, last = events
        _print_outcome(*last)
    if waiting := last[1].get("retry_after"):
        print(f"Try again in {waiting} s.", file=sys.stderr)
    return last


def _print_outcome(name: str, data: dict[str, Any]) -> None:
    if name == "finished":
        print(data["response"])
    else:
        print(terminal.describe_problem(data), file=sys.stderr)
    for call in data.get("tool_calls", ()):
        print(_tool_call(call))
    sys.stdout.flush()


def _tool_call(call: dict[str, Any]) -> str:
    result = json.dumps(call["result"], ensure_ascii=False)
    if len(result) > RESULT_CHARACTERS:
        result = result[:RESULT_CHARACTERS] + " ..."
    arguments = ", ".join(
        f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in call["arguments"].items()
    )
    return f"\n  {call['tool']}({arguments})\n  {call['outcome']} in {call['duration_ms']:.0f} ms: {result}"


def _print_how_to_continue(conversation: str | None) -> None:
    if conversation:
        print(f'\nContinue with: make chat CONVERSATION={conversation} MESSAGE="..."')


if __name__ == "__main__":
    sys.exit(main())
