"""Run PgBouncer in front of the embedded Postgres: transaction pooling and TLS, as on Neon's pooled endpoint."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import psycopg
from psycopg.rows import dict_row

from dev import certificates, processes
from dev.certificates import Certificates
from dev.postgres import SUPERUSER, Postgres
from dev.processes import StartupError

START_SECONDS = 10
HOST = "127.0.0.1"
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"  # Debian's place for it, which an ordinary user's PATH lacks

# PgBouncer looks roles up in Postgres, so a role that a migration or a test has just made can log in. With the role's
# SCRAM secret, PgBouncer can also log in to Postgres as that role.
CONFIGURATION = """\
[databases]
* = host={host} port={port} auth_user={superuser}

[pgbouncer]
listen_addr = {listen_host}
listen_port = {listen_port}
unix_socket_dir =
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 10000
auth_type = scram-sha-256
auth_file = {auth_file}
auth_query = SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1 AND rolcanlogin
admin_users = {superuser}
server_tls_sslmode = disable
"""
TLS = """\
client_tls_sslmode = require
client_tls_key_file = {key}
client_tls_cert_file = {certificate}
"""


@dataclass
class PgBouncer:
    """A running pooler, and the URLs through it."""

    port: int
    postgres: Postgres
    directory: Path
    certificates: Certificates | None
    process: subprocess.Popen[bytes]

    def url(self, direct: str) -> str:
        """Return the URL through the pooler for the role and database of the direct URL."""
        parts = urlsplit(direct)
        return f"{parts.scheme}://{parts.username}:{parts.password}@{HOST}:{self.port}{parts.path}?{self._tls()}"

    def show(self, what: str) -> list[dict[str, Any]]:
        """Return the rows of the admin console's SHOW command: "pools", "stats", "clients", "servers"."""
        with self.console() as console:
            return console.execute(f"SHOW {what}").fetchall()

    def restart(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Drop every connection, as an update of the pooler does, and start again on the same port."""
        self.stop(number)
        self.process = _started(self.directory)
        self.wait()

    @property
    def log(self) -> Path:
        """The file of its log since its last start."""
        return self.directory / "log"

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop it with its connections: at once, or with SIGINT after the running transactions."""
        processes.stop(self.process, number)

    def wait(self) -> None:
        """Return once it accepts connections."""
        for _ in processes.attempts(START_SECONDS):
            if self.process.poll() is not None:
                break
            with contextlib.suppress(psycopg.OperationalError):
                self.console().close()
                return
        self.stop()
        raise StartupError(f"PgBouncer could not start: {self.log.read_text(errors='replace')[-300:]}")

    def console(self) -> psycopg.Connection[dict[str, Any]]:
        """Return a connection to the admin console, for many commands."""
        url = self.url(f"postgresql://{SUPERUSER}:{quote(self.postgres.passwords[SUPERUSER])}@-/pgbouncer")
        # The console has no prepared statements, and the driver would prepare a command at its sixth run.
        return psycopg.connect(url, autocommit=True, row_factory=dict_row, prepare_threshold=None)

    def _tls(self) -> str:
        if self.certificates is None:
            return "sslmode=disable"
        return urlencode({"sslmode": "require", "sslrootcert": self.certificates.authority}, safe="/")


@contextlib.contextmanager
def running(postgres: Postgres, *, pool_size: int = 5, tls: bool = True) -> Iterator[PgBouncer]:
    """Run a pooler on a free port for the block. Raises StartupError when it cannot start."""
    with tempfile.TemporaryDirectory(prefix="taskchat-pgbouncer-") as name:
        directory, port = Path(name), processes.free_port(HOST)
        issued = certificates.issue(directory) if tls else None
        _configure(directory, postgres, port, pool_size, issued)
        pooler = PgBouncer(port, postgres, directory, issued, _started(directory))
        try:
            pooler.wait()
            yield pooler
        finally:
            pooler.stop()


def _configure(directory: Path, postgres: Postgres, port: int, pool_size: int, issued: Certificates | None) -> None:
    users = directory / "users"
    users.touch(mode=0o600)
    users.write_text(f'"{SUPERUSER}" "{postgres.passwords[SUPERUSER]}"\n')
    configuration = CONFIGURATION.format(
        host=postgres.host,
        port=postgres.port,
        superuser=SUPERUSER,
        listen_host=HOST,
        listen_port=port,
        pool_size=pool_size,
        auth_file=users,
    )
    if issued is not None:
        configuration += TLS.format(key=issued.key, certificate=issued.certificate)
    (directory / "pgbouncer.ini").write_text(configuration)
    account = processes.unprivileged_account()
    for path in (directory, *directory.iterdir()):
        processes.hand_over(path, account)


def _started(directory: Path) -> subprocess.Popen[bytes]:
    executable = shutil.which("pgbouncer", path=PATH)
    if executable is None:
        raise StartupError("PgBouncer is not installed: apt-get install pgbouncer (or brew install pgbouncer).")
    account = processes.unprivileged_account()
    with (directory / "log").open("wb") as log:
        return processes.spawn([executable, str(directory / "pgbouncer.ini")], output=log, account=account, cwd="/")
