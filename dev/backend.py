"""Everything a turn needs, on this machine: database, schema, model, and the server in front of them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from dev import client, output, postgres, processes, state
from dev import standin_model as model
from dev.postgres import Postgres
from dev.processes import StartupError
from dev.tokens import Issuer

HOST = "127.0.0.1"
START_SECONDS = 60
GRACE_SECONDS = 3  # for the requests that run when the server is stopped
# A person's shell may name their real deployment. Nothing of that may reach a server that hands out tokens.
NOT_INHERITED = ("APP_SECRET_ARN", "AUTH_JWKS_URL")
# It is on this machine, where a company's proxy has no business.
STAND_IN = {"OPENAI_API_KEY": "stand-in", "MODEL": "stand-in", "NO_PROXY": "*", "no_proxy": "*"}


@dataclass(frozen=True)
class Backend:
    """A server that answers, with everything behind it."""

    url: str
    process: subprocess.Popen[bytes]


@dataclass
class Progress:
    """Tells a person what is being waited for, and how long it took."""

    stream: TextIO
    within_line: bool = False

    def say(self, line: str = "") -> None:
        """Print a line of its own, at once, also into a pipe."""
        print(f"\n{line}" if self.within_line else line, file=self.stream, flush=True)
        self.within_line = False

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Print the name, and behind it the time when the block is done."""
        print(f"  {name:<28}", end="", file=self.stream, flush=True)
        self.within_line, started, outcome = True, time.monotonic(), "not done"
        try:
            yield
            outcome = f"{time.monotonic() - started:5.1f} s"
        finally:
            print(outcome if self.within_line else f"  {name:<28}{outcome}", file=self.stream, flush=True)
            self.within_line = False


@contextlib.contextmanager
def running(
    port: int, progress: Progress, *, reload: bool, show: Callable[[str], None] = lambda _line: None
) -> Iterator[Backend]:
    """Start everything, yield once the server answers, and stop everything in reverse order.

    Raises StartupError. `show` gets the server's output in short; all of it goes to `server.log`.
    """
    url, directory = f"http://{HOST}:{port}", state.directory()
    log = directory / "server.log"
    if (trouble := processes.port_trouble(HOST, port)) is not None:
        raise StartupError(f"{trouble}: try make dev PORT={port + 1}.")
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with progress.step("Postgres"):
            database = stack.enter_context(postgres.running(directory / "postgres"))
        environment = _environment(url, database, Issuer.stored(directory / "issuer.pem"))
        with progress.step(_model_name()):
            environment |= stack.enter_context(_model())
        # Nobody knows the address yet: it may import what it needs while the schema is brought up to date.
        process = stack.enter_context(_server(port, environment, log, show, reload=reload))
        with progress.step("migrations"):
            migrate(database, directory / "migrations.log")
        with progress.step("API"):
            _wait_until_ready(process, url, log)
        yield Backend(url, process)


def _environment(url: str, database: Postgres, issuer: Issuer) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    return inherited | {
        "DATABASE_URL": database.app_url,
        "AUTH_ISSUER": url,
        "AUTH_AUDIENCE": url,
        "AUTH_JWKS_JSON": issuer.jwks_json,
        "MCP_RESOURCE_URL": f"{url}/mcp",
        "POWERTOOLS_SERVICE_NAME": "taskchat",
        "POWERTOOLS_METRICS_NAMESPACE": "taskchat",
    }


def migrate(database: Postgres, log: Path) -> None:
    """Bring the schema up to date, and make the runtime role if it is not there. Raises StartupError."""
    urls = {"MIGRATION_DATABASE_URL": database.owner_url, "DATABASE_URL": database.app_url}
    command = [sys.executable, "-m", "alembic", "upgrade", "head"]
    with log.open("w+") as file:
        done = subprocess.run(command, cwd=state.ROOT, env=urls, check=False, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        last = log.read_text().strip().splitlines()[-1:] or ["no reason given"]
        raise StartupError(f"The migrations failed: {last[0]} (all of it: {state.shown(log)})")


def _model_name() -> str:
    return "stand-in model" if _stands_in() else "model (OPENAI_API_KEY is set)"


def _stands_in() -> bool:
    return not os.environ.get("OPENAI_API_KEY")


@contextlib.contextmanager
def _model() -> Iterator[dict[str, str]]:
    """What the environment must say about the model: nothing new when a person brought their own."""
    if not _stands_in():
        yield {}
        return
    with model.running(HOST, 0) as stand_in:
        yield STAND_IN | {"OPENAI_BASE_URL": stand_in.base_url}


@contextlib.contextmanager
def _server(
    port: int, environment: dict[str, str], log: Path, show: Callable[[str], None], *, reload: bool
) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "uvicorn", "dev.app:app", "--host", HOST, "--port", str(port)]
    command += ["--log-level", "warning", "--no-access-log", "--timeout-graceful-shutdown", str(GRACE_SECONDS)]
    if reload:
        command += ["--reload", *(f"--reload-dir={state.ROOT / name}" for name in ("functions", "shared"))]
    process = processes.spawn(command, output=subprocess.PIPE, cwd=state.ROOT, env=environment)
    assert process.stdout is not None  # noqa: S101 - asked for with PIPE
    copying = output.record(process.stdout, log, show)
    try:
        yield process
    finally:
        processes.stop(process, signal.SIGTERM)
        copying.join(GRACE_SECONDS)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in processes.attempts(START_SECONDS):
        if process.poll() is not None:
            raise StartupError(f"The server ended while it started; why is in {state.shown(log)}.")
        with contextlib.suppress(client.UnreachableError):
            client.token(url)
            return
    raise StartupError(f"The server did not answer within {START_SECONDS} s; its log is {state.shown(log)}.")
