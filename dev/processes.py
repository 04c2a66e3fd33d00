"""Start and stop child processes, which end when their parent does, and run as another user what must not be root."""

import contextlib
import ctypes
import errno
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

POLL_SECONDS = 0.02
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class StartupError(Exception):
    """Raised when something that development needs cannot start; its text is the line that the command prints."""


@dataclass(frozen=True)
class Account:
    """The user and group that a server runs as."""

    uid: int
    gid: int


def unprivileged_account() -> Account | None:
    """Return the account for Postgres and PgBouncer, which refuse to run as root: `nobody` exists on every Unix.

    Return None when the user is not root: then the servers run as that user.
    """
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam("nobody")
    return Account(entry.pw_uid, entry.pw_gid)


def as_account(account: Account | None) -> dict[str, Any]:
    """Return the options of `subprocess` that switch to the account, without root's supplementary groups."""
    return {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": []}


def hand_over(path: Path, account: Account | None) -> None:
    """Make the account the owner of a file or directory that we made for it."""
    if account is not None:
        os.chown(path, account.uid, account.gid)


def reachable(path: Path, account: Account | None) -> bool:
    """Try as the account whether it can enter the directory or execute the file, so that ACLs count too."""
    check = subprocess.run(["test", "-x", path], check=False, **as_account(account))
    return check.returncode == 0


def spawn(
    command: Sequence[str | Path],
    *,
    output: IO[Any] | int,
    account: Account | None = None,
    last_signal: signal.Signals = signal.SIGTERM,
    **options: Any,
) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own: Ctrl-C reaches only the parent, which stops its children in order.

    If the parent is killed and cannot stop it, the kernel sends it `last_signal` (Linux only).
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_signal_on_parents_death(last_signal),
        **as_account(account),
        **options,
    )


def _signal_on_parents_death(last_signal: signal.Signals) -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def in_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, int(last_signal))
        if os.getppid() != parent:  # the parent died before the line above
            os._exit(1)

    return in_child


def leave_with_parent(last_signal: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel to signal this process when its parent dies (for a process that `spawn` did not start)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(last_signal))


def stop(process: subprocess.Popen[bytes], *signals: signal.Signals, timeout: float = 10) -> None:
    """Send each signal in turn and wait for the process to end; kill it if none helped."""
    for number in (*signals, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout)


def _interrupt() -> None:
    raise KeyboardInterrupt


def stop_on_signals(stop: Callable[[], object] = _interrupt) -> None:
    """Let the first signal that stops a program raise KeyboardInterrupt, and ignore the others during the cleanup.

    Ctrl-C sends two: one from the terminal and one from make, which passes its own on. With `stop`, the signal calls
    that instead.
    """
    if "MAKELEVEL" in os.environ:
        leave_with_parent()

    def once(_number: int, _frame: FrameType | None) -> None:
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)
        stop()

    for number in STOPPING:
        signal.signal(number, once)


def free_port(host: str) -> int:
    """Return a port that is free at this moment; another program may still take it first."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def port_problem(host: str, port: int) -> str | None:
    """Return why a server cannot listen there, or None. Ask before starting other servers in vain."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            return f"Port {port} on {host} {reason}"
    return None


def attempts(seconds: float) -> Iterator[None]:
    """Yield until the time is over, with a short pause after each: the loop's body tries its condition each time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(POLL_SECONDS)


def wait_until_listening(process: subprocess.Popen[bytes], host: str, port: int, seconds: float = 30) -> None:
    """Return once a client can connect. Raises StartupError when the process ends first, or takes too long."""
    for _ in attempts(seconds):
        if process.poll() is not None:
            raise StartupError(f"{process.args!r} ended with {process.returncode} while it started.")
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=seconds):
            return
    raise StartupError(f"Nothing listens on {host}:{port} after {seconds} s.")


def command_line(pid: int) -> str:
    """Return the command line of the process, or "" when there is no such process."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return ""
    found = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, check=False, text=True)
    return found.stdout
