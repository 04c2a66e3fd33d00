"""Start the built streaming function by its `run.sh`, as the Lambda Web Adapter does, and read its streams.

`make smoke` runs it. The adapter itself is a program that only Lambda runs: this module sends the requests that it
would send.
"""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dev import processes, state
from dev.artifact import Function
from dev.proof import AUTH, EXAMPLES, ProofError, Surroundings
from dev.standin_model.client import StandIn

HOST = "127.0.0.1"
USER = "streaming-user"
PATH = f"/api/{USER}/chat"
EVENTS = "text/event-stream"
SECONDS = 30  # for a server that hangs
BEFORE_PAUSE = ["accepted", "tool_started", "tool_finished", "text"]
"""The first events of a turn whose model pauses within its reply."""

Event = tuple[str, Any]


@dataclass(frozen=True)
class Server:
    """The function's HTTP server."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path


@dataclass
class Stream:
    """A response, read event by event."""

    connection: http.client.HTTPConnection
    response: http.client.HTTPResponse
    seen: list[Event] = field(default_factory=list)

    def read(self, names: list[str]) -> None:
        """Read these events, and no further. Raises ProofError when others come."""
        for _ in names:
            if (event := self._next()) is None:
                break
            self.seen.append(event)
        if (found := [name for name, _ in self.seen[-len(names) :]]) != names:
            raise ProofError(f"expected the events {names}, got {found}")

    def read_all(self) -> None:
        """Read to the end."""
        while (event := self._next()) is not None:
            self.seen.append(event)
        self.connection.close()

    def _next(self) -> Event | None:
        fields: dict[str, str] = {}
        for line in iter(self.response.readline, b""):
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if not name and "event" in fields:
                return fields["event"], json.loads(fields["data"])
            fields[name] = value
        return None


@dataclass(frozen=True)
class Client:
    """A client of the function, and the model that the function calls."""

    function: Function
    environment: dict[str, str]
    around: Surroundings

    @property
    def model(self) -> StandIn:
        """The stand-in model."""
        return StandIn(self.around.environment["OPENAI_BASE_URL"])

    @contextlib.contextmanager
    def server(self) -> Iterator[Server]:
        """Run the function's server until the end of the block."""
        port, log = processes.free_port(HOST), state.directory() / "smoke" / f"{self.function.name}.log"
        with log.open("ab") as output:
            process = processes.spawn(
                [self.function.directory / self.function.handler],
                output=output,
                cwd=self.function.directory,
                env=self.environment | {"AWS_LWA_PORT": str(port)},
            )
        try:
            processes.wait_until_listening(process, HOST, port)
            yield Server(process, port, log)
        except BaseException:
            print(f"The end of {state.shown(log)}:", *log.read_text().splitlines()[-20:], sep="\n", flush=True)
            raise
        finally:
            processes.stop(process, signal.SIGTERM)

    def say(self, server: Server, message: str, key: str, accept: str = EVENTS) -> Stream:
        """Send a message, and return the response. Raises ProofError if it is no 200."""
        connection = http.client.HTTPConnection(HOST, server.port, timeout=SECONDS)
        token = self.around.issuer.mint(USER, issuer=AUTH, audience=AUTH)
        headers = {
            "Accept": accept,
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "Idempotency-Key": key,
            "x-amzn-request-context": json.dumps({"requestId": key, "stage": "live"}),
            "x-amzn-lambda-context": json.dumps(self._lambda_context(key)),
        }
        connection.request("POST", PATH, json.dumps({"message": message}), headers)
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise ProofError(f"{key}: expected status 200, got {response.status}: {response.read().decode()}")
        return Stream(connection, response)

    def _lambda_context(self, request_id: str) -> dict[str, Any]:
        known = {"function_name": self.function.name, "memory": self.function.memory}
        deadline = int((time.time() + self.function.timeout) * 1000)
        arn = f"arn:aws:lambda:eu-west-1:123456789012:function:{self.function.name}:live"
        return {"request_id": request_id, "deadline": deadline, "invoked_function_arn": arn, "env_config": known}

    def say_and_pause(self, server: Server, key: str) -> Stream:
        """Begin a turn whose model pauses within its reply. Return when it does, and its first words are read."""
        self.model.fault("pause", match=EXAMPLES.add, after_calls=1, pieces=2, seconds=SECONDS)
        stream = self.say(server, EXAMPLES.add, key)
        stream.read(BEFORE_PAUSE)
        self.model.waiting(at_least=1)
        return stream


