"""`python -m bench.distance HOST PORT`: a TCP proxy that delays each answer of a server.

It is a separate process, so that it adds nothing to the measured one. It forwards requests at once and delays every
answer by the same time: only the roundtrip gets longer, as with a network in between.
"""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Final
from urllib.parse import urlsplit

from dev import processes, state

ROUNDTRIP: Final = 0.0023
"""Seconds of a roundtrip between a function and a Neon database in one region."""

CHUNK: Final = 65_536


@contextlib.contextmanager
def away(url: str) -> Iterator[str]:
    """Run the proxy, and return the URL of the same database through it."""
    parts = urlsplit(url)
    command = [sys.executable, "-m", "bench.distance", str(parts.hostname), str(parts.port)]
    process = processes.spawn(command, output=subprocess.PIPE, cwd=state.ROOT)
    assert process.stdout is not None
    try:
        yield url.replace(f":{parts.port}/", f":{int(process.stdout.readline())}/")
    finally:
        processes.stop(process)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _delay(source: socket.socket, target: socket.socket) -> None:
    """Forward each received part one roundtrip later."""
    late: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
    threading.Thread(target=_deliver, args=(late, target), daemon=True).start()
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK):
            late.put((time.monotonic() + ROUNDTRIP, data))
    late.put((time.monotonic(), b""))


def _deliver(late: SimpleQueue[tuple[float, bytes]], target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            due, data = late.get()
            time.sleep(max(0.0, due - time.monotonic()))
            if not data:
                return target.shutdown(socket.SHUT_WR)
            target.sendall(data)


def main() -> None:
    """Print the port, and forward until stopped."""
    host, port = sys.argv[1], int(sys.argv[2])
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        client, _ = listener.accept()
        server = socket.create_connection((host, port))
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_pass_on, args=(client, server), daemon=True).start()
        threading.Thread(target=_delay, args=(server, client), daemon=True).start()


if __name__ == "__main__":
    main()
