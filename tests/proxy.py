"""Forward bytes between program and server, and fail where a test says."""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from dev.postgres import Postgres

STEP = 0.05  # seconds between checks for the end of the test


class Proxy:
    """Forward bytes. On request lose an answer, cut a connection, refuse connections or delay answers."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1]
        self.lose_answer_to: bytes | None = None
        """Bytes of a request. The next request with these bytes reaches the server, and its answer is lost."""
        self.answered_before_loss = 0
        """Number of requests with these bytes that get their answer first."""
        self.connect_delay = 0.0
        """Seconds by which each connection is delayed, as when the database wakes from sleep."""
        self.answer_delay = 0.0
        """Seconds by which each answer is delayed."""
        self.lost = 0
        self._forgotten = self._opened = 0
        self._closes = True
        self.sent, self.received = 0, 0
        """Bytes that the program sent and received since the last reset."""
        self.cut_sent: int | None = None
        self.cut_received: int | None = None
        """Bytes in one direction, since the last reset, after which the proxy cuts the connection once."""
        self.refuse_for = 0.0
        """Seconds for which the proxy refuses connections after a loss or a cut."""
        self._refusing_until = 0.0

    def abandon_connections(self, *, close: bool) -> None:
        """Forward nothing more on the open connections. Close them, or keep both ends open as a firewall does."""
        self._closes = close
        self._forgotten = self._opened

    def refuse(self, seconds: float) -> None:
        """Close all connections, and refuse new ones for this time."""
        self._refusing_until = time.monotonic() + seconds
        self.abandon_connections(close=True)

    def url(self, direct: str) -> str:
        """Return the same URL with this proxy's port."""
        return direct.replace(f":{urlsplit(direct).port}/", f":{self.port}/")

    def reset(self) -> None:
        """Count from zero, and let nothing fail."""
        self.lost, self.sent, self.received, self.answered_before_loss = 0, 0, 0, 0
        self.lose_answer_to, self.cut_sent, self.cut_received, self.refuse_for = None, None, None, 0.0

    def accept_again(self) -> None:
        """Accept connections from now on."""
        self._refusing_until = 0.0

    def start(self) -> None:
        """Begin to listen."""
        self._run(self._accept)

    def stop(self) -> None:
        """Close all connections."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _run(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._over.is_set():
            if select.select([self._listener], [], [], STEP)[0]:
                client = self._listener.accept()[0]
                if time.monotonic() < self._refusing_until:
                    client.close()
                else:
                    self._run(self._pass_on, client)

    def _pass_on(self, client: socket.socket) -> None:
        self._opened += 1
        number = self._opened
        time.sleep(self.connect_delay)
        # Either end may close the connection at any moment.
        with contextlib.suppress(OSError), client, socket.create_connection(self._target) as server:
            while not self._over.is_set():
                for source in select.select([client, server], [], [], STEP)[0]:
                    if number <= self._forgotten:
                        break
                    data = source.recv(65536)
                    if not data:
                        return
                    if source is server:
                        time.sleep(self.answer_delay)
                    passed = self._measure(data, is_answer=source is server)
                    (server if source is client else client).sendall(passed)
                    if len(passed) < len(data):
                        return self._lose()
                    if source is client and self._is_to_be_lost(data):
                        server.recv(65536)  # the server has done it
                        return self._lose()
                if number <= self._forgotten:
                    self._over.wait(0 if self._closes else None)
                    return

    def _measure(self, data: bytes, *, is_answer: bool) -> bytes:
        """Count the data, and return the part before the cut."""
        before, most = (self.received, self.cut_received) if is_answer else (self.sent, self.cut_sent)
        if most is not None and before + len(data) > most:
            self.cut_received, self.cut_sent = None, None
            data = data[: most - before]
        if is_answer:
            self.received += len(data)
        else:
            self.sent += len(data)
        return data

    def _lose(self) -> None:
        """Count a lost answer, and refuse connections from now on for `refuse_for` seconds."""
        self._refusing_until = time.monotonic() + self.refuse_for
        self.lost += 1

    def _is_to_be_lost(self, data: bytes) -> bool:
        if self.lose_answer_to is None or self.lose_answer_to not in data.lower():
            return False
        if self.answered_before_loss:
            self.answered_before_loss -= 1
            return False
        self.lose_answer_to = None
        return True


@contextlib.contextmanager
def running(url: str) -> Iterator[Proxy]:
    """Run a proxy to the server of the URL."""
    parts = urlsplit(url)
    proxy = Proxy(str(parts.hostname), int(parts.port or 5432))
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()


class ThroughAProxy:
    """The fixtures of a class of tests whose program reaches Postgres through a proxy."""

    @pytest.fixture(scope="class")
    @classmethod
    def proxy(cls, server: Postgres) -> Iterator[Proxy]:
        """Run the proxy."""
        with running(server.app_url) as made:
            yield made

    @pytest.fixture(scope="class")
    @classmethod
    def database_url(cls, proxy: Proxy, server: Postgres) -> str:
        """Give the runtime role's URL through the proxy."""
        return proxy.url(server.app_url)

    @pytest.fixture(autouse=True)
    def reset_proxy(self, proxy: Proxy) -> Iterator[None]:
        """Let nothing fail after each test."""
        yield
        proxy.reset()
        proxy.accept_again()
