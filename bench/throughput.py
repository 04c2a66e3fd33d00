"""`python -m bench.throughput`: measure turns per second with concurrent clients.

The clients use HTTP. The server is that of `make dev`, with one process and with two, each with one database connection
like an environment. The floor runs behind the same server. Every turn begins a conversation and makes one tool call.
The model takes no time.
"""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import median
from typing import Final

from bench import parts, tasks
from bench.parts import Parts
from bench.turn import WARM_UP
from dev import processes, state
from dev.tokens import Issuer
from testing.callers import Caller, identity

APPS: Final = {"ours": "dev.app:app", "floor": "bench.floor:app"}
PROCESSES: Final = {1: "one process", 2: "2 processes"}
"""Numbers of server processes that the clients share, in words."""


def server(name: str, processes: int) -> str:
    """Return the label of so many processes of ours or of the floor."""
    return name if processes == 1 else f"{name}, {PROCESSES[processes]}"


SERVERS: Final = {server(name, processes): (app, processes) for processes in PROCESSES for name, app in APPS.items()}
"""The app and the number of processes, by label."""
CLIENTS: Final = (1, 2, 4, 8, 16)
TURNS: Final = 160
"""Turns of all clients together in one trial: a second or two."""

ROUNDS: Final = 3
HOST: Final = "127.0.0.1"
BODY: Final = json.dumps({"message": tasks.ADD})


@dataclass(frozen=True)
class Client:
    """A client that sends messages in sequence over one connection."""

    port: int
    user_id: str
    token: str

    def run(self, turns: int) -> None:
        """Run so many turns, and check each answer."""
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        with contextlib.closing(connection):
            for _ in range(turns):
                connection.request("POST", f"/api/{self.user_id}/chat", body=BODY, headers=headers)
                response = connection.getresponse()
                answer = json.loads(response.read())
                assert response.status == 200, answer
                assert answer["tool_calls"]


def measure(running: Parts, turns: int = TURNS, rounds: int = ROUNDS) -> dict[str, dict[int, float]]:
    """Return turns per second, by server and number of clients: the median of the rounds.

    Raises StartupError.
    """
    issuer, found = Issuer.new(), {name: {number: [0.0] * rounds for number in CLIENTS} for name in SERVERS}
    environment = os.environ | running.environment | identity(issuer)
    with contextlib.ExitStack() as stack:
        ports = {
            name: [stack.enter_context(serving(app, environment)) for _ in range(processes)]
            for name, (app, processes) in SERVERS.items()
        }
        for each in ports.values():
            _try(_people(each, issuer, len(each)), WARM_UP * len(each))
        for at in range(rounds):
            for number in CLIENTS:
                for name, each in ports.items():
                    found[name][number][at] = _try(_people(each, issuer, number), turns)
    return {name: {number: median(trials) for number, trials in of.items()} for name, of in found.items()}


@contextlib.contextmanager
def serving(app: str, environment: dict[str, str]) -> Iterator[int]:
    port = processes.free_port(HOST)
    command = [sys.executable, "-m", "uvicorn", app, "--host", HOST, "--port", str(port)]
    command += ["--log-level", "warning", "--no-access-log"]
    process = subprocess.Popen(command, cwd=state.ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        processes.wait_until_listening(process, HOST, port)
        yield port
    finally:
        processes.stop(process)


def _people(ports: list[int], issuer: Issuer, number: int) -> list[Client]:
    callers = [Caller.new(issuer) for _ in range(number)]
    places = islice(cycle(ports), number)
    return [Client(port, caller.id, caller.token) for port, caller in zip(places, callers, strict=True)]


def _try(clients: list[Client], turns: int) -> float:
    """Return the turns per second of all clients together."""
    with ThreadPoolExecutor(len(clients)) as pool:
        began = time.perf_counter()
        list(pool.map(lambda client: client.run(turns // len(clients)), clients))
        return turns / (time.perf_counter() - began)


def main() -> None:
    """Measure and print one line for each number of clients."""
    with parts.running() as running:
        found = measure(running)
    print(f"{'clients':8}" + "".join(f"{name:>22}" for name in found) + "   turns per second")
    for number in CLIENTS:
        print(f"{number:<8}" + "".join(f"{of[number]:22.0f}" for of in found.values()))


if __name__ == "__main__":
    main()
