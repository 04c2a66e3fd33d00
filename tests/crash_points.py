"""Number the points of a request at which a test may kill or freeze its process, and send the signal there.

The points: the request's arrival; before and after every statement and every commit; before and after each piece sent
to the model; after each piece read from it; before and after each event of a stream; and the moment at which the
handler has its answer but has not returned it.
The level SOCKET adds points around each piece sent to the database, and after each piece read from it.
"""

import os
import signal
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from sqlalchemy import Engine, event
from sqlalchemy.engine.default import DefaultDialect

STATEMENT: Final = "statement"
SOCKET: Final = "socket"


@dataclass(frozen=True)
class Trap:
    """Describe a signal that the process sends itself: at the n-th point, or at the n-th whose label contains `on`."""

    number: signal.Signals
    at: int
    on: str = ""
    level: str = STATEMENT

    @classmethod
    def kill(cls, at: int, on: str = "", level: str = STATEMENT) -> "Trap":
        """Kill the process there."""
        return cls(signal.SIGKILL, at, on, level)

    @classmethod
    def freeze(cls, at: int, on: str = "", level: str = STATEMENT) -> "Trap":
        """Stop the process there, as Lambda does between two invocations, until it is resumed."""
        return cls(signal.SIGSTOP, at, on, level)


class CrashPoints:
    """Count the points of a request, and send the signal at the trap's point."""

    def __init__(self, report: Callable[[dict[str, Any]], None]) -> None:
        """Count in this process. `report` gets the label of the trap's point before the signal."""
        self._report = report
        self._model_port = urlsplit(os.environ["OPENAI_BASE_URL"]).port
        self._trap: Trap | None = None
        self._level = STATEMENT
        self._left = 0
        self.passed: list[str] | None = None
        """The labels of this request's points so far. None between two requests."""

    def begin(self, trap: Trap | None) -> None:
        """Begin to count, with this trap."""
        self._trap, self.passed = trap, []
        self._level, self._left = (trap.level, trap.at) if trap else (STATEMENT, 0)
        self.reach("request: arrived")

    def end(self) -> list[str]:
        """Stop counting, and return the labels of the points passed."""
        self.reach("answer: ready")
        passed, self.passed = self.passed or [], None
        return passed

    def reach(self, label: str) -> None:
        """Pass a point. Send the signal if the trap is here."""
        if self.passed is None or (
            self.passed and self.passed[-1] == label
        ):  # the number of pieces of an answer varies
            return
        self.passed.append(label)
        if self._trap is None or self._trap.on not in label:
            return
        self._left -= 1
        if self._left == 0:
            self._report({"trapped": label, "point": len(self.passed), "commits": self.passed.count("after commit")})
            os.kill(os.getpid(), self._trap.number)

    def install(self) -> None:
        """Listen to SQLAlchemy and to every socket of this process."""
        event.listen(Engine, "before_cursor_execute", lambda *args: self.reach(f"before {_brief(args[2])}"))
        event.listen(Engine, "after_cursor_execute", lambda *args: self.reach(f"after {_brief(args[2])}"))
        for name in ("do_commit", "do_rollback"):
            self._surround(DefaultDialect, name, name.removeprefix("do_"))
        for owner in (socket.socket, ssl.SSLSocket):
            for name in ("send", "sendall", "recv", "recv_into"):
                self._watch(owner, name, reads=name.startswith("recv"))

    def _surround(self, owner: Any, name: str, label: str) -> None:
        original = getattr(owner, name)

        def surrounded(*args: Any) -> Any:
            self.reach(f"before {label}")
            result = original(*args)
            self.reach(f"after {label}")
            return result

        setattr(owner, name, surrounded)

    def _watch(self, owner: Any, name: str, *, reads: bool) -> None:
        original = getattr(owner, name)

        def watched(sock: socket.socket, *args: Any, **options: Any) -> Any:
            peer = self._peer(sock)
            if peer and not reads:
                self.reach(f"{peer}: before sending")
            result = original(sock, *args, **options)
            if peer:
                self.reach(f"{peer}: read" if reads else f"{peer}: sent")
            return result

        setattr(owner, name, watched)

    def _peer(self, sock: socket.socket) -> str | None:
        """Return "model" or "database" when the socket is connected to one that this trap counts."""
        if self.passed is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        try:
            port = sock.getpeername()[1]
        except OSError:  # not connected any more
            return None
        if port == self._model_port:
            return "model"
        return "database" if self._level == SOCKET else None


def _brief(statement: str) -> str:
    """Return the first words of a statement."""
    return " ".join(statement.split()[:3])[:40]
