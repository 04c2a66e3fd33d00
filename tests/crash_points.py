"""The points of a request at which a process may be killed or frozen, and the trap that does it there.

A point lies where a request has come, before and after every statement and every commit, before and after each piece
sent to the model, after the first piece of its answer, and where the handler has its answer but has not returned it.
On the wire there are more: around each piece sent to the database, and after the first piece read from it.
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
WIRE: Final = "wire"


@dataclass(frozen=True)
class Trap:
    """A signal that a process sends to itself at a point: at the n-th, or at the n-th whose label has `on` in it."""

    number: signal.Signals
    at: int
    on: str = ""
    level: str = STATEMENT

    @classmethod
    def kill(cls, at: int, on: str = "", level: str = STATEMENT) -> "Trap":
        """Die there, without a word to anybody."""
        return cls(signal.SIGKILL, at, on, level)

    @classmethod
    def freeze(cls, at: int, on: str = "", level: str = STATEMENT) -> "Trap":
        """Stop there, as an execution environment does between two invocations, until somebody goes on."""
        return cls(signal.SIGSTOP, at, on, level)


class Points:
    """Counts the points of a request, and springs the trap."""

    def __init__(self, report: Callable[[dict[str, Any]], None]) -> None:
        """`report` tells the test where the trap was sprung, before it is."""
        self._report = report
        self._model_port = urlsplit(os.environ["OPENAI_BASE_URL"]).port
        self._trap: Trap | None = None
        self._level = STATEMENT
        self._left = 0
        self.passed: list[str] | None = None
        """The labels of this request's points; None between two requests."""

    def begin(self, trap: Trap | None) -> None:
        """Count from here."""
        self._trap, self.passed = trap, []
        self._level, self._left = (trap.level, trap.at) if trap else (STATEMENT, 0)
        self.reach("request: come")

    def end(self) -> list[str]:
        """Count no more. The labels passed."""
        self.reach("answer: ready")
        passed, self.passed = self.passed or [], None
        return passed

    def reach(self, label: str) -> None:
        """Be at a point."""
        if self.passed is None or (self.passed and self.passed[-1] == label):  # how an answer is cut up is chance
            return
        self.passed.append(label)
        if self._trap is None or self._trap.on not in label:
            return
        self._left -= 1
        if self._left == 0:
            self._report({"trapped": label, "point": len(self.passed)})
            os.kill(os.getpid(), self._trap.number)

    def install(self) -> None:
        """Watch SQLAlchemy and every socket of this process."""
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
        """Who is at the other end, if that counts now."""
        if self.passed is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        try:
            port = sock.getpeername()[1]
        except OSError:  # not connected any more
            return None
        if port == self._model_port:
            return "model"
        return "database" if self._level == WIRE else None


def _brief(statement: str) -> str:
    """The first words of a statement, enough to know it by."""
    return " ".join(statement.split()[:3])[:40]
