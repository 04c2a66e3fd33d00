"""Send any bytes as a model's provider, over a raw socket. The shapes are answers that attack the reader.

A shape is a generator. It yields bytes to send, and numbers of seconds to wait. An endless shape ends when the client
closes the connection.
"""

import contextlib
import gzip
import json
import random
import re
import select
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from itertools import count, repeat
from typing import Any, Final

from tests.domain import example

Script = Iterator[bytes | float]
Shape = Callable[[str], Script]
"""Make an answer of this API: responses or chat_completions."""
Json = dict[str, Any]

MEGABYTE: Final = 2**20
DRIP: Final = 0.02
"""Seconds between the pieces of a slow answer."""
PATIENCE: Final = 60


class RawProvider:
    """Answer each request with the next shape, and close the connection."""

    def __init__(self) -> None:
        self.shapes: list[Shape] = []
        """The next answers, in order. The last one stays."""
        self.requests: list[Json] = []
        """The bodies of the requests."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"

    def stop(self) -> None:
        """Close all connections."""
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._over.is_set():
                client, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._answer, args=[client]))
                self._threads[-1].start()

    def _answer(self, client: socket.socket) -> None:
        # A good client may close the connection at any moment.
        with contextlib.suppress(OSError), client:
            client.settimeout(PATIENCE)
            path, body = _request(client)
            self.requests.append(body)
            shape = self.shapes.pop(0) if len(self.shapes) > 1 else self.shapes[0]
            for step in shape("responses" if path.endswith("/responses") else "chat_completions"):
                if isinstance(step, float):
                    _check_open(client)
                    self._over.wait(step)
                else:
                    client.sendall(step)
                if self._over.is_set():
                    return


def _request(client: socket.socket) -> tuple[str, Json]:
    head = b""
    while b"\r\n\r\n" not in head:
        head += _received(client)
    head, _, body = head.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: *(\d+)", head.lower())[1])  # type: ignore[index] # every request has one
    while len(body) < length:
        body += _received(client)
    return head.split()[1].decode(), json.loads(body)


def _received(client: socket.socket) -> bytes:
    data = client.recv(65536)
    if not data:
        raise ConnectionResetError
    return data


def _check_open(client: socket.socket) -> None:
    if select.select([client], [], [], 0)[0]:
        _received(client)


@contextlib.contextmanager
def running() -> Iterator[RawProvider]:
    """Run a provider."""
    provider = RawProvider()
    try:
        yield provider
    finally:
        provider.stop()


def head(status: int = 200, *headers: str, framing: str = "Transfer-Encoding: chunked") -> bytes:
    """Return the first line and the headers of an answer."""
    types = [] if any(header.startswith("Content-Type") for header in headers) else ["Content-Type: application/json"]
    lines = [f"HTTP/1.1 {status} Any", *types, *headers, framing, "Connection: close"]
    return ("\r\n".join(filter(None, lines)) + "\r\n\r\n").encode()


def sized(content: bytes) -> str:
    """Return the header with the length."""
    return f"Content-Length: {len(content)}"


def chunk(content: bytes, extension: bytes = b"") -> bytes:
    """Return one chunk of a body."""
    return b"%x%b\r\n%b\r\n" % (len(content), extension, content)


def whole(content: bytes, status: int = 200, *headers: str) -> Script:
    """Send a well-formed answer with this content."""
    yield head(status, *headers, framing=sized(content))
    yield content


def bomb(megabytes: int, format_bits: int) -> bytes:
    """Return megabytes of blanks, compressed to a thousandth by zlib, in the format of gzip (31) or zlib (15)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, format_bits)
    blanks = b" " * MEGABYTE
    return b"".join(packer.compress(part) for part in repeat(blanks, megabytes)) + packer.flush()


def answer(api: str, items: list[Json], text: Any = "Done.", **extra: Any) -> Json:
    """Return a model's answer with these calls, or else with the text."""
    if api == "responses":
        part = {"type": "output_text", "text": text, "annotations": []}
        message = {"type": "message", "id": "msg", "role": "assistant", "status": "completed", "content": [part]}
        return {"id": "r", "status": "completed", "output": items or [message], **extra}
    message = {"role": "assistant", "content": text, **({"tool_calls": items} if items else {})}
    return {"id": "c", "choices": [{"index": 0, "finish_reason": "stop", "message": message}], **extra}


