"""`python -m bench.streams`: measure streamed answers over HTTP, from one server process with a slow model.

The clients take each event when it arrives. The stand-in model notes when it sends its first piece of text: the clock
is the same for all processes of a machine.
"""

import contextlib
import http.client
import json
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Final, cast
from uuid import uuid4

from bench import distance, parts
from bench.figures import Figure, table
from bench.parts import Parts
from bench.throughput import HOST, Client, serving
from dev.standin_model import StandIn
from dev.tokens import Issuer
from testing.callers import Caller, identity

APP: Final = "bench.watched:app"
WARM_UP: Final = 10

SINGLE: Final = 60
"""Streams in sequence, for the times of the first events."""

LONG: Final = 5
"""Streams of a thousand tokens, for the CPU."""

STREAMS: Final = 50
"""Streams at once."""

FLAT: Final = 2_000
"""Streams in sequence by `READERS` clients, for the memory."""

READERS: Final = 8

SHORT_TOKENS: Final = 20

LONG_TOKENS: Final = 1_000

LONG_MS: Final = 2.0
"""Milliseconds between two tokens of a long stream."""

AT_ONCE_TOKENS: Final = 120

AT_ONCE_MS: Final = 100.0
"""Milliseconds between two tokens of each of `STREAMS`. A stream takes 12 s, in which its lease is renewed."""

STARTING: Final = 4.0
"""Seconds over which the starts of `STREAMS` are spread, so that their transactions do not come all at once."""

LOOK_SECONDS: Final = 0.1
"""Seconds between two looks at the model's requests."""

JSON_TURNS: Final = 40
"""Turns of the client that asks for JSON, alone. Beside the streams, it runs turns until they end."""


BESIDES: Final = (
    "The token check, uvicorn, FastAPI, two writes to the socket and the client take the rest. It is the same when the"
    " database is a roundtrip away and the transaction takes longer."
)


@dataclass(frozen=True)
class Arrived:
    """An event, with the monotonic time at which the client had it."""

    at: float
    name: str
    data: Any


def read_events(lines: Iterable[bytes]) -> Iterator[Arrived]:
    """Read server-sent events, each when its last line is there. Skip comments."""
    fields: dict[str, str] = {}
    for line in lines:
        if text := line.decode().rstrip("\r\n"):
            name, _, value = text.partition(":")
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            yield Arrived(time.monotonic(), fields.get("event", "message"), json.loads(fields["data"]))
            fields = {}


@dataclass(frozen=True)
class Taken:
    """A stream that one client took, with times in seconds."""

    began: float
    events: list[Arrived]

    @property
    def accepted_ms(self) -> float:
        """Return the milliseconds from the request to the first event."""
        return (self.events[0].at - self.began) * 1000

    @property
    def first_text(self) -> float:
        """Return the monotonic time at which the first text arrived."""
        return next(event.at for event in self.events if event.name == "text")

    @property
    def seconds(self) -> float:
        return self.events[-1].at - self.began


