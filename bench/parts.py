"""Run the parts around a measured process: Postgres behind PgBouncer, as deployed, and the stand-in model.

Each part is a separate process, so that it adds nothing to the CPU time of the measured one.
"""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dev import backend, pgbouncer, postgres, processes, state
from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres


@dataclass(frozen=True)
class Parts:
    """The running parts, and the environment variables of a process that uses them."""

    postgres: Postgres
    pooler: PgBouncer
    model_url: str

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables of a measured process. `SUPERUSER_URL` is for preparing and counting, not for turns."""
        return {
            "DATABASE_URL": self.pooler.url(self.postgres.app_url),
            "SUPERUSER_URL": self.postgres.superuser_url,
            "FLOOR_URL": self.pooler.url(self.postgres.superuser_url),
            "OPENAI_BASE_URL": self.model_url,
            "OPENAI_API_KEY": "stand-in",
            "MODEL": "stand-in",
            "TURN_BURST": "999999",  # one user sends every message
            "DAILY_MODEL_TOKENS": "999999999",
            "POWERTOOLS_SERVICE_NAME": "taskchat",
            "POWERTOOLS_METRICS_NAMESPACE": "taskchat",
            "NO_PROXY": "*",
        }


@contextlib.contextmanager
def running() -> Iterator[Parts]:
    """Run all parts until the context ends. Raises StartupError."""
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(postgres.temporary())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        backend.migrate(database, directory / "migrations.log")
        pooler = stack.enter_context(pgbouncer.running(database))
        yield Parts(database, pooler, stack.enter_context(_model()))


@contextlib.contextmanager
def _model() -> Iterator[str]:
    command = [sys.executable, "-m", "dev.standin_model"]
    process = subprocess.Popen(command, cwd=state.ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


class Worker:
    """A measured process, which answers each line of JSON with another."""

    def __init__(self, module: str, *arguments: str, environment: dict[str, str]) -> None:
        """Start `python -m module arguments` with these variables."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=state.ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, question: Any) -> Any:
        """Send a question and return the answer. Raises RuntimeError if the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        return json.loads(answer)

    def stop(self) -> None:
        """Stop the process."""
        processes.stop(self._process)  # type: ignore[arg-type]