def call(api: str, arguments: str = "{}", name: str = example.list_tool) -> Json:
    """Return one tool call."""
    if api == "responses":
        return {"type": "function_call", "id": "fc", "call_id": "c", "name": name, "arguments": arguments}
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


def good_answer(api: str) -> Script:
    """Send the answer "Done."."""
    return whole(json.dumps(answer(api, [])).encode())


def text(content: str) -> Shape:
    """Make an answer with this body."""
    return lambda api: whole(content.encode())


def of_calls(number: int) -> Shape:
    """Make an answer with so many calls."""
    return lambda api: whole(json.dumps(answer(api, [call(api)] * number)).encode())


def of_arguments(arguments: str) -> Shape:
    """Make an answer with one call that has these arguments."""
    return lambda api: whole(json.dumps(answer(api, [call(api, arguments)])).encode())


def with_value(json_text: str) -> Shape:
    """Make an answer with this value as its items, its text, and an unknown field."""

    def shape(api: str) -> Script:
        place = '{"id": "r", "status": "completed", "output": %s, "choices": %s, "unknown": %s, "usage": %s}'
        return whole((place % ((json_text,) * 4)).encode())

    return shape


def in_message(json_text: str) -> Shape:
    """Make an answer whose message has this value as its parts."""

    def shape(api: str) -> Script:
        written = json.dumps(answer(api, [], text="PLACE"))
        return whole(written.replace('"PLACE"', json_text).encode())

    return shape


def encoded(content: bytes, encoding: str, status: int = 200) -> Shape:
    """Make an answer with a content encoding that the client did not ask for."""
    return lambda api: whole(content, status, f"Content-Encoding: {encoding}")


def endless(first: bytes, again: bytes, *, drip: bool = False) -> Shape:
    """Send the first bytes once, and the others for ever."""

    def shape(api: str) -> Script:
        yield first
        for _ in count():
            yield again
            if drip:
                yield DRIP

    return shape


def dripped(content: bytes) -> Shape:
    """Send the bytes one by one, and then blanks."""

    def shape(api: str) -> Script:
        for byte in content:
            yield bytes([byte])
            yield DRIP
        yield from endless(b"", b" ", drip=True)(api)

    return shape


def longest_text(api: str) -> Script:
    """Send as much text as an answer may have, and a call."""
    longest = answer(api, [call(api)], "y" * (MEGABYTE - 2_000))
    if api == "responses":
        longest["output"] += answer(api, [], "y" * (MEGABYTE - 2_000))["output"]
    return whole(json.dumps(longest).encode())


def many_cookies(api: str) -> Script:
    """Send thousands of cookies, which differ in each answer, and a call."""
    cookies = [f"Set-Cookie: {random.randbytes(4).hex()}=1" for _ in range(2_000)]  # noqa: S311 (names that differ)
    return whole(json.dumps(answer(api, [call(api)])).encode(), 200, *cookies)


def crowded(item: str, megabytes: float = 0.9) -> str:
    """Return a JSON list with as many items as fit in so many megabytes."""
    return "[" + ",".join([item] * int(megabytes * MEGABYTE / (len(item) + 1))) + "]"


BLANKS: Final = b" " * 65536
MANY: Final = 300_000
DEEP: Final = 200_000
GIGABYTE: Final = bomb(1_000, 31)
GIGABYTE_DEFLATED: Final = bomb(1_000, 15)
CHARSET: Final = "Content-Type: text/a; charset=punycode"
"""Python's codec takes time that grows with the square of the length."""

