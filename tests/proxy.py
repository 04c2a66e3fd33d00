"""A wire between program and database that can be cut where a test says."""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

STEP = 0.05  # seconds between looks at whether the test is over


class Proxy:
    """Passes bytes on, until it is told to lose an answer, to refuse or to dawdle."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1]
        self.lose_answer_to: bytes | None = None
        """Bytes of a request: the next time they come by, they reach the server and its answer reaches nobody."""
        self.connect_delay = 0.0
        """Seconds that a connection takes to be made, as when the database has to wake."""
        self.answer_delay = 0.0
        """Seconds by which each answer is late."""
        self.lost = 0
        self._forgotten = self._opened = 0
        self._is_told = True
        self.said, self.heard = 0, 0
        """Bytes that the program sent, and that it was answered, since the last reset."""
        self.cut_saying: int | None = None
        self.cut_hearing: int | None = None
        """Bytes of the program's, or of its answers, after which the wire is cut: once, counted from the last reset."""
        self.dark = 0.0
        """Seconds for which nobody can connect after a loss or a cut."""
        self._dark_until = 0.0

    def forget_connections(self, *, tell: bool) -> None:
        """Carry nothing more on the connections there are: close them, or tell neither end, as a firewall does."""
        self._is_told = tell
        self._forgotten = self._opened

    def url(self, direct: str) -> str:
        """The same database, through this wire."""
        return direct.replace(f":{urlsplit(direct).port}/", f":{self.port}/")

    def reset(self) -> None:
        """Count from here, with nothing to go wrong."""
        self.lost, self.said, self.heard = 0, 0, 0
        self.lose_answer_to, self.cut_saying, self.cut_hearing, self.dark = None, None, None, 0.0

    def light(self) -> None:
        """Let everybody connect again."""
        self._dark_until = 0.0

    def start(self) -> None:
        """Accept connections from now on."""
        self._run(self._accept)

    def stop(self) -> None:
        """Cut everything."""
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
                if time.monotonic() < self._dark_until:
                    client.close()
                else:
                    self._run(self._pass_on, client)

    def _pass_on(self, client: socket.socket) -> None:
        self._opened += 1
        number = self._opened
        time.sleep(self.connect_delay)
        # Either end may hang up at any moment: that is what this wire is for.
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
                    self._over.wait(0 if self._is_told else None)
                    return

    def _measure(self, data: bytes, *, is_answer: bool) -> bytes:
        """Count the data, and return what of it gets through."""
        before, most = (self.heard, self.cut_hearing) if is_answer else (self.said, self.cut_saying)
        if most is not None and before + len(data) > most:
            self.cut_hearing, self.cut_saying = None, None
            data = data[: most - before]
        if is_answer:
            self.heard += len(data)
        else:
            self.said += len(data)
        return data

    def _lose(self) -> None:
        """Begin the time in which nobody can connect."""
        self._dark_until = time.monotonic() + self.dark
        self.lost += 1

    def _is_to_be_lost(self, data: bytes) -> bool:
        if self.lose_answer_to is None or self.lose_answer_to not in data.lower():
            return False
        self.lose_answer_to = None
        return True


@contextlib.contextmanager
def running(url: str) -> Iterator[Proxy]:
    """A wire to the database of the URL."""
    parts = urlsplit(url)
    proxy = Proxy(str(parts.hostname), int(parts.port or 5432))
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
