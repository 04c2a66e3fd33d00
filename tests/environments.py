"""Run execution environments as processes that a test can kill, freeze and race: a pytest plugin.

tests -> environments -> fork_server -> crash_points
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
from tests.domain import example
from tests.privacy import LogSearch

PATIENCE = 60
"""Seconds to wait for an environment's answer. A request may take less."""


@dataclass(frozen=True)
class Outcome:
    """Hold the outcome of a request: its answer, or the crash point at which the process got its signal."""

    response: Response | None = None
    passed: list[str] = field(default_factory=list)
    trapped: str | None = None
    point: int = 0
    commits: int = 0
    """Commits before that point."""
    shown: str = ""
    """The part of a stream that was sent so far."""

    @property
    def answer(self) -> Response:
        """Return the answer of a request that must have one."""
        assert self.response is not None, f"died or stopped at {self.trapped}"
        return self.response


class Environment:
    """Drive one process that handles one request at a time, as an execution environment does."""

    def __init__(self, fork_server: "ForkServer", pid: int, channel: socket.socket) -> None:
        self._fork_server, self.pid, self._channel, self._read = fork_server, pid, channel, b""
        self._shown = ""
        self.peak_memory = 0
        """The process's peak memory in bytes, as of its latest answer."""

    def ask(
        self, request: dict[str, Any], trap: Trap | None = None, seconds: float = 30, *, is_streamed: bool = False
    ) -> Outcome:
        """Send a request and wait for its outcome."""
        self.send(request, trap, seconds, is_streamed=is_streamed)
        return self.outcome()

    def send(
        self, request: dict[str, Any], trap: Trap | None = None, seconds: float = 30, *, is_streamed: bool = False
    ) -> None:
        """Send a request that may take this many seconds, and do not wait.

        With `is_streamed`, a server sends each event of the answer as it comes, and not the handler the whole body.
        """
        self._shown = ""
        question = {"event": request, "trap": trap and asdict(trap), "seconds": seconds, "is_streamed": is_streamed}
        self._channel.sendall(json.dumps(question).encode() + b"\n")

    def outcome(self) -> Outcome:
        """Wait for the outcome of the request: an answer, or the end or stop of the process."""
        while (answer := self._read_answer()) and "shown" in answer:
            self._shown += answer["shown"]
        if answer is None:
            return Outcome(shown=self._shown)
        if "trapped" not in answer:
            self.peak_memory = answer["peak_memory"]
            response = Response(answer["status"], answer["headers"], answer["body"])
            return Outcome(response, answer["passed"], shown=self._shown)
        # The process reports its crash point before it gets the signal.
        self._fork_server.await_signal(self.pid)
        return Outcome(None, [], answer["trapped"], answer["point"], answer["commits"], self._shown)

    def is_answered(self) -> bool:
        """Return whether there is something to read, without waiting."""
        return bool(self._read) or bool(select.select([self._channel], [], [], 0)[0])

    def freeze(self) -> None:
        """Stop the process."""
        self._fork_server.signal(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the process continue."""
        self._fork_server.signal(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process, if it has not ended."""
        self._fork_server.signal(self.pid, signal.SIGKILL)
        self._channel.close()

    def _read_answer(self) -> dict[str, Any] | None:
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
        answer: dict[str, Any] = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer


class ForkServer:
    """Drive the process that forks environments and sends them signals."""

    def __init__(self, control: socket.socket, log: int) -> None:
        self._control, self._log, self._lock = control, log, threading.Lock()

    def start(self, environment: dict[str, str]) -> Environment:
        """Fork an environment: it has imported everything, and is otherwise cold."""
        ours, theirs = socket.socketpair()
        with theirs:
            pid = self._ask({"do": "start", "environment": environment}, theirs.fileno())["pid"]
        return Environment(self, pid, ours)

    def warm(self, environment: dict[str, str], request: dict[str, Any]) -> None:
        """Take one turn in the fork server, and check that a fork inherits no thread and no socket."""
        left = self._ask({"do": "warm", "environment": environment, "event": request})
        assert left == {"status": 200, "threads": ["MainThread"], "sockets": 1}, left

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to an environment that is alive, and return when it has stopped or ended."""
        self._ask({"do": "signal", "pid": pid, "signal": int(number)})

    def await_signal(self, pid: int) -> None:
        """Wait until an environment that gets a signal from itself has stopped or ended."""
        self._ask({"do": "await", "pid": pid})

    def log_size(self) -> int:
        """Return the size of the environments' log in bytes."""
        return os.fstat(self._log).st_size

    def logged(self, since: int) -> str:
        """Return the environments' log after its first `since` bytes. The environments' file position does not move."""
        return os.pread(self._log, self.log_size() - since, since).decode(errors="replace")

    def _ask(self, question: dict[str, Any], *descriptors: int) -> dict[str, Any]:
        with self._lock:
            socket.send_fds(self._control, [json.dumps(question).encode()], descriptors)
            raw = b""
            while not raw.endswith(b"\n"):
                more = self._control.recv(1 << 16)
                assert more, "the fork server has ended"
                raw += more
        answer: dict[str, Any] = json.loads(raw)
        assert "error" not in answer, answer["error"]
        return answer


@pytest.fixture(scope="session")
def fork_server(log_search: LogSearch) -> Iterator[ForkServer]:
    """Run the fork server."""
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    # An empty directory of authorities saves 40 ms in each environment: the only TLS is the pooler's, with its own CA.
    with ours, theirs, tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as no_authorities:
        fcntl.fcntl(log, fcntl.F_SETFL, os.O_APPEND)  # environments write at the same time
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
            yield ForkServer(ours, log.fileno())
        finally:
            ours.close()
            processes.stop(process, timeout=5)
            log.seek(0)
            log_search.add_output(log.read().decode(errors="replace"))


class Fleet:
    """Start execution environments of one deployment: all have the same variables."""

    def __init__(self, fork_server: ForkServer, variables: dict[str, str]) -> None:
        self._fork_server, self._variables = fork_server, variables
        self._started: list[Environment] = []

    def renewing_every(self, seconds: float) -> "Fleet":
        """Return a fleet like this one, whose processes renew a lease after as many seconds."""
        return Fleet(self._fork_server, self._variables | {"RENEW_SECONDS": str(seconds)})

    def start(self) -> Environment:
        """Start a cold environment."""
        environment = self._fork_server.start(self._variables)
        self._started.append(environment)
        return environment

    @contextlib.contextmanager
    def cold(self) -> Iterator[Environment]:
        """Start a cold environment, and kill it after the block."""
        environment = self._fork_server.start(self._variables)
        try:
            yield environment
        finally:
            environment.kill()

    def stop(self) -> None:
        """Kill all environments that are left."""
        for environment in self._started:
            environment.kill()


@pytest.fixture(scope="session")
def warm_fork_server(fork_server: ForkServer, server: Postgres, running_model: StandIn, issuer: Issuer) -> ForkServer:
    """Run the fork server after a first turn with each model API."""
    client = Caller.new(issuer)
    for model_api in ("responses", "chat_completions"):
        known = variables(server.app_url, running_model, issuer, model_api)
        fork_server.warm(known, client.request({"message": example.add("milk").then(example.delete("milk"))}))
    return fork_server


@pytest.fixture
def fleet(
    warm_fork_server: ForkServer, database_url: str, standin: StandIn, issuer: Issuer, model_api: str
) -> Iterator[Fleet]:
    """Deploy over the test's database URL and model API."""
    fleet = Fleet(warm_fork_server, variables(database_url, standin, issuer, model_api))
    yield fleet
    fleet.stop()
