"""A wire to the database that counts how often the client waits for it, and can be cut at any byte."""

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

QUIET = 0.02
"""Seconds without a word from the client until it is taken to be waiting. It never pauses in the middle of speaking."""


class Wire:
    """Passes bytes on, an answer only when the client has nothing more to say, however either side's bytes arrive."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._stop_receiver, self._stop_sender = socket.socketpair()
        self._threads: list[threading.Thread] = []
        self._is_cut = False
        self.port: int = self._listener.getsockname()[1]
        self.delay = 0.0
        """Seconds that an answer takes on its way, in place of waiting for the client to be quiet."""
        self.roundtrips = 0
        """Times that the client spoke and had to wait. The TCP handshake is not among them."""
        self.said, self.heard = b"", b""
        """All that the client said, and what it was answered. Readable where it is not encrypted."""
        self.cut_saying: int | None = None
        self.cut_hearing: int | None = None
        """Bytes of the client's, or of its answers, after which the wire is cut: once, counted from the last reset."""
        self.is_mute = False
        """Whether answers to connections that exist are kept from the client, for as long as these last."""

    @property
    def statements(self) -> list[str]:
        """The statements in what the client said since the last reset, in order."""
        spoken = [message for message in messages(self.said) if message[:1] in b"PQ"]
        return [message[5:].strip(b"\0").split(b"\0")[0].decode() for message in spoken]  # a Parse's name is empty

    def url(self, direct: str) -> str:
        """The same database, through this wire."""
        return direct.replace(f":{urlsplit(direct).port}/", f":{self.port}/")

    def reset(self) -> None:
        """Count from here."""
        self.roundtrips, self.said, self.heard = 0, b"", b""

    def start(self) -> None:
        """Accept connections from now on."""
        self._run(self._accept)

    def stop(self) -> None:
        """Cut everything."""
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
        """What of the data gets through."""
        before, most = (self.heard, self.cut_hearing) if is_answer else (self.said, self.cut_saying)
        if most is not None and len(before) + len(data) > most:
            self._is_cut, self.cut_hearing, self.cut_saying = True, None, None
            data = data[: most - len(before)]
        self.heard, self.said = (before + data, self.said) if is_answer else (self.heard, before + data)
        return data


def messages(stream: bytes) -> list[bytes]:
    """The protocol's messages in a stream that begins with one."""
    found = []
    while stream:
        size = struct.unpack("!i", stream[1:5])[0] + 1
        found.append(stream[:size])
        stream = stream[size:]
    return found


@contextlib.contextmanager
def running(url: str) -> Iterator[Wire]:
    """A wire to the database of the URL."""
    parts = urlsplit(url)
    wire = Wire(str(parts.hostname), int(parts.port or 5432))
    wire.start()
    try:
        yield wire
    finally:
        wire.stop()
