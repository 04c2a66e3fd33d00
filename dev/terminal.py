"""Show a turn in a terminal as it happens: its calls, the words of the reply, and the seconds until they come."""

import os
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any, Final, TextIO

from dev.standin_model.domain import domain
from dev.turns import Event

DIM: Final = "2"
RED: Final = "31"
BOLD: Final = "1"
ERASE_LINE: Final = "\r\x1b[K"
AFTER_SECONDS: Final = 1
"""The seconds of a wait are shown from here on."""


def styled(text: str, style: str, *, within_readline: bool = False) -> str:
    """Return the text in a style, or as it is where NO_COLOR or the terminal forbids styles."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    begin, end = f"\x1b[{style}m", "\x1b[0m"
    # Readline counts the columns of a prompt, and must know the characters that have none.
    return f"\x01{begin}\x02{text}\x01{end}\x02" if within_readline else f"{begin}{text}{end}"


def describe_call(call: dict[str, Any]) -> str:
    """Return a line for a call that ended, in words: "Add task: buy milk"."""
    words, result = call["tool"].replace("_", " ").capitalize(), call["result"]
    if call["outcome"] != "ok":
        return f"{words} failed: {result.get('error')}"
    if text := result.get(domain.examples.text):
        return f"{words}: {text}"
    listed = [value for value in result.values() if isinstance(value, list)]
    return f"{words}: {len(listed[0])} found" if listed else words


def describe_problem(problem: dict[str, Any]) -> str:
    """Return a problem in one line: status, title, detail, and the fields at fault."""
    faults = "; ".join(f"{fault['field']}: {fault['message']}" for fault in problem.get("fields", ()))
    return " ".join(filter(None, (f"{problem.get('status')} {problem.get('title')}", problem.get("detail"), faults)))


class Turn:
    """Shows one turn's events as they come. Use it as a context manager: it also shows how long the turn takes."""

    def __init__(self, output: TextIO = sys.stdout) -> None:
        """Write to `output`, a terminal."""
        self._output = output
        self._began = time.monotonic()
        self._lock, self._over = threading.Lock(), threading.Event()
        self._clock = threading.Thread(target=self._count, daemon=True)
        self._waiting_for = ""
        self._counts = self._within_text = False
        self._message: int | None = None

    def __enter__(self) -> "Turn":
        self._wait_for("")
        if os.environ.get("TERM") != "dumb":
            self._clock.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        if self._clock.ident is not None:
            self._clock.join()
        self._line("")

    def show(self, events: Iterable[Event]) -> Event:
        """Show the events and return the last one."""
        last: Event = ("failed", {})
        for last in events:
            name, data = last
            match name:
                case "tool_started":
                    self._wait_for(data["tool"].replace("_", " "))
                case "tool_finished":
                    self._line(styled(f"  {describe_call(data)}", DIM if data["outcome"] == "ok" else RED))
                    self._wait_for("")
                case "text":
                    self._write_words(data)
                case "failed":
                    self._line(styled(describe_problem(data), RED))
                case "finished":
                    self._line(styled(f"  {time.monotonic() - self._began:.1f} s", DIM))
        return last

    def _write_words(self, piece: dict[str, Any]) -> None:
        with self._lock:
            self._erase()
            if self._within_text and piece["message"] != self._message:
                self._output.write("\n")
            self._message, self._within_text = piece["message"], True
            self._output.write(piece["text"])
            self._output.flush()

    def _line(self, line: str) -> None:
        """Write a line of its own, after a line that holds words. An empty one only ends that line."""
        with self._lock:
            self._erase()
            if self._within_text:
                self._output.write("\n")
            self._within_text, self._waiting_for = False, ""
            self._output.write(f"{line}\n" if line else "")
            self._output.flush()

    def _wait_for(self, call: str) -> None:
        with self._lock:
            self._waiting_for = f" {call}" if call else ""

    def _count(self) -> None:
        """Show the seconds at every second, while no word is on the line."""
        while not self._over.wait(AFTER_SECONDS):
            with self._lock:
                if not self._within_text:
                    seconds = time.monotonic() - self._began
                    self._output.write(ERASE_LINE + styled(f"  {seconds:.0f} s{self._waiting_for} ...", DIM))
                    self._output.flush()
                    self._counts = True

    def _erase(self) -> None:
        if self._counts:
            self._output.write(ERASE_LINE)
            self._counts = False