@dataclass(frozen=True)
class Reader:
    """A client that takes streams in sequence over one connection."""

    caller: Caller
    connection: socket.socket

    @classmethod
    @contextlib.contextmanager
    def new(cls, port: int, issuer: Issuer) -> Iterator["Reader"]:
        """Connect as a new user."""
        with socket.create_connection((HOST, port), timeout=120) as connection:
            yield cls(Caller.new(issuer), connection)

    def take(self, message: str) -> Taken:
        """Send a message, and read the stream to its end, which must be `finished`."""
        request, began = self._request(message), time.monotonic()
        self.connection.sendall(request)
        with contextlib.closing(http.client.HTTPResponse(self.connection)) as response:
            response.begin()
            assert response.status == 200, response.read()
            taken = Taken(began, list(read_events(response)))
        assert (taken.events[0].name, taken.events[-1].name) == ("accepted", "finished"), taken.events
        return taken

    def _request(self, message: str) -> bytes:
        """Return the whole request. `http.client` would send its body in a second packet."""
        body = json.dumps({"message": message})
        head = (
            f"POST /api/{self.caller.id}/chat HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {self.caller.token}\r\n"
            f"Content-Type: application/json\r\nAccept: text/event-stream\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return f"{head}{body}".encode()


@dataclass(frozen=True)
class First:
    """The times of the first events of a stream: medians, in milliseconds."""

    begin: float
    """The first transaction."""
    accepted: float
    """From the request to `accepted`."""
    text: float
    """From the model's first piece of text to the client's."""

    @property
    def ratio(self) -> float:
        """Return the time to `accepted`, to that of the first transaction."""
        return self.accepted / self.begin


@dataclass(frozen=True)
class Together:
    """`STREAMS` streams at once, with another user's JSON turns beside them."""

    text_ms: float
    """Median, from the model's first piece of text to the client's."""
    longest: float
    """Seconds of the longest stream."""
    alone: float
    """Seconds of one stream alone."""
    turn_ms: float
    """A JSON turn while all streams run: the median."""
    slowest_turn_ms: float
    turn_alone_ms: float


@dataclass(frozen=True)
class Streams:
    """All measured values."""

    near: First
    away: First
    cpu_ms: float
    """CPU of the server for a thousand tokens more."""
    together: Together
    number: int
    """Streams of the measurement of memory."""
    megabytes: dict[int, float]
    """Resident memory after so many streams."""

    @property
    def growth(self) -> float:
        """Return the memory at the end, to that after a tenth of the streams."""
        return self.megabytes[self.number] / self.megabytes[self.number // 10]


class Bench:
    """A server process, its clients and its model."""

    def __init__(self, port: int, issuer: Issuer, model: StandIn) -> None:
        self.port, self.issuer, self.model = port, issuer, model

    @classmethod
    @contextlib.contextmanager
    def running(cls, running: Parts, *, is_away: bool = False) -> Iterator["Bench"]:
        """Start a server, and warm it up. Raises StartupError."""
        issuer = Issuer.new()
        environment = os.environ | running.environment | identity(issuer)
        with contextlib.ExitStack() as stack:
            if is_away:
                environment["DATABASE_URL"] = stack.enter_context(distance.away(environment["DATABASE_URL"]))
            bench = cls(stack.enter_context(serving(APP, environment)), issuer, StandIn(running.model_url))
            bench.take(WARM_UP)
            yield bench

    def reader(self) -> contextlib.AbstractContextManager[Reader]:
        """Return a new client."""
        return Reader.new(self.port, self.issuer)

    def cost(self) -> dict[str, Any]:
        """Return what the server says of its cost."""
        with contextlib.closing(http.client.HTTPConnection(HOST, self.port, timeout=60)) as connection:
            connection.request("GET", "/bench")
            return cast(dict[str, Any], json.loads(connection.getresponse().read()))

    def take(self, number: int, tokens: int = SHORT_TOKENS, milliseconds: float = 0) -> list[Taken]:
        """Take so many streams in sequence."""
        with self.reader() as reader:
            return [reader.take(message) for message in self.messages(number, tokens, milliseconds)]

    def messages(self, number: int, tokens: int, milliseconds: float) -> list[str]:
        """Return messages that the model answers with so many tokens."""
        self.model.reset()
        common = f"tell {uuid4().hex}"
        self.model.fault("drip", match=common, times=None, tokens=tokens, milliseconds=milliseconds)
        return [f"{common} {at:04}" for at in range(number)]

    def first_pieces(self, messages: Iterable[str]) -> list[float]:
        """Wait until the model has begun each answer, and return the monotonic times of the first pieces of text.

        Call it before other turns: the stand-in keeps its last 500 requests.
        """
        while True:
            begun = {record["message"]: record["first_piece"] for record in self.model.requests()}
            if all(begun.get(message) for message in messages):
                return [begun[message] for message in messages]
            time.sleep(LOOK_SECONDS)


def _text_ms(streams: Iterable[Taken], first_pieces: Iterable[float]) -> float:
    """Return the median time from the model's first piece of text to the client's."""
    return median((taken.first_text - sent) * 1000 for taken, sent in zip(streams, first_pieces, strict=True))


def figures(found: Streams) -> Iterator[Figure]:
    """Yield the figures, with their targets."""
    name, together = "time to `accepted`, to that of the first transaction", found.together
    yield Figure(name, found.near.ratio, "", 1.3, why=BESIDES)
    yield Figure(f"{name}, the database a roundtrip away", found.away.ratio, "", 1.3, why=BESIDES)
    yield Figure("from the model's first token to the client's", found.near.text, "ms", 5)
    yield Figure("CPU of 1,000 streamed tokens", found.cpu_ms, "ms")
    yield Figure(f"longest of {STREAMS} streams at once, to one alone", together.longest / together.alone, "", 1.2)
    yield Figure(f"slowest JSON turn beside {STREAMS} streams of 12 s", together.slowest_turn_ms, "ms", 500)
    yield Figure(f"memory after {found.number:,} streams, to that after a tenth", found.growth, "", 1.02)


def report(found: Streams) -> Iterator[str]:
    """Yield the figures as a table of the page."""
    together = found.together
    rows = [
        (f"the first transaction, {place}", first.begin, f"request to `accepted`, {place}", first.accepted)
        for place, first in (("the database on this machine", found.near), ("a roundtrip away", found.away))
    ]
    rows += [
        ("first token, one stream", found.near.text, f"first token, {STREAMS} streams", together.text_ms),
        ("JSON turn alone", together.turn_alone_ms, f"JSON turn beside {STREAMS} streams", together.turn_ms),
        ("one stream alone", together.alone * 1000, f"longest of {STREAMS} streams", together.longest * 1000),
    ]
    yield from table(((one, f"{a:,.1f}", other, f"{b:,.1f}") for one, a, other, b in rows), ("", "ms", "", "ms"))


def measure(running: Parts, *, is_quick: bool = False) -> Streams:
    """Measure all. Takes about three minutes. Raises StartupError."""
    share = 10 if is_quick else 1
    with Bench.running(running, is_away=True) as bench:
        away = _first(bench, SINGLE // share)
    with Bench.running(running) as bench:
        near = _first(bench, SINGLE // share)
        cpu = _cpu(bench, max(1, LONG // share))
        together = _together(bench)
        number = FLAT // share
        return Streams(near, away, cpu, together, number, _memory(bench, number))


def _first(bench: Bench, number: int) -> First:
    messages = bench.messages(number, SHORT_TOKENS, 5)
    with bench.reader() as reader:
        taken = [reader.take(message) for message in messages]
    begins = bench.cost()["begins"][-number:]
    accepted = median(stream.accepted_ms for stream in taken)
    return First(median(begins), accepted, _text_ms(taken, bench.first_pieces(messages)))


def _cpu(bench: Bench, number: int) -> float:
    """Return the CPU milliseconds of a thousand tokens: those of a long stream, without those of one with one token."""
    spent: list[float] = []
    for tokens in (LONG_TOKENS + 1, 1):
        before = bench.cost()["cpu"]
        bench.take(number, tokens, LONG_MS)
        spent.append((bench.cost()["cpu"] - before) * 1000 / number)
    return spent[0] - spent[1]


def _together(bench: Bench) -> Together:
    client = Client(bench.port, *_person(bench.issuer))
    turns_alone = [_milliseconds(client) for _ in range(JSON_TURNS)]
    [alone] = bench.take(1, AT_ONCE_TOKENS, AT_ONCE_MS)
    messages = bench.messages(STREAMS, AT_ONCE_TOKENS, AT_ONCE_MS)
    with ThreadPoolExecutor(STREAMS) as pool, contextlib.ExitStack() as stack:
        readers = [stack.enter_context(bench.reader()) for _ in messages]
        delays = [at * STARTING / STREAMS for at in range(STREAMS)]
        running = [pool.submit(_take_later, *each) for each in zip(delays, readers, messages, strict=True)]
        first_pieces = bench.first_pieces(messages)
        turns = []
        while not any(each.done() for each in running):
            turns.append(_milliseconds(client))
        streams = [each.result() for each in running]
    text_ms, longest = _text_ms(streams, first_pieces), max(stream.seconds for stream in streams)
    return Together(text_ms, longest, alone.seconds, median(turns), max(turns), median(turns_alone))


def _take_later(delay: float, reader: Reader, message: str) -> Taken:
    time.sleep(delay)
    return reader.take(message)


def _person(issuer: Issuer) -> tuple[str, str]:
    caller = Caller.new(issuer)
    return caller.id, caller.token


def _milliseconds(client: Client) -> float:
    began = time.monotonic()
    client.run(1)
    return (time.monotonic() - began) * 1000


def _memory(bench: Bench, number: int) -> dict[int, float]:
    """Return the server's memory after each tenth of the streams."""
    found = {}
    for done in range(number // 10, number + 1, number // 10):
        _take_in_parallel(bench, number // 10)
        found[done] = bench.cost()["megabytes"]
    return found


def _take_in_parallel(bench: Bench, number: int) -> None:
    messages = bench.messages(number, SHORT_TOKENS, 0)
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(partial(_take_each, bench), [messages[at::READERS] for at in range(READERS)]))


def _take_each(bench: Bench, messages: list[str]) -> None:
    with bench.reader() as reader:
        for message in messages:
            reader.take(message)


def main() -> None:
    """Measure and print the figures."""
    with parts.running() as running:
        found = measure(running, is_quick="--quick" in sys.argv)
    print(*table(figure.cells for figure in figures(found)), "", *report(found), sep="\n")


if __name__ == "__main__":
    main()
