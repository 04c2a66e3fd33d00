"""A model's provider that sends any bytes at all, over a raw socket, and the shapes of answers that attack its reader.

A shape is a generator: what it yields is sent, and a number is a time to wait in seconds. An endless one ends when the
client hangs up.
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

Script = Iterator[bytes | float]
Shape = Callable[[str], Script]
"""An answer by the API that it is for: responses or chat_completions."""
Json = dict[str, Any]

MEGABYTE: Final = 2**20
DRIP: Final = 0.02
"""Seconds between the pieces of an answer that drips."""
PATIENCE: Final = 60


class RawProvider:
    """A server that answers each request by the shape it was told last, and hangs up."""

    def __init__(self) -> None:
        self.shapes: list[Shape] = []
        """The answers to come, in their order; the last one is given for ever."""
        self.heard: list[Json] = []
        """The bodies of the requests."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"

    def stop(self) -> None:
        """Hang up on everybody."""
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
        # The client may hang up at any moment: a good one does.
        with contextlib.suppress(OSError), client:
            client.settimeout(PATIENCE)
            path, body = _request(client)
            self.heard.append(body)
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
    """A provider, until the end of the block."""
    provider = RawProvider()
    try:
        yield provider
    finally:
        provider.stop()


def head(status: int = 200, *headers: str, framing: str = "Transfer-Encoding: chunked") -> bytes:
    """The beginning of an answer."""
    types = [] if any(header.startswith("Content-Type") for header in headers) else ["Content-Type: application/json"]
    lines = [f"HTTP/1.1 {status} Any", *types, *headers, framing, "Connection: close"]
    return ("\r\n".join(filter(None, lines)) + "\r\n\r\n").encode()


def sized(content: bytes) -> str:
    """The header that tells the length."""
    return f"Content-Length: {len(content)}"


def chunk(content: bytes, extension: bytes = b"") -> bytes:
    """A part of a body in chunks."""
    return b"%x%b\r\n%b\r\n" % (len(content), extension, content)


def whole(content: bytes, status: int = 200, *headers: str) -> Script:
    """An answer as it should be, but for what is in it."""
    yield head(status, *headers, framing=sized(content))
    yield content


