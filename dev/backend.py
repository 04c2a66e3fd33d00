"""Run on this machine what a turn needs: database, schema, model, and the server in front of them."""

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
# The developer's shell may name a real deployment. A server that gives out tokens must not read it.
NOT_INHERITED = ("APP_SECRET_ARN", "AUTH_JWKS_URL")
# The stand-in is on this machine: no request to it may go through a proxy.
STAND_IN = {"OPENAI_API_KEY": "stand-in", "MODEL": "stand-in", "NO_PROXY": "*", "no_proxy": "*"}
# npm goes through the developer's proxy.
FOR_NPM = {"npm_config_noproxy": f"localhost,{os.environ.get('NO_PROXY') or os.environ.get('no_proxy', '')}"}


Show = Callable[[str], None]
"""Gets each line of output that the terminal shows."""


def _hide(_line: str) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Backend:
    """A server that answers, and its process."""

    url: str
    process: subprocess.Popen[bytes]


@dataclass
class Progress:
    """Prints each step of the start, and how long it took."""

    stream: TextIO
    within_line: bool = False

    def print(self, line: str = "") -> None:
        """Print a line of its own, and flush it, for a pipe buffers."""
        print(f"\n{line}" if self.within_line else line, file=self.stream, flush=True)
        self.within_line = False

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Print the name before the block, and behind it the time that the block took."""
        print(f"  {name:<28}", end="", file=self.stream, flush=True)
        self.within_line, started, outcome = True, time.monotonic(), "not done"
        try:
            yield
            outcome = f"{time.monotonic() - started:5.1f} s"
        finally:
            print(outcome if self.within_line else f"  {name:<28}{outcome}", file=self.stream, flush=True)
            self.within_line = False


@contextlib.contextmanager
def running(port: int, progress: Progress, *, reload: bool, show: Show = _hide) -> Iterator[Backend]:
    """Start everything, yield once the server answers, and stop everything in reverse order.

    Raises StartupError. `show` gets the server's output in short; all of it goes to `server_log()`.
    """
    url, directory = _url(port), state.directory()
    with contextlib.ExitStack() as stack:
        with progress.step("Postgres"):
            database = stack.enter_context(postgres.running(directory / "postgres"))
        environment = _environment(url, database, Issuer.stored(directory / "issuer.pem"))
        with progress.step(_model_name()):
            environment |= stack.enter_context(_model())
            environment["AUTH_SERVER_DATABASE_URL"] = database.own_database("better_auth")
        # It starts before the migrations to save time: no client knows its address yet.
        process = stack.enter_context(_server(port, environment, show, reload=reload))
        with progress.step("migrations"):
            migrate(database, directory / "migrations.log")
        with progress.step("API"):
            _wait_until_ready(process, url)
        with _private(audit_url_file(), database.audit_url):
            yield Backend(url, process)


def _url(port: int) -> str:
    """Return the server's URL. Raises StartupError when the port is taken."""
    if (problem := processes.port_problem(HOST, port)) is not None:
        raise StartupError(f"{problem}: {_way_on(port)}.")
    return f"http://{HOST}:{port}"


def _way_on(port: int) -> str:
    """Return what helps when the port is taken: no other port does while a server uses this checkout's data."""
    if (running := state.server_url()) is not None and postgres.is_locked(state.directory() / "postgres"):
        return f"this checkout's make dev already runs at {running}"
    return f"try make dev PORT={port + 1}"


def server_log() -> Path:
    """Return the file that gets the server's output."""
    return state.directory() / "server.log"


def log_lines() -> Path:
    """Return the file that gets the JSON lines of the output, of every run: the log of the operator's commands."""
    return state.directory() / "log.jsonl"


def audit_url_file() -> Path:
    """Return the file in which a running server leaves the URL of the auditor's role for the operator's commands."""
    return state.directory() / "audit.url"


@contextlib.contextmanager
def _private(path: Path, text: str) -> Iterator[None]:
    """Keep the text, in a file that only its owner may read, while the block runs."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _environment(url: str, database: Postgres, issuer: Issuer) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    return (
        inherited
        | FOR_NPM
        | {
            "DATABASE_URL": database.app_url,
            "AUTH_ISSUER": url,
            "AUTH_AUDIENCE": url,
            "AUTH_JWKS_JSON": issuer.jwks_json,
            "MCP_RESOURCE_URL": f"{url}/mcp",
            "POWERTOOLS_SERVICE_NAME": "taskchat",
            "POWERTOOLS_METRICS_NAMESPACE": "taskchat",
        }
    )


def migrate(database: Postgres, log: Path) -> None:
    """Bring the schema up to date, and make the roles that do not exist. Raises StartupError."""
    urls = {
        "MIGRATION_DATABASE_URL": database.owner_url,
        "DATABASE_URL": database.app_url,
        "RETENTION_DATABASE_URL": database.retention_url,
        "AUDIT_DATABASE_URL": database.audit_url,
    }
    command = [sys.executable, "-m", "alembic", "upgrade", "head"]
    with log.open("w+") as file:
        done = subprocess.run(command, cwd=state.ROOT, env=urls, check=False, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        last = log.read_text().strip().splitlines()[-1:] or ["no reason given"]
        raise StartupError(f"The migrations failed: {last[0]} (the whole log: {state.shown(log)})")


def _model_name() -> str:
    return "stand-in model" if _needs_stand_in() else "model (OPENAI_API_KEY is set)"


def _needs_stand_in() -> bool:
    return not os.environ.get("OPENAI_API_KEY")


@contextlib.contextmanager
def _model() -> Iterator[dict[str, str]]:
    """Yield the variables of the stand-in model while it runs; none when the developer has a model's key."""
    if not _needs_stand_in():
        yield {}
        return
    with model.running(HOST, 0) as stand_in:
        yield STAND_IN | {"OPENAI_BASE_URL": stand_in.base_url}


@contextlib.contextmanager
def _server(port: int, environment: dict[str, str], show: Show, *, reload: bool) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "uvicorn", "dev.app:app", "--host", HOST, "--port", str(port)]
    command += ["--log-level", "warning", "--no-access-log", "--timeout-graceful-shutdown", str(GRACE_SECONDS)]
    if reload:
        command += ["--reload", *(f"--reload-dir={state.ROOT / name}" for name in ("functions", "shared"))]
    process = processes.spawn(command, output=subprocess.PIPE, cwd=state.ROOT, env=environment)
    assert process.stdout is not None  # noqa: S101 - asked for with PIPE
    copying = output.record(process.stdout, server_log(), log_lines(), show)
    try:
        yield process
    finally:
        processes.stop(process, signal.SIGTERM)
        copying.join(GRACE_SECONDS)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    for _ in processes.attempts(START_SECONDS):
        if process.poll() is not None:
            raise StartupError(f"The server ended while it started; {state.shown(server_log())} holds the reason.")
        with contextlib.suppress(client.UnreachableError):
            client.token(url)
            return
    raise StartupError(f"The server did not answer within {START_SECONDS} s; its log is {state.shown(server_log())}.")