OF_BYTES: Final[dict[str, Shape]] = {
    "a gigabyte in gzip": encoded(GIGABYTE, "gzip"),
    "a gigabyte in deflate": encoded(GIGABYTE_DEFLATED, "deflate"),
    "gzip twice": encoded(gzip.compress(GIGABYTE), "gzip, gzip"),
    "gzip by another name": encoded(GIGABYTE, "X-GZIP"),
    "no gzip under its name": encoded(b"{}" * 1_000, "gzip"),
    "brotli": encoded(b"\xff" * 100_000, "br"),
    "zstd": encoded(b"\x28\xb5\x2f\xfd" * 10_000, "zstd"),
    "a gigabyte in gzip, as an error": encoded(GIGABYTE, "gzip", 500),
    "a gigabyte by a charset": lambda api: whole(GIGABYTE_DEFLATED, 500, "Content-Type: a/b; charset=zlib_codec"),
    "a charset that takes a day": lambda api: whole(b"a" * MEGABYTE + b"-" + b"b" * MEGABYTE, 500, CHARSET),
    "an endless body": endless(head(), chunk(BLANKS)),
    "an endless body without a length": endless(head(framing=""), BLANKS),
    "an endless body of a known length": endless(head(framing=f"Content-Length: {10**15}"), BLANKS),
    "an endless error": endless(head(500), chunk(BLANKS)),
    "an endless refusal": endless(head(429, "Retry-After: 0"), chunk(BLANKS)),
    "an endless redirect": endless(head(307, "Location: /v1/other"), chunk(BLANKS)),
    "an error of 300 MB": lambda api: whole(b"x" * (300 * MEGABYTE), 500),
    "chunks of a byte": endless(head(), chunk(b" ") * 10_000),
    "chunks with long names": endless(head(), chunk(b" ", b";a=" + b"x" * 60_000)),
    "an endless name of a chunk": endless(head() + b"1;a=", BLANKS),
    "an endless trailer": endless(head() + chunk(b"{}") + b"0\r\n", b"a: b\r\n" * 10_000),
    "an endless head": endless(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n" * 10_000),
    "an endless first line": endless(b"HTTP/1.1 200 ", b"a" * 65536),
    "an endless line of a head": endless(b"HTTP/1.1 200 OK\r\na: ", b"a" * 65536),
    "a head of five megabytes": lambda api: whole(b"{}", 200, *["a: " + "b" * 1_000] * 5_000),
    "answers before the answer": endless(b"", b"HTTP/1.1 103 Early\r\na: b\r\n\r\n" * 1_000),
    "answers before the answer, dripped": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", drip=True),
    "another protocol": endless(b"HTTP/1.1 101 Switching\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\n", BLANKS),
    "a length that is too short": lambda api: iter([head(framing="Content-Length: 5"), b'{"id": 1}' * 10_000]),
    "a length that is too long": lambda api: iter([head(framing="Content-Length: 5000"), b"{}"]),
    "two lengths": lambda api: iter([head(framing="Content-Length: 2\r\nContent-Length: 3"), b"{} "]),
    "a negative length": lambda api: iter([head(framing="Content-Length: -1"), b"{}"]),
    "no HTTP": endless(b"", b"\0" * 65536),
    "a dripped body": dripped(head() + chunk(b"{")),
    "a dripped head": endless(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n", drip=True),
    "a dripped error": endless(head(503), chunk(b" "), drip=True),
    "blanks of any length": endless(head(), chunk(b" " * 999), drip=True),
    "nothing": lambda api: iter([]),
    "a word": lambda api: iter([b"HTTP"]),
}
"""Answers with faults of HTTP, which are the same for each API."""

OF_JSON: Final[dict[str, Shape]] = {
    "300,000 calls": of_calls(MANY),
    "10,000 calls": of_calls(10_000),
    "calls, as many as fit": lambda api: of_calls((MEGABYTE - 200) // len(json.dumps(call(api)) + ", "))(api),
    "objects of no type": with_value(crowded("{}")),
    "objects of a type that there is not": with_value(crowded('{"type": "x"}', 0.2)),
    "lists in a list": with_value(crowded("[]", 0.2)),
    "numbers": with_value(crowded("1", 0.2)),
    "fractions": with_value(crowded("1.5", 0.2)),
    "a list that only opens": text("[" * MEGABYTE),
    "a deep list": with_value("[" * DEEP + "]" * DEEP),
    "an object that only opens": text('{"output":' * 100_000),
    "a list of some depth": with_value("[" * 900 + "]" * 900),
    "objects of some depth": with_value('{"type":' * 200 + "1" + "}" * 200),
    "a number of a million digits": with_value("1" * 200_000),
    "a fraction of a million digits": with_value("0." + "1" * 200_000),
    "an exponent": with_value("1e" + "9" * 200_000),
    "one name, many times": text("{" + ",".join(['"output": []'] * 70_000) + "}"),
    "many names": text("{" + ",".join(f'"{n}": {{}}' for n in range(70_000)) + "}"),
    "parts of a message": in_message(crowded('{"type": "output_text", "text": "x"}')),
    "parts of no type": in_message(crowded("{}")),
    "arguments of backslashes": of_arguments(json.dumps(["\\ud800" * 4_000])),
    "arguments of lone surrogates": of_arguments(json.dumps(["\ud800" * 4_000])),
    "arguments of a megabyte": of_arguments("{" + " " * 900_000),
    "arguments that only open": of_arguments("[" * 30_000),
    "a megabyte of text and a call, each time": longest_text,
    "cookies without end": many_cookies,
}
"""Answers with faults of the content."""

SHAPES: Final = OF_BYTES | OF_JSON
LASTING: Final = frozenset(
    {"chunks of a byte", "chunks with long names", "answers before the answer", "answers before the answer, dripped"}
    | {"a dripped body", "a dripped head", "a dripped error", "blanks of any length"}
)
"""The shapes that end only with the request's time."""


def any_shape(rng: random.Random) -> Shape:
    """Make a random answer: status, headers, framing, encoding, size, structure and speed."""
    status = rng.choice([200, 200, 200, 201, 204, 206, 301, 400, 401, 404, 418, 429, 500, 502, 503, 529, 599])
    content, encoding = _any_encoding(_any_content(rng), rng)
    headers = [*encoding, *rng.sample(ANY_HEADERS, rng.randrange(4))]
    framing = rng.choice(["Transfer-Encoding: chunked", sized(content), sized(content[:-1]), sized(content * 9), ""])
    in_chunks, ends = framing.startswith("Transfer"), rng.random() < 0.6
    size, pause = rng.choice([1, 7, 1_000, 65_536, MEGABYTE]), rng.choice([0.0, 0.0, 0.01, 0.3])

    def shape(api: str) -> Script:
        yield head(status, *headers, framing=framing)
        for body in repeat(content) if not ends else [content]:
            for start in range(0, len(body), size):
                part = body[start : start + size]
                yield chunk(part) if in_chunks else part
                yield from [pause] if pause else []
        yield b"0\r\n\r\n" if in_chunks else b""

    return shape


def _any_encoding(content: bytes, rng: random.Random) -> tuple[bytes, list[str]]:
    if rng.random() < 0.7:
        return content, []
    names = ["gzip", "deflate", "br", "zstd", "gzip, gzip", "identity", "x-gzip", "compress", "\xff", ""]
    name = rng.choice(names)
    return (gzip.compress(content) if "gzip" in name else content), [f"Content-Encoding: {name}"]


def _any_content(rng: random.Random) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return rng.randbytes(rng.choice([1, 100, 10_000, 2 * MEGABYTE]))
    if kind == 1:
        return rng.choice([b" ", b"[", b'{"output":', b'"', b"1", b"\0"]) * rng.choice([1, 1_000, 500_000])
    written = json.dumps(_any_answer(rng)).encode()
    return written if kind == 2 else written[: rng.randrange(1, len(written))]


def _any_answer(rng: random.Random) -> Json:
    api = rng.choice(["responses", "chat_completions"])
    items = [_any_item(api, rng)] * rng.choice([0, 1, 64, 65, 500, 20_000])
    usage = rng.choice([None, "x", [], 1, {"input_tokens": rng.choice([True, -1, 2**31, "9", 1e9, [], None])}])
    return answer(api, items, _any_value(rng, 4), usage=usage)


def _any_item(api: str, rng: random.Random) -> Json:
    item = call(api, rng.choice(["{}", "", "[", "[" * 9_000, "x" * 9_000]), rng.choice(["list_tasks", "\0", "x"]))
    if rng.random() < 0.5:
        item[rng.choice([*item, "content", "summary", "status"])] = _any_value(rng, 4)
    return item


def _any_value(rng: random.Random, depth: int) -> Any:
    if depth and rng.random() < 0.5:
        inner = [_any_value(rng, depth - 1) for _ in range(rng.randrange(5))]
        return inner if rng.random() < 0.5 else {f"k{n}": value for n, value in enumerate(inner)}
    return rng.choice([None, True, -1, 2**70, 1e300, "", "text", "\ud800", "x" * 5_000, "function_call", "message"])


ANY_HEADERS: Final = [
    *("Retry-After: 0", "Retry-After: -1", "Retry-After: 1e999", "Retry-After-Ms: x", "Retry-After: " + "9" * 5_000),
    *("Location: /v1/other", "Location: \xff", "Set-Cookie: a=b", "Content-Type: text/event-stream", CHARSET),
    *("Content-Type: text/html; charset=zlib_codec", "X-Request-Id: " + "x" * 5_000, "Upgrade: h2c", "Trailer: a"),
]


def seconds_of(action: Callable[[], Any]) -> float:
    """Return the seconds that the action takes."""
    began = time.monotonic()
    action()
    return time.monotonic() - began