def bomb(megabytes: int, format_bits: int) -> bytes:
    """So many megabytes of blanks, packed into a thousandth of that by zlib: in gzip's format (31) or its own (15)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, format_bits)
    blanks = b" " * MEGABYTE
    return b"".join(packer.compress(part) for part in repeat(blanks, megabytes)) + packer.flush()


def answer(api: str, items: list[Json], text: Any = "Done.", **extra: Any) -> Json:
    """What a model says: the calls, or else the text."""
    if api == "responses":
        part = {"type": "output_text", "text": text, "annotations": []}
        message = {"type": "message", "id": "msg", "role": "assistant", "status": "completed", "content": [part]}
        return {"id": "r", "status": "completed", "output": items or [message], **extra}
    message = {"role": "assistant", "content": text, **({"tool_calls": items} if items else {})}
    return {"id": "c", "choices": [{"index": 0, "finish_reason": "stop", "message": message}], **extra}


def call(api: str, arguments: str = "{}", name: str = "list_tasks") -> Json:
    """One call of a tool."""
    if api == "responses":
        return {"type": "function_call", "id": "fc", "call_id": "c", "name": name, "arguments": arguments}
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


def well(api: str) -> Script:
    """What a model that is well answers."""
    return whole(json.dumps(answer(api, [])).encode())


def text(content: str) -> Shape:
    """A body of this text."""
    return lambda api: whole(content.encode())


def of_calls(number: int) -> Shape:
    """An answer with so many calls."""
    return lambda api: whole(json.dumps(answer(api, [call(api)] * number)).encode())


def of_arguments(arguments: str) -> Shape:
    """A call with these arguments."""
    return lambda api: whole(json.dumps(answer(api, [call(api, arguments)])).encode())


def with_value(json_text: str) -> Shape:
    """An answer with this in the place of its items, of its text, and in a field that nobody knows."""

    def shape(api: str) -> Script:
        place = '{"id": "r", "status": "completed", "output": %s, "choices": %s, "unknown": %s, "usage": %s}'
        return whole((place % ((json_text,) * 4)).encode())

    return shape


def in_message(json_text: str) -> Shape:
    """A message with this in the place of its parts."""

    def shape(api: str) -> Script:
        written = json.dumps(answer(api, [], text="PLACE"))
        return whole(written.replace('"PLACE"', json_text).encode())

    return shape


def packed(content: bytes, encoding: str, status: int = 200) -> Shape:
    """A body under an encoding that nobody asked for."""
    return lambda api: whole(content, status, f"Content-Encoding: {encoding}")


def endless(first: bytes, again: bytes, *, drip: bool = False) -> Shape:
    """The first bytes, and then others for ever."""

    def shape(api: str) -> Script:
        yield first
        for _ in count():
            yield again
            if drip:
                yield DRIP

    return shape


def dripped(content: bytes) -> Shape:
    """The bytes one by one, and then blanks."""

    def shape(api: str) -> Script:
        for byte in content:
            yield bytes([byte])
            yield DRIP
        yield from endless(b"", b" ", drip=True)(api)

    return shape


def talkative(api: str) -> Script:
    """As much text as an answer may have, and one call more."""
    said = answer(api, [call(api)], "y" * (MEGABYTE - 2_000))
    if api == "responses":
        said["output"] += answer(api, [], "y" * (MEGABYTE - 2_000))["output"]
    return whole(json.dumps(said).encode())


def baker(api: str) -> Script:
    """An answer with thousands of cookies that no other has, and one call more."""
    cookies = [f"Set-Cookie: {random.randbytes(4).hex()}=1" for _ in range(2_000)]  # noqa: S311 (names that differ)
    return whole(json.dumps(answer(api, [call(api)])).encode(), 200, *cookies)


def crowded(item: str, megabytes: float = 0.9) -> str:
    """A JSON list of as many items as so many megabytes hold."""
    return "[" + ",".join([item] * int(megabytes * MEGABYTE / (len(item) + 1))) + "]"


BLANKS: Final = b" " * 65536
MANY: Final = 300_000
DEEP: Final = 200_000
GIGABYTE: Final = bomb(1_000, 31)
GIGABYTE_DEFLATED: Final = bomb(1_000, 15)
CHARSET: Final = "Content-Type: text/a; charset=punycode"
"""A codec of Python's whose time grows with the square of the length."""

OF_BYTES: Final[dict[str, Shape]] = {
    "a gigabyte in gzip": packed(GIGABYTE, "gzip"),
    "a gigabyte in deflate": packed(GIGABYTE_DEFLATED, "deflate"),
    "gzip twice": packed(gzip.compress(GIGABYTE), "gzip, gzip"),
    "gzip by another name": packed(GIGABYTE, "X-GZIP"),
    "no gzip under its name": packed(b"{}" * 1_000, "gzip"),
    "brotli": packed(b"\xff" * 100_000, "br"),
    "zstd": packed(b"\x28\xb5\x2f\xfd" * 10_000, "zstd"),
    "a gigabyte in gzip, as an error": packed(GIGABYTE, "gzip", 500),
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
"""Answers at which HTTP is what is odd, so that they are the same for each API."""

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
    "a megabyte of text and a call, each time": talkative,
    "cookies without end": baker,
}
"""Answers at which the content is."""

SHAPES: Final = OF_BYTES | OF_JSON
LASTING: Final = frozenset(
    {"chunks of a byte", "chunks with long names", "answers before the answer", "answers before the answer, dripped"}
    | {"a dripped body", "a dripped head", "a dripped error", "blanks of any length"}
)
"""The shapes that nothing but the time of the request ends."""


