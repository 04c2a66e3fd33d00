"""Chat at a prompt in the terminal (`make chat` without a message)."""

import contextlib
import readline
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dev import state, terminal, turns
from dev.client import UnreachableError
from dev.turns import Event, Message

INTERRUPTED: Final = 130
"""The exit code of a program that Ctrl-C ended."""
HISTORY_LINES: Final = 1000
AGAIN: Final = "A retry does nothing twice."
MAY_BE_SENT_AGAIN: Final = frozenset({408, 409, 429, 500, 502, 503, 504})


class Prompt:
    """Hold one conversation at a prompt, and the message that may be sent again."""

    def __init__(self, url: str, conversation: str | None) -> None:
        """Go on with the conversation, or begin a new one."""
        self.conversation = conversation
        self._url = url
        self._unfinished: Message | None = None

    def run(self) -> int:
        """Take a turn for each line until Ctrl-D or Ctrl-C, and return the exit code."""
        print("Write a message. Ctrl-C leaves a running turn, and Ctrl-D ends.")
        with _history(state.directory() / "chat_history"), _ctrl_c_raises():
            while True:
                try:
                    line = input(terminal.styled("> ", terminal.BOLD, within_readline=True)).strip()
                except (EOFError, KeyboardInterrupt) as ending:
                    print()
                    return 0 if isinstance(ending, EOFError) else INTERRUPTED
                message = Message(line, self.conversation) if line else self._unfinished
                if message is not None:
                    self._take(message)

    def _take(self, message: Message) -> None:
        self._unfinished = message
        try:
            with terminal.Turn() as turn:
                name, data = turn.show(self._remembering(turns.take(self._url, message)))
        except KeyboardInterrupt:
            print("You left the turn; it goes on. Press Enter to pick it up, or write another message.")
        except UnreachableError as error:
            print(f"{error} Press Enter to send the message again. {AGAIN}")
        else:
            if name == "finished" or data.get("status") not in MAY_BE_SENT_AGAIN:
                self._unfinished = None
            else:
                waiting = f" in {data['retry_after']} s" if data.get("retry_after") else ""
                print(f"Press Enter{waiting} to try again. {AGAIN}")

    def _remembering(self, events: Iterator[Event]) -> Iterator[Event]:
        """Yield the events, and go on with their conversation."""
        for name, data in events:
            self.conversation = data.get("conversation_id", self.conversation)
            yield name, data


@contextlib.contextmanager
def _history(path: Path) -> Iterator[None]:
    """Keep the lines for the next time, in a file that only its owner may read."""
    with contextlib.suppress(FileNotFoundError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        path.touch(mode=0o600)
        readline.write_history_file(path)


@contextlib.contextmanager
def _ctrl_c_raises() -> Iterator[None]:
    """Let each Ctrl-C raise KeyboardInterrupt. After the block it does nothing, so that the cleanup ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
