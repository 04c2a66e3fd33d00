"""Send the events in `events/` to the built artifact in Lambda's runtime interface emulator (`make smoke`).

The function has only what it has on Lambda: Python 3.13 without site packages, the artifact, the layer, the runtime's
own client, and the variables of the template.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev import artifact, client, processes, proof, smoke_streaming, state
from dev.artifact import ArtifactError, Function
from dev.client import UnreachableError
from dev.processes import StartupError
from dev.proof import Expected, ProofError, Surroundings

HOST = "127.0.0.1"
INVOKE = "/2015-03-31/functions/function/invocations"
LIMIT_SECONDS = 60  # the emulator ends a function at its own timeout; this is for an emulator that hangs
LAST_LINES = 20  # of the function's log, when something went wrong
LIMIT_MB = 180  # of memory, so that a function of 256 MB has room to spare


@dataclass(frozen=True)
class Tools:
    """The paths of the emulation's parts."""

    python: Path
    emulator: Path
    client: Path
    """The runtime interface client, which is in the managed runtime and not in the artifact."""


@dataclass(frozen=True)
class Emulated:
    """An emulated function that waits for events."""

    pid: int
    url: str

    def invoke(self, event: dict[str, Any]) -> dict[str, Any]:
        """Send the function one event and return its answer. Raises ProofError when the function fails."""
        _, answer = client.call(self.url, INVOKE, event, timeout=LIMIT_SECONDS)
        if not isinstance(answer, dict) or "errorType" in answer:
            raise ProofError(f"the function failed: {answer}")
        return answer

    def peak_megabytes(self) -> float:
        """Return the most memory that the function's process has had."""
        return max(map(_peak_megabytes, _descendants(self.pid)), default=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Send every event. The exit code is 1 when a result is not the expected one."""
    try:
        smoke(tools(arguments))
    except (ArtifactError, ProofError, StartupError, UnreachableError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    return 0


def smoke(used: Tools) -> dict[str, float]:
    """Send every event, check the answers and the rows, and return each function's peak memory in megabytes.

    Raises ProofError, ArtifactError, StartupError or UnreachableError.
    """
    functions = artifact.functions()
    with proof.surroundings("smoke") as around, contextlib.ExitStack() as stack:
        running: dict[str, Emulated] = {}
        for expected in proof.EXPECTED:
            name = expected.function
            if name not in running:
                running[name] = stack.enter_context(_emulated(functions[name], used, around.environment))
            _send(expected, running[name], around)
        with _emulated(functions[proof.RETENTION], used, around.environment) as retention:
            _delete_old_rows(retention)
        around.check(proof.EVERYTHING_KEPT)
        streaming = functions[proof.STREAM]
        smoke_streaming.smoke(streaming, _environment(streaming, used, around.environment), used.python, around)
        peaks = {name: function.peak_megabytes() for name, function in running.items()}
    print(f"The database holds the expected rows: {proof.EVERYTHING_KEPT}")
    return peaks


def _send(expected: Expected, function: Emulated, around: Surroundings) -> None:
    event = around.event(expected.event)
    started = time.perf_counter()
    answer = function.invoke(event)
    milliseconds = (time.perf_counter() - started) * 1000
    expected.check(answer)
    calls = ", ".join(proof.tool_calls(answer)) or "-"
    peak = function.peak_megabytes()
    print(f"{expected.event:<18} {answer['statusCode']}  {calls:<14} {milliseconds:8.1f} ms {peak:6.0f} MB", flush=True)
    if peak > LIMIT_MB:
        raise ProofError(f"{expected.event}: {peak:.0f} MB of memory, more than the limit of {LIMIT_MB}")


def _delete_old_rows(function: Emulated) -> None:
    """Invoke the retention function as EventBridge does. No row is old yet. Raises ProofError."""
    answer = function.invoke(json.loads((proof.EVENTS / "retention.json").read_text()))
    if not answer.get("finished") or not answer.get("deleted") or any(answer["deleted"].values()):
        raise ProofError(f"retention: expected a finished run that deletes nothing, got {answer}")
    print(
        f"{'retention':<18} finished, {len(answer['deleted'])} tables {function.peak_megabytes():21.0f} MB", flush=True
    )


@contextlib.contextmanager
def _emulated(function: Function, tools: Tools, environment: dict[str, str]) -> Iterator[Emulated]:
    """Run an emulator for the function, which it starts at the first event."""
    port = processes.free_port(HOST)
    log = state.directory() / "smoke" / f"{function.name}.log"
    with log.open("wb") as output:
        process = processes.spawn(
            _command(function, tools, port),
            output=output,
            cwd=function.directory,
            env=_environment(function, tools, environment),
        )
    try:
        processes.wait_until_listening(process, HOST, port)
        yield Emulated(process.pid, f"http://{HOST}:{port}")
    except BaseException:
        print(f"The end of {state.shown(log)}:", *log.read_text().splitlines()[-LAST_LINES:], sep="\n", file=sys.stderr)
        raise
    finally:
        _stop(process)


def _command(function: Function, tools: Tools, port: int) -> list[str | Path]:
    addresses = (
        f"--runtime-interface-emulator-address={HOST}:{port}",
        f"--runtime-api-address={HOST}:{processes.free_port(HOST)}",
    )
    return [tools.emulator, *addresses, tools.python, "-S", "-m", "awslambdaric", function.handler]


def _environment(function: Function, tools: Tools, environment: dict[str, str]) -> dict[str, str]:
    roots = (function.directory, *(layer / "python" for layer in function.layers), tools.client)
    return {
        **function.environment,
        **environment,
        "PATH": os.defpath,
        "PYTHONPATH": os.pathsep.join(map(str, roots)),
        "PYTHONDONTWRITEBYTECODE": "1",  # Lambda could not write any either
        "LAMBDA_TASK_ROOT": str(function.directory),
        "AWS_REGION": "eu-west-1",
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_TIMEOUT": str(function.timeout),
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory),
        "AWS_LAMBDA_LOG_FORMAT": "JSON",
    }


def _stop(emulator: subprocess.Popen[bytes]) -> None:
    """End the emulator, and the function, which the emulator would leave running."""
    children = _descendants(emulator.pid)
    processes.stop(emulator, signal.SIGTERM)
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    children = [
        int(child) for listed in Path(f"/proc/{pid}/task").glob("*/children") for child in listed.read_text().split()
    ]
    return children + [grandchild for child in children for grandchild in _descendants(child)]


def _peak_megabytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def tools(arguments: Sequence[str] | None) -> Tools:
    """Read the paths that the Makefile gives. Raises StartupError on a machine where the emulator cannot run."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise StartupError("The emulator and the artifact are for Linux on x86_64: use `make sam-local` here.")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, required=True, help="a Python 3.13; its site packages are not used")
    parser.add_argument("--sam", type=Path, required=True, help="the environment in which the SAM CLI is installed")
    given = parser.parse_args(arguments)
    [emulator] = given.sam.resolve().glob("lib/python*/site-packages/samcli/local/rapid/aws-lambda-rie-x86_64")
    return Tools(given.python, emulator, given.sam.resolve() / "awslambdaric")


if __name__ == "__main__":
    sys.exit(main())
