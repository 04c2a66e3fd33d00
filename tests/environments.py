"""Execution environments as processes of their own: a pytest plugin for tests that kill, freeze and race them.

crash, stateful and load tests -> environments -> zygote -> points
                               -> truth
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from dev import processes
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from testing.callers import Caller
from testing.gateway import Response
from tests.conftest import ROOT, variables
from tests.crash_points import Trap
from tests.privacy import Watch

PATIENCE = 60
"""Seconds to wait for an environment: longer than any request may take."""


@dataclass(frozen=True)
class Outcome:
    """What became of a request: its answer, or the point at which the process was trapped."""

    response: Response | None = None
    passed: list[str] = field(default_factory=list)
    trapped: str | None = None
    point: int = 0

    @property
    def answer(self) -> Response:
        """The answer of a request that must have had one."""
        assert self.response is not None, f"died or stopped at {self.trapped}"
        return self.response


class Environment:
    """One process that handles one request at a time, as an execution environment does."""

    def __init__(self, zygote: "Zygote", pid: int, channel: socket.socket) -> None:
        self._zygote, self.pid, self._channel, self._read = zygote, pid, channel, b""
        self.peak_memory = 0
        """The most bytes that it had at any moment until its latest answer."""

    def ask(self, request: dict[str, Any], trap: Trap | None = None, seconds: float = 30) -> Outcome:
        """Send a request and wait for what becomes of it."""
        self.send(request, trap, seconds)
        return self.outcome()

    def send(self, request: dict[str, Any], trap: Trap | None = None, seconds: float = 30) -> None:
        """Send a request that may take so many `seconds`, and do not wait."""
        question = {"event": request, "trap": trap and asdict(trap), "seconds": seconds}
        self._channel.sendall(json.dumps(question).encode() + b"\n")

    def outcome(self) -> Outcome:
        """Wait for what becomes of the request sent: an answer, an end or a stop."""
        told = self._told()
        if told is None:
            return Outcome()
        if "trapped" not in told:
            self.peak_memory = told["peak_memory"]
            return Outcome(Response(told["status"], told["headers"], told["body"]), told["passed"])
        self._await_trap()
        return Outcome(None, [], told["trapped"], told["point"])

    def is_answered(self) -> bool:
        """Whether there is something to read, without waiting."""
        return bool(self._read) or bool(select.select([self._channel], [], [], 0)[0])

    def freeze(self) -> None:
        """Stop it wherever it is."""
        self._zygote.signal(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on from where it was stopped."""
        self._zygote.signal(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        self._zygote.signal(self.pid, signal.SIGKILL)
        self._channel.close()

    def _told(self) -> dict[str, Any] | None:
        self._channel.settimeout(PATIENCE)
        while b"\n" not in self._read:
            try:
                more = self._channel.recv(1 << 16)
            except ConnectionResetError:
                more = b""
            if not more:
                return None
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        told: dict[str, Any] = json.loads(line)
        assert "error" not in told, told["error"]
        return told

    def _await_trap(self) -> None:
        """Its own signal comes a moment after its word: send it one more, which is waited for."""
        self._zygote.await_trap(self.pid)


class Zygote:
    """The process that environments are forked from, and the one that may send them signals."""

    def __init__(self, control: socket.socket, log: int) -> None:
        self._control, self._log, self._lock = control, log, threading.Lock()

    def start(self, environment: dict[str, str]) -> Environment:
        """A new environment: imported, and otherwise cold."""
        ours, theirs = socket.socketpair()
        with theirs:
            pid = self._ask({"do": "start", "environment": environment}, theirs.fileno())["pid"]
        return Environment(self, pid, ours)

    def warm(self, environment: dict[str, str], request: dict[str, Any]) -> None:
        """Do one turn in it, and see that nothing of that is left to be inherited."""
        left = self._ask({"do": "warm", "environment": environment, "event": request})
        assert left == {"status": 200, "threads": ["MainThread"], "sockets": 1}, left

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to an environment that still lives; return once a stop or an end has come to be."""
        self._ask({"do": "signal", "pid": pid, "signal": int(number)})

    def await_trap(self, pid: int) -> None:
        """Return once an environment that is about to end or stop by itself has."""
        self._ask({"do": "await", "pid": pid})

    def log_size(self) -> int:
        """Return how many bytes the environments have logged by now."""
        return os.fstat(self._log).st_size

    def logged(self, since: int) -> str:
        """Return what the environments have logged behind so many bytes. Their place in the file stays as it is."""
        return os.pread(self._log, self.log_size() - since, since).decode(errors="replace")

    def _ask(self, question: dict[str, Any], *descriptors: int) -> dict[str, Any]:
        with self._lock:
            socket.send_fds(self._control, [json.dumps(question).encode()], descriptors)
            answer = b""
            while not answer.endswith(b"\n"):
                more = self._control.recv(1 << 16)
                assert more, "the zygote has ended"
                answer += more
        told: dict[str, Any] = json.loads(answer)
        assert "error" not in told, told["error"]
        return told


@pytest.fixture(scope="session")
def zygote(watch: Watch) -> Iterator[Zygote]:
    """Where environments come from."""
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    # No authorities to read, at 40 ms for each environment: the only TLS is the pooler's, whose URL names its own.
    with ours, theirs, tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as no_authorities:
        fcntl.fcntl(log, fcntl.F_SETFL, os.O_APPEND)  # environments write at once, and none over another's lines
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())],
            cwd=ROOT,
            env=os.environ | {"SSL_CERT_DIR": no_authorities},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        theirs.close()
        try:
            yield Zygote(ours, log.fileno())
        finally:
            ours.close()
            processes.stop(process, patience=5)
            log.seek(0)
            watch.note(log.read().decode(errors="replace"))


class Fleet:
    """Execution environments of one deployment: all with the same variables."""

    def __init__(self, zygote: Zygote, variables: dict[str, str]) -> None:
        self._zygote, self._variables = zygote, variables
        self._started: list[Environment] = []

    def start(self) -> Environment:
        """A cold environment."""
        environment = self._zygote.start(self._variables)
        self._started.append(environment)
        return environment

    @contextlib.contextmanager
    def cold(self) -> Iterator[Environment]:
        """A cold environment that is gone after the block."""
        environment = self._zygote.start(self._variables)
        try:
            yield environment
        finally:
            environment.kill()

    def stop(self) -> None:
        """End all that are left."""
        for environment in self._started:
            environment.kill()


@pytest.fixture(scope="session")
def warm_zygote(zygote: Zygote, server: Postgres, running_model: StandIn, issuer: Issuer) -> Zygote:
    """Where environments come from, once it has done everything a first time."""
    client = Caller.new(issuer)
    for model_api in ("responses", "chat_completions"):
        known = variables(server.app_url, running_model, issuer, model_api)
        zygote.warm(known, client.request({"message": "Add milk, then finish it and delete it"}))
    return zygote


@pytest.fixture
def fleet(warm_zygote: Zygote, database_url: str, standin: StandIn, issuer: Issuer, model_api: str) -> Iterator[Fleet]:
    """A deployment: over the test's database URL and model API."""
    fleet = Fleet(warm_zygote, variables(database_url, standin, issuer, model_api))
    yield fleet
    fleet.stop()
