"""A proxy before the database that counts how often the client waits, and can cut the connection at any byte."""

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

QUIET = 0.02
"""Seconds without a byte from the client after which it counts as waiting. It never pauses inside a message."""


class CountingProxy:
    """Pass bytes on. An answer waits until the client has sent all it has, so that timing does not change the count."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._stop_receiver, self._stop_sender = socket.socketpair()
        self._threads: list[threading.Thread] = []
        self._is_cut = False
        self.port: int = self._listener.getsockname()[1]
        self.delay = 0.0
        """Seconds by which each answer is delayed. With a delay the proxy does not wait for the client."""
        self.roundtrips = 0
        """Times that the client sent something and waited. The TCP handshake is not counted."""
        self.sent, self.received = b"", b""
        """Bytes from the client and from the database since the last reset. Readable without TLS."""
        self.cut_sent: int | None = None
        self.cut_received: int | None = None
        """Bytes in one direction, since the last reset, after which the proxy cuts the connection once."""
        self.is_mute = False
        """Keep all further answers from the connections that are open now."""

    @property
    def statements(self) -> list[str]:
        """List the statements that the client sent since the last reset."""
        sent_messages = [message for message in messages(self.sent) if message[:1] in b"PQ"]
        return [
            message[5:].strip(b"\0").split(b"\0")[0].decode() for message in sent_messages
        ]  # a Parse's name is empty

    def url(self, direct: str) -> str:
        """Return the URL of the same database through this proxy."""
        return direct.replace(f":{urlsplit(direct).port}/", f":{self.port}/")

    def reset(self) -> None:
        """Start all counts at zero."""
        self.roundtrips, self.sent, self.received = 0, b"", b""

    def start(self) -> None:
        """Accept connections."""
        self._run(self._accept)

    def stop(self) -> None:
        """Close all connections and stop."""
        self._stop_sender.close()
        for thread in self._threads:
            thread.join()
        for end in (self._listener, self._stop_receiver):
            end.close()

    def _run(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while self._stop_receiver not in self._ready(self._listener):
            self._run(self._pass_on, self._listener.accept()[0])

    def _ready(self, *sources: socket.socket, timeout: float | None = None) -> list[socket.socket]:
        return select.select([*sources, self._stop_receiver], [], [], timeout)[0]

    def _pass_on(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self._target) as server:
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            has_answer, muted = True, False
            while self._stop_receiver not in (ready := self._ready(client, server)):
                if client not in ready and not self.delay and self._ready(client, timeout=QUIET):
                    continue
                source, other = (client, server) if client in ready else (server, client)
                data = source.recv(65536)
                if not data:
                    return
                if source is client:
                    self.roundtrips += has_answer
                else:
                    time.sleep(self.delay)
                    muted |= self.is_mute
                    self.is_mute = False
                    data = b"" if muted else data
                has_answer = source is server
                other.sendall(self._measure(data, is_answer=has_answer))
                if self._is_cut:
                    self._is_cut = False
                    return

    def _measure(self, data: bytes, *, is_answer: bool) -> bytes:
        """Count the data, and return the part before the cut."""
        before, most = (self.received, self.cut_received) if is_answer else (self.sent, self.cut_sent)
        if most is not None and len(before) + len(data) > most:
            self._is_cut, self.cut_received, self.cut_sent = True, None, None
            data = data[: most - len(before)]
        self.received, self.sent = (before + data, self.sent) if is_answer else (self.received, before + data)
        return data


def messages(stream: bytes) -> list[bytes]:
    """Split a stream into the messages of the Postgres protocol."""
    found = []
    while stream:
        size = struct.unpack("!i", stream[1:5])[0] + 1
        found.append(stream[:size])
        stream = stream[size:]
    return found


@contextlib.contextmanager
def running(url: str) -> Iterator[CountingProxy]:
    """Run a proxy to the database of the URL."""
    parts = urlsplit(url)
    proxy = CountingProxy(str(parts.hostname), int(parts.port or 5432))
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
