"""Run the built artifact in containers with `sam local invoke` and `sam local start-api` (`make sam-local`).

The container engine is the machine's own. Postgres and the stand-in model listen at an address that only containers
reach. SAM pulls the runtime's public image, unless the machine has it.
"""

import argparse
import contextlib
import ipaddress
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev import client, processes, proof, state
from dev.client import UnreachableError
from dev.processes import StartupError
from dev.proof import Kept, ProofError, Surroundings
from dev.standin_model.domain import domain

HOST = "127.0.0.1"
EXAMPLES = domain.examples
IMAGE = "lambda/python:3.13-x86_64"
DESKTOP_NAME = "host.docker.internal"  # this machine's name in containers, if the engine runs in a virtual machine
START_SECONDS = 60
BUILT = state.ROOT / ".aws-sam" / "build"
CONTAINER_SECONDS = 100
INVOKE_SECONDS = 120  # a container, with a large layer mounted into it, is started for each event
BRIDGE = "{{range .IPAM.Config}}{{.Gateway}} {{.Subnet}}{{end}}"
AFTER_TURNS = Kept(things=[EXAMPLES.added] * 2, calls=[f"chat {EXAMPLES.tools[0]} ok"] * 2, messages=4)


@dataclass(frozen=True)
class Sam:
    """The SAM CLI, the template to run, and the file with the functions' variables."""

    program: Path
    template: Path
    variables: Path
    options: tuple[str, ...]

    @property
    def environment(self) -> Mapping[str, str]:
        """The machine's environment, which names the engine. SAM requires a region, though nothing calls it."""
        return {**os.environ, "SAM_CLI_TELEMETRY": "0", "AWS_DEFAULT_REGION": "eu-west-1"}

    def command(self, name: str, *arguments: str) -> list[str | Path]:
        """Return the command `sam local NAME` for the built artifact."""
        files: list[str | Path] = ["--template", self.template, "--env-vars", self.variables]
        return [self.program, "local", name, *files, *self.options, *arguments]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both commands. The exit code is 1 when a result is not the expected one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sam", type=Path, required=True, help="the SAM CLI")
    program = parser.parse_args(arguments).sam
    try:
        _prove(program)
    except (ProofError, StartupError, UnreachableError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    return 0


def _prove(program: Path) -> None:
    listen, reach = _addresses()
    with proof.surroundings("sam-local", listen=listen, reach=reach) as around:
        directory = state.directory() / "sam-local"
        options = ("--skip-pull-image",) if _has_image() else ()
        sam = Sam(program.absolute(), _patient_template(), directory / "variables.json", options)
        sam.variables.write_text(json.dumps({"Parameters": around.environment}))
        _prove_invoke(sam, around, directory)
        _prove_start_api(sam, around, directory)
        around.check(AFTER_TURNS)
    print(f"The database holds the expected rows: {AFTER_TURNS}")


def _patient_template() -> Path:
    """Return a copy of the built template whose functions may take CONTAINER_SECONDS. Raises ProofError.

    SAM counts the start of a container as part of the invocation. On a slow disk the start alone takes most of the 29
    seconds of the real template, where AWS counts it apart.
    """
    built = (BUILT / "template.yaml").read_text()
    patient = re.sub(r"^( +Timeout:) 29$", rf"\1 {CONTAINER_SECONDS}", built, flags=re.MULTILINE)
    if patient == built:
        raise ProofError("the built template has no Timeout of 29 seconds")
    copy = BUILT / "sam-local.yaml"  # beside the original: it names the built folders by relative paths
    copy.write_text(patient)
    return copy


def _prove_invoke(sam: Sam, around: Surroundings, directory: Path) -> None:
    """Check the answer that `sam local invoke` prints. Raises ProofError."""
    [expected] = (expected for expected in proof.EXPECTED if expected.event == "chat_add")
    sent = around.event(expected.event)
    sent["requestContext"]["timeEpoch"] = 0  # else the start of the container counts as time in the gateway
    event = directory / "chat_add.json"
    event.write_text(json.dumps(sent))
    with _timed("sam local invoke ChatFunction"), (directory / "invoke.log").open("wb") as log:
        done = subprocess.run(
            sam.command("invoke", expected.function, "--event", str(event)),
            cwd=state.ROOT,
            env=sam.environment,
            stdout=subprocess.PIPE,
            stderr=log,
            check=False,
            timeout=INVOKE_SECONDS,
        )
    if done.returncode != 0 or not done.stdout.strip():
        raise ProofError(f"sam local invoke ended with {done.returncode}; see {state.shown(directory)}/invoke.log")
    expected.check(json.loads(done.stdout.splitlines()[-1]))


def _prove_start_api(sam: Sam, around: Surroundings, directory: Path) -> None:
    """Check that `sam local start-api` serves the template's routes. Raises ProofError."""
    chat, message = f"/api/{around.user_id}/chat", {"message": EXAMPLES.add}
    with _api(sam, directory / "start-api.log") as url:
        turn = _request(url, 200, chat, message, {"Authorization": f"Bearer {around.token}"})
        if [(call["tool"], call["outcome"]) for call in turn["tool_calls"]] != [(EXAMPLES.tools[0], "ok")]:
            raise ProofError(f"expected one call of {EXAMPLES.tools[0]}, got {turn}")
        _request(url, 401, chat, message)
        _request(url, 200, "/health")
        _request(url, 404, "/no/such/path")
        _request(url, 401, "/mcp", {}, {"Host": proof.HOST})
        _request(url, 421, "/mcp", {})


def _request(
    url: str,
    expected: int,
    path: str,
    body: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Any:
    with _timed(f"{'GET' if body is None else 'POST'} {path} {expected}"):
        status, answer = client.call(url, path, body, headers, timeout=INVOKE_SECONDS)
    if status != expected:
        raise ProofError(f"{path}: expected {expected}, got {status} {answer}")
    return answer


@contextlib.contextmanager
def _api(sam: Sam, log: Path) -> Iterator[str]:
    """Run `sam local start-api` on a free port. It keeps its containers from one request to the next."""
    port = processes.free_port(HOST)
    with log.open("wb") as output:
        process = processes.spawn(
            sam.command("start-api", "--host", HOST, "--port", str(port), "--warm-containers", "LAZY"),
            output=output,
            last_signal=signal.SIGINT,
            cwd=state.ROOT,
            env=sam.environment,
        )
    try:
        processes.wait_until_listening(process, HOST, port, START_SECONDS)
        yield f"http://{HOST}:{port}"
    finally:
        processes.stop(process, signal.SIGINT, signal.SIGTERM, timeout=START_SECONDS)  # it removes its containers


@contextlib.contextmanager
def _timed(what: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    print(f"{what:<54} {time.monotonic() - started:6.2f} s", flush=True)


def _addresses() -> tuple[str, str]:
    """Return the address to listen on, and its name in containers. Raises StartupError without a container engine."""
    bridge = _docker("network", "inspect", "bridge", "--format", BRIDGE)
    if bridge is None:
        raise StartupError("There is no container engine: `docker network inspect bridge` must work.")
    address = _gateway(bridge)
    try:
        processes.free_port(address)
    except OSError:
        return HOST, DESKTOP_NAME
    return address, address


def _gateway(bridge: str) -> str:
    """Return the bridge's address. An engine that has run nothing yet gives only the network, and takes its first."""
    gateway, subnet = bridge.split(" ", 1)
    return gateway or str(next(ipaddress.ip_network(subnet.strip()).hosts()))


def _has_image() -> bool:
    images = _docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}") or ""
    return any(image.endswith(IMAGE) for image in images.splitlines())


def _docker(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.rstrip() if done.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