def any_shape(chance: random.Random) -> Shape:
    """An answer that is put together by chance: status, headers, framing, packing, size, structure, and pace."""
    status = chance.choice([200, 200, 200, 201, 204, 206, 301, 400, 401, 404, 418, 429, 500, 502, 503, 529, 599])
    content, encoding = _any_packing(_any_content(chance), chance)
    headers = [*encoding, *chance.sample(ANY_HEADERS, chance.randrange(4))]
    framing = chance.choice(["Transfer-Encoding: chunked", sized(content), sized(content[:-1]), sized(content * 9), ""])
    in_chunks, ends = framing.startswith("Transfer"), chance.random() < 0.6
    size, pause = chance.choice([1, 7, 1_000, 65_536, MEGABYTE]), chance.choice([0.0, 0.0, 0.01, 0.3])

    def shape(api: str) -> Script:
        yield head(status, *headers, framing=framing)
        for body in repeat(content) if not ends else [content]:
            for start in range(0, len(body), size):
                part = body[start : start + size]
                yield chunk(part) if in_chunks else part
                yield from [pause] if pause else []
        yield b"0\r\n\r\n" if in_chunks else b""

    return shape


def _any_packing(content: bytes, chance: random.Random) -> tuple[bytes, list[str]]:
    if chance.random() < 0.7:
        return content, []
    names = ["gzip", "deflate", "br", "zstd", "gzip, gzip", "identity", "x-gzip", "compress", "\xff", ""]
    name = chance.choice(names)
    return (gzip.compress(content) if "gzip" in name else content), [f"Content-Encoding: {name}"]


def _any_content(chance: random.Random) -> bytes:
    kind = chance.randrange(4)
    if kind == 0:
        return chance.randbytes(chance.choice([1, 100, 10_000, 2 * MEGABYTE]))
    if kind == 1:
        return chance.choice([b" ", b"[", b'{"output":', b'"', b"1", b"\0"]) * chance.choice([1, 1_000, 500_000])
    written = json.dumps(_any_answer(chance)).encode()
    return written if kind == 2 else written[: chance.randrange(1, len(written))]


def _any_answer(chance: random.Random) -> Json:
    api = chance.choice(["responses", "chat_completions"])
    items = [_any_item(api, chance)] * chance.choice([0, 1, 64, 65, 500, 20_000])
    told = chance.choice([None, "x", [], 1, {"input_tokens": chance.choice([True, -1, 2**31, "9", 1e9, [], None])}])
    return answer(api, items, _any_value(chance, 4), usage=told)


def _any_item(api: str, chance: random.Random) -> Json:
    item = call(api, chance.choice(["{}", "", "[", "[" * 9_000, "x" * 9_000]), chance.choice(["list_tasks", "\0", "x"]))
    if chance.random() < 0.5:
        item[chance.choice([*item, "content", "summary", "status"])] = _any_value(chance, 4)
    return item


def _any_value(chance: random.Random, depth: int) -> Any:
    if depth and chance.random() < 0.5:
        inner = [_any_value(chance, depth - 1) for _ in range(chance.randrange(5))]
        return inner if chance.random() < 0.5 else {f"k{n}": value for n, value in enumerate(inner)}
    return chance.choice([None, True, -1, 2**70, 1e300, "", "text", "\ud800", "x" * 5_000, "function_call", "message"])


ANY_HEADERS: Final = [
    *("Retry-After: 0", "Retry-After: -1", "Retry-After: 1e999", "Retry-After-Ms: x", "Retry-After: " + "9" * 5_000),
    *("Location: /v1/other", "Location: \xff", "Set-Cookie: a=b", "Content-Type: text/event-stream", CHARSET),
    *("Content-Type: text/html; charset=zlib_codec", "X-Request-Id: " + "x" * 5_000, "Upgrade: h2c", "Trailer: a"),
]


def seconds_of(action: Callable[[], Any]) -> float:
    """How long it takes."""
    began = time.monotonic()
    action()
    return time.monotonic() - began
