"""What a measured process needs around it: Postgres behind PgBouncer, as deployed, and the stand-in model.

Each is a process of its own, so that what the measured one spends is its own.
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
    """What runs, and the variables that lead to it."""

    postgres: Postgres
    pooler: PgBouncer
    model_url: str

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a measured process. `SUPERUSER_URL` is for what prepares and counts, not for a turn."""
        return {
            "DATABASE_URL": self.pooler.url(self.postgres.app_url),
            "SUPERUSER_URL": self.postgres.superuser_url,
            "FLOOR_URL": self.pooler.url(self.postgres.superuser_url),
            "OPENAI_BASE_URL": self.model_url,
            "OPENAI_API_KEY": "stand-in",
            "MODEL": "stand-in",
            "TURN_BURST": "999999",  # one person does it all
            "DAILY_MODEL_TOKENS": "999999999",
            "POWERTOOLS_SERVICE_NAME": "taskchat",
            "POWERTOOLS_METRICS_NAMESPACE": "taskchat",
            "NO_PROXY": "*",
        }


@contextlib.contextmanager
def running() -> Iterator[Parts]:
    """Run all parts for as long as the context lasts. Raises StartupError."""
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
    """A process that is measured: it answers one JSON line with another."""

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
        """The answer to a question. Raises RuntimeError when the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        return json.loads(answer)

    def stop(self) -> None:
        """End it."""
        processes.stop(self._process)  # type: ignore[arg-type]