def smoke(function: Function, environment: dict[str, str], python: Path, around: Surroundings) -> None:
    """Start the function and read answers of all kinds. Raises ProofError or StartupError."""
    client = Client(function, _environment(function, environment, python), around)
    with client.server() as server:
        for step in (_answer_json, _stream_while_the_model_works, _go_on_without_the_client):
            step(client, server)
            _print_done(step.__name__)
        _check_log(server.log.read_text())
        cut = _fail_on_sigterm(client, server)
        _print_done(_fail_on_sigterm.__name__)
    with client.server() as server:
        _resume(client, server, cut)
        _print_done(_resume.__name__)


def _environment(function: Function, environment: dict[str, str], python: Path) -> dict[str, str]:
    """Return the variables that run.sh has on Lambda. The layer is all that Python finds beside the function."""
    programs = state.directory() / "smoke" / "bin"
    programs.mkdir()
    (programs / "python3.13").symlink_to(python)
    [layer] = function.layers
    return environment | {
        "PATH": os.pathsep.join((str(programs), os.defpath)),
        "PYTHONPATH": str(layer / "python"),
        "LAMBDA_RUNTIME_DIR": "/var/runtime",
        "AWS_LAMBDA_RUNTIME_API": f"{HOST}:9",  # the adapter asks it for events; no program does here
    }


def _answer_json(client: Client, server: Server) -> None:
    answer = json.loads(client.say(server, EXAMPLES.add, "json", accept="application/json").response.read())
    _expect([call["tool"] for call in answer["tool_calls"]], [EXAMPLES.tools[0]])


def _stream_while_the_model_works(client: Client, server: Server) -> None:
    """Read the first words while the model pauses: they did not wait for the others."""
    stream = client.say_and_pause(server, "slow")
    client.model.release()
    stream.read_all()
    _expect(_names(stream)[-1], "finished")
    _expect(_text(stream), stream.seen[-1][1]["response"])


def _go_on_without_the_client(client: Client, server: Server) -> None:
    """Leave in the middle. The turn goes on: the model is called twice in all, and the key replays the turn."""
    client.model.reset()
    client.say_and_pause(server, "left").connection.close()
    _expect(client.say(server, EXAMPLES.show, "other", accept="application/json").response.status, 200)
    _expect(client.model.waiting(), 1)
    client.model.release()
    again = client.say(server, EXAMPLES.add, "left")
    again.read_all()
    _expect(_names(again)[-1], "finished")
    _expect(len(client.model.requests(EXAMPLES.add)), 2)


def _fail_on_sigterm(client: Client, server: Server) -> Stream:
    """End the server in the middle of a turn: the stream ends with the problem, and with the calls so far."""
    stream = client.say_and_pause(server, "cut")
    server.process.send_signal(signal.SIGTERM)
    stream.read_all()
    server.process.wait(SECONDS)
    name, problem = stream.seen[-1]
    _expect((name, problem.get("type")), ("failed", "urn:taskchat:problem:unavailable"))
    _expect(problem["tool_calls"], [stream.seen[2][1]])
    return stream


def _resume(client: Client, server: Server, cut: Stream) -> None:
    """Send the same key to the next server: the lease is free, and the recorded call is not made again."""
    client.model.reset()
    stream = client.say(server, EXAMPLES.add, "cut")
    stream.read_all()
    _expect(_names(stream)[-1], "finished")
    _expect(stream.seen[-1][1]["tool_calls"], [cut.seen[2][1]])


def _check_log(log: str) -> None:
    lines = [json.loads(line) for line in log.splitlines()]
    _expect(
        {line["correlation_id"] for line in lines if line.get("message") == "tool call"},
        {"json", "slow", "left", "other"},
    )
    _expect([line["Status2xx"] for line in lines if "Status2xx" in line], [[1.0]] * 5)
    _expect([line["function_name"] for line in lines if "ColdStart" in line], ["StreamFunction"])


def _names(stream: Stream) -> list[str]:
    return [name for name, _ in stream.seen]


def _text(stream: Stream) -> str:
    """Return the last message of the model."""
    pieces = [data for name, data in stream.seen if name == "text"]
    return "".join(piece["text"] for piece in pieces if piece["message"] == pieces[-1]["message"])


def _expect(found: object, expected: object) -> None:
    if found != expected:
        raise ProofError(f"expected {expected}, got {found}")


def _print_done(step: str) -> None:
    print(f"stream: {step.strip('_').replace('_', ' ')}", flush=True)
