"""Copy the server's output into a file, and show the lines that a developer needs in the terminal too."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

AUDIT_SCHEMA = "taskchat.audit/"
WORTH_SHOWING = ("WARNING", "ERROR", "CRITICAL")


def record(stream: IO[bytes], log: Path, lines: Path, show: Callable[[str], None]) -> threading.Thread:
    """Copy the stream into the log until it ends, and pass the lines for the terminal to `show`.

    Add the lines of the JSON log to the file `lines`, which is kept from run to run, as the database is.
    """

    def copy() -> None:
        with log.open("wb", buffering=0) as file, lines.open("ab", buffering=0) as json_lines:
            for line in stream:
                file.write(line)
                if line.startswith(b"{"):
                    json_lines.write(line)
                if (short := readable(line.decode(errors="replace").rstrip())) is not None:
                    show(short)

    thread = threading.Thread(target=copy, name="server output", daemon=True)
    thread.start()
    return thread


def readable(line: str) -> str | None:
    """Return the line for the terminal: tool calls and warnings of the JSON log in short, and other text as it is.

    Return None for every other line of the JSON log.
    """
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    return _short(entry) if isinstance(entry, dict) else line


def _short(entry: dict[str, Any]) -> str | None:
    if str(entry.get("schema")).startswith(AUDIT_SCHEMA):
        return f"  {entry['tool']} {entry['outcome']} {entry['duration_ms']:.0f} ms"
    if entry.get("level") in WORTH_SHOWING:
        return "  " + ": ".join(filter(None, (entry["level"].lower(), entry.get("message"), entry.get("error"))))
    return None
