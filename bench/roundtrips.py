"""`python -m bench.roundtrips`: count the function's roundtrips to the database, on the connection to the pooler."""

import os
from dataclasses import dataclass

import taskchat.process  # noqa: F401  (fills the metadata, from which a new connection checks its role)
from bench import parts
from bench.parts import Parts, Worker
from bench.turn import HISTORIES, NEW, SUBJECTS, WARM_UP
from dev import pgbouncer
from taskchat.database.transaction import Database
from testing import counting_proxy


@dataclass(frozen=True)
class Turn:
    """Roundtrips and statements of one turn with one tool call."""

    roundtrips: int
    statements: int


@dataclass(frozen=True)
class Roundtrips:
    """Numbers of roundtrips to the database."""

    turns: dict[str, Turn]
    """Turns of ours and of the floor, on a warm connection."""
    connecting: int
    """Roundtrips to connect, with TLS, SCRAM and the check of the role, beyond the TCP handshake."""
    checking_out: int
    """Roundtrips to take a live connection from the pool."""


def measure(running: Parts) -> Roundtrips:
    """Count the roundtrips. Raises StartupError."""
    with pgbouncer.running(running.postgres, tls=False) as plain:  # so that the proxy can read the messages
        urls = {"ours": plain.url(running.postgres.app_url), "floor": plain.url(running.postgres.superuser_url)}
        turns = {name: _take(name, url, running) for name, url in urls.items()}
    return Roundtrips(turns, *_connect(running.environment["DATABASE_URL"]))


def _take(subject: str, url: str, running: Parts) -> Turn:
    with counting_proxy.running(url) as between:
        known = {"ours": "DATABASE_URL", "floor": "FLOOR_URL"}
        environment = os.environ | running.environment | {known[subject]: between.url(url)}
        worker = Worker("bench.turn", "--worker", subject, environment=environment)
        worker.ask([HISTORIES.index(NEW), WARM_UP])
        between.reset()
        worker.ask([HISTORIES.index(NEW), 1])
        found = Turn(between.roundtrips, len(between.statements))
        worker.stop()
    return found


def _connect(url: str) -> tuple[int, int]:
    """Return the roundtrips to connect, and to take the same connection again."""
    counts = []
    with counting_proxy.running(url) as between:
        database = Database(lambda: between.url(url))
        for _ in range(2):
            between.reset()
            with database.engine.connect():
                counts.append(between.roundtrips)
        database.close()
    return counts[0], counts[1]


def main() -> None:
    """Count and print the figures."""
    with parts.running() as running:
        found = measure(running)
    for name in SUBJECTS:
        turn = found.turns[name]
        print(f"{name}: {turn.roundtrips} roundtrips, {turn.statements} statements")
    print(f"connecting: {found.connecting} roundtrips; taking a live connection: {found.checking_out}")


if __name__ == "__main__":
    main()
