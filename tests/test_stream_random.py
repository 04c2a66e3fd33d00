"""Streamed turns in random order, with faults of the model, the database, the clients and the lease's renewals.

Two servers share a database. Each speaks one of the model APIs, and reaches Postgres through a proxy that fails at
random. Users ask in all protocols, leave, come back by another protocol or on the other server, and read along. Leases
are renewed every few milliseconds, and some renewals lose their answer.

Promises: no event is out of order. A list with an end is the turn as Postgres has it: its calls, results and reply. A
call that was shown stays. The same key gives each effect once, and in the end one answer, in every protocol. No list
holds another user's text.
"""

import http.client
import json
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from taskchat.conversations import renewal
from taskchat.conversations.renewal import LeaseHolder, renew
from taskchat.database.transaction import Database
from taskchat.errors import TaskchatError
from taskchat.http.gateway import MARGIN
from taskchat.tasks import toolset
from testing.callers import Caller
from tests import db_assertions, proxy
from tests.conftest import serving, variables
from tests.db_assertions import Rows
from tests.domain import example
from tests.example_domain import Sentence
from tests.proxy import Proxy
from tests.stream_lists import AI_SDK, EVENTS, JSON, STREAMS, Asked, Shown, read

Json = dict[str, Any]
Report = Callable[[str], None]
TURNS = 1_000 if "THOROUGH" in os.environ else 120
AT_ONCE = 2
"""Users that ask at the same time, each for one turn after the other."""
PEOPLE = 3
"""Conversations of each of them go on, until a new user takes their place."""
ATTEMPTS = 40
"""Requests after which a turn must be done. Its faults are over by then."""
DEADLINE = 5.0
SEED = int(os.environ.get("STREAM_SEED") or random.SystemRandom().randrange(10**6))
RESUME = "resume"
"""The way of the AI SDK's client to read a turn along."""

KINDS: list[Callable[[str], Sentence]] = [
    lambda mark: Sentence(f"hello {mark}"),
    lambda mark: example.add(f"{mark}a"),
    lambda mark: example.add(f"{mark}a", f"{mark}b", f"{mark}c", f"{mark}d"),
    lambda mark: example.add(f"{mark}a", f"{mark}b").then(example.change(f"{mark}a")),
    lambda mark: example.add(f"{mark}a").then(example.delete(f"{mark}a")),
    lambda mark: example.add(f"{mark}a").then(example.rename(f"{mark}a", f"{mark}b")),
    lambda mark: example.add(f"{mark}a").then(example.show()),
    lambda mark: example.fail().then(example.add(f"{mark}a")),
]
EFFECTS = {
    example.add_tool: "insert",
    example.change_tool: "update",
    example.rename_tool: "update",
    example.delete_tool: "delete",
}
MODEL_FAULTS: list[tuple[str, Json]] = [
    ("rate_limit", {"retry_after_ms": 10}),
    ("rate_limit", {"retry_after_ms": 10, "times": 3}),
    ("server_error", {}),
    ("disconnect", {}),
    ("disconnect_midway", {}),
    ("malformed_body", {}),
    ("wrong_schema", {}),
    ("empty_body", {}),
    ("length", {}),
    ("content_filter", {}),
    ("empty_text", {}),
    ("malformed_arguments", {}),
    ("wrong_arguments", {}),
    ("extra_arguments", {}),
    ("unknown_tool", {}),
    ("duplicate_call_ids", {}),
    ("bad_text", {}),
    ("preamble", {}),
    ("preamble", {"text": " \n\U0001f600 Let me see.\u200b\n"}),
    ("pause", {"pieces": 1, "seconds": 0.05}),
    ("pause", {"pieces": 3, "seconds": 0.05}),
    ("break_off", {"pieces": 1}),
    ("break_off", {"pieces": 4}),
    ("cut_stream", {}),
    ("cut_stream", {"pieces": 2}),
    ("drip", {"milliseconds": 5}),
]
LAST_WORDS: list[tuple[str, Json]] = [
    # The model ends the turn with them, whatever the message asked for.
    ("refusal", {}),
    ("say", {}),
    ("many_messages", {}),
    ("many_messages", {"one_message": True}),
    ("split_surrogates", {}),
    ("split_blanks", {}),
]
HANGS: list[tuple[str, Json]] = [("hang", {"seconds": 40}), ("pause", {"pieces": 2, "seconds": 40})]


@dataclass
class Turn:
    """A message with its key, and its lists and answers so far."""

    caller: Caller
    mark: str
    message: Sentence
    asked: Asked
    is_new: bool
    """True if its conversation may not be there yet."""
    may_end_early: bool = False
    finished: list[Shown] = field(default_factory=list)
    unfinished: list[Shown] = field(default_factory=list)
    answer: str | None = None
    log: list[str] = field(default_factory=list)

    @property
    def protocols(self) -> tuple[str, ...]:
        """Return the protocols in which the same request can be sent: two of them do not make a conversation."""
        if self.asked.conversation_id is None:
            return (EVENTS, JSON)
        return STREAMS[1:] if self.is_new else (*STREAMS, JSON)


@dataclass
class World:
    """The servers, and what happened so far."""

    urls: list[str]
    proxies: list[Proxy]
    databases: list[Database]
    rows: Rows
    issuer: Issuer
    standin: StandIn
    counts: Counter[str] = field(default_factory=Counter)
    marks: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Reading:
    """The response of one request, as far as the client read it."""

    protocol: str
    status: int
    text: str
    is_cut: bool = False


class Someone:
    """Takes one random turn after the other, as one of some users."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.chance = world, random.Random(seed)  # noqa: S311  # no secret: it draws faults
        self.people = [self._new_person() for _ in range(PEOPLE)]

    def take_turns(self, number: int) -> None:
        """Take as many turns, and check each."""
        for done in range(number):
            turn = self._draw()
            try:
                self._take(turn)
            except Exception as error:
                error.add_note(f"STREAM_SEED={SEED}, turn {done}, “{turn.message}”:\n" + "\n".join(turn.log))
                raise
            self.world.counts["turns"] += 1

    def _new_person(self) -> tuple[Caller, list[str]]:
        caller = Caller.new(self.world.issuer)
        self.world.marks.add(_mark(caller))
        return caller, []

    def _draw(self) -> Turn:
        number = self.chance.randrange(PEOPLE)
        if self.chance.random() < 0.1:
            self.people[number] = self._new_person()
        caller, conversations = self.people[number]
        is_new = not conversations or self.chance.random() < 0.3
        new = self.chance.choice([None, str(uuid4()), str(uuid4())])
        conversation_id = new if is_new else self.chance.choice(conversations)
        mark = f"{_mark(caller)}n{uuid4().hex[:6]}"
        message = self.chance.choice(KINDS)(mark)
        return Turn(caller, mark, message, Asked(message, conversation_id, f"key-{mark}"), is_new)

    def _take(self, turn: Turn) -> None:
        self._let_the_model_err(turn)
        for attempt in range(ATTEMPTS):
            if attempt < 4:
                self._let_the_database_fail(turn)
            else:
                self._end_faults()  # another user's too: so many attempts take less time than one refusal lasts
            self._attempt(turn, is_watched=attempt < 4)
            if turn.finished or turn.answer:
                break
            if self.chance.random() < 0.7:
                db_assertions.let_leases_run_out(self.world.rows, turn.caller.id)
        self._end_faults()
        self._check(turn)

    # Faults

    def _let_the_model_err(self, turn: Turn) -> None:
        draw = self.chance.random()
        faults = HANGS if draw < 0.01 else LAST_WORDS if draw < 0.2 else MODEL_FAULTS if draw < 0.75 else []
        for name, options in self.chance.sample(faults, k=min(len(faults), self.chance.choice([1, 1, 2]))):
            turn.may_end_early |= faults is LAST_WORDS
            after = self.chance.randrange(3)
            self._note(turn, f"{name} after {after} calls")
            self.world.standin.fault(name, match=turn.mark, after_calls=after, **options)

    def _let_the_database_fail(self, turn: Turn) -> None:
        fragile = self.chance.choice(self.world.proxies)
        fault = self.chance.choice(["nothing"] * 6 + ["lose", "cut sent", "cut received", "refuse", "abandon"])
        if fault == "nothing":
            return
        self._note(turn, f"database: {fault}")
        fragile.refuse_for = self.chance.choice([0.0, 0.0, 0.1])
        if fault == "lose":
            fragile.lose_answer_to = self.chance.choice([b"commit", b"lease_until", b"insert into"])
        elif fault == "cut sent":
            fragile.cut_sent = fragile.sent + self.chance.randrange(6_000)
        elif fault == "cut received":
            fragile.cut_received = fragile.received + self.chance.randrange(6_000)
        elif fault == "abandon":
            fragile.abandon_connections(close=True)
        else:
            fragile.refuse_for = 0.2
            fragile._lose()

    def _end_faults(self) -> None:
        for fragile in self.world.proxies:
            fragile.reset()
            fragile.accept_again()

    # Requests

    def _attempt(self, turn: Turn, *, is_watched: bool) -> None:
        """Send the request once, and let others read along from some moment on."""
        first, begun = self.chance.choice(turn.protocols), threading.Event()
        leaves_after = self.chance.randrange(8) if self.chance.random() < 0.25 else None
        others = self.chance.sample([*turn.protocols, RESUME], k=self.chance.choice([0, 0, 1, 2]) if is_watched else 0)
        with ThreadPoolExecutor(3) as pool:
            here = self.chance.choice(self.world.urls)
            readings = [pool.submit(self._request, turn, first, here, begun, leaves_after)]
            begun.wait(60)
            for other in others:
                there = self.chance.choice(self.world.urls)
                readings.append(pool.submit(self._request, turn, other, there, threading.Event(), None))
            for reading in readings:
                self._take_in(turn, reading.result())

    def _request(
        self, turn: Turn, protocol: str, url: str, begun: threading.Event, leaves_after: int | None
    ) -> Reading:
        """Send the request, and leave after as many events. `begun` is set when there is a first byte, or none."""
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        try:
            response = self._send(connection, turn, protocol)
            begun.set()
            text = b""
            while (line := response.readline()) and (leaves_after is None or text.count(b"\n\n") < leaves_after):
                text += line
            return Reading(protocol, response.status, text.decode(), is_cut=bool(line))
        finally:
            begun.set()
            connection.close()

    def _send(self, connection: http.client.HTTPConnection, turn: Turn, protocol: str) -> http.client.HTTPResponse:
        headers = {"authorization": f"Bearer {turn.caller.token}", "content-type": "application/json"}
        path = f"/api/{turn.caller.id}/chat"
        if protocol == RESUME:
            place = turn.asked.conversation_id or str(uuid4())
            connection.request("GET", f"{path}/{place}/stream", headers=headers)
        else:
            body = json.dumps(turn.asked.body(protocol))
            connection.request("POST", path, body, headers | turn.asked.headers(protocol))
        return connection.getresponse()

    # Checks

    def _take_in(self, turn: Turn, reading: Reading) -> None:
        others = self.world.marks - {_mark(turn.caller)}
        assert not any(mark in reading.text for mark in list(others)), "another user's text"
        self._note(turn, f"{reading.protocol}: {reading.status} {reading.text}", counted=reading.protocol)
        if reading.status != 200:
            assert reading.status in (204, 409, 502, 503, 504), reading
        elif reading.protocol == JSON:
            if not reading.is_cut:
                assert turn.answer in (None, reading.text)
                turn.answer = reading.text
        elif reading.text.count("\n\n"):
            shown = read(
                AI_SDK if reading.protocol == RESUME else reading.protocol, reading.text, is_cut=reading.is_cut
            )
            self._take_in_list(turn, shown)

    def _take_in_list(self, turn: Turn, shown: Shown) -> None:
        self.world.counts[shown.end or "left"] += 1
        (turn.finished if shown.end == "finished" else turn.unfinished).append(shown)
        if shown.end == "failed":
            problem = str(shown.check_failed())
            assert "internal" not in problem
            assert TaskchatError.title not in problem

    def _check(self, turn: Turn) -> None:
        """Check everything that was shown against the answer, and the answer against Postgres."""
        assert turn.finished or turn.answer, "never done"
        turn.is_new = False
        for url in self.world.urls:
            self._repeat(turn, JSON, url)
            protocol = self.chance.choice([each for each in turn.protocols if each != JSON])
            shown = read(protocol, self._repeat(turn, protocol, url).text)
            if not shown.accepted["replayed"]:  # an attempt that another process overtook was still ending in this one
                shown = read(protocol, self._repeat(turn, protocol, url).text)
            assert shown.accepted["replayed"] is True
            assert len(shown.messages) == 1
        answer = json.loads(turn.answer or "")
        for shown in turn.finished:
            shown.check_equals(answer)
        for shown in turn.unfinished:
            shown.check_calls(answer["tool_calls"], is_whole=False)
            shown.check_ids(answer)
        self._check_rows(turn, answer)
        self.people = [
            (caller, [*{*there, answer["conversation_id"]}] if caller is turn.caller else there)
            for caller, there in self.people
        ]

    def _repeat(self, turn: Turn, protocol: str, url: str) -> Reading:
        """Send the request of a turn that is done, until no fault that another user has caused is in its way."""
        for _ in range(ATTEMPTS):
            reading = self._request(turn, protocol, url, threading.Event(), None)
            self._take_in(turn, reading)
            if reading.status == 200:
                return reading
            assert reading.status == 503
            self._end_faults()
        raise AssertionError("never answered")

    def _check_rows(self, turn: Turn, answer: Json) -> None:
        rows, user_id = self.world.rows, turn.caller.id
        assert db_assertions.messages(rows, user_id, answer["turn_id"]) == [
            ("user", turn.message),
            ("assistant", answer["response"]),
        ]
        assert json.loads(json.dumps(db_assertions.calls(rows, user_id, answer["turn_id"]))) == answer["tool_calls"]
        stored = db_assertions.positions(rows, user_id, answer["conversation_id"])
        assert stored == list(range(len(stored)))
        done = [each for each in db_assertions.effects(rows, user_id) if turn.mark in each]
        recorded = [EFFECTS[call["tool"]] for call in answer["tool_calls"] if _has_effect(call)]
        assert [each.split()[0] for each in done] == recorded
        left = Counter(turn.message.effects)
        left.subtract(done)
        assert all(number == 0 or (number == 1 and turn.may_end_early) for number in left.values()), left

    def _note(self, turn: Turn, what: str, counted: str = "") -> None:
        turn.log.append(what)
        self.world.counts[counted or what.partition(" after")[0]] += 1


def _has_effect(call: Json) -> bool:
    return call["outcome"] == "ok" and call["tool"] in EFFECTS


def _mark(caller: Caller) -> str:
    """Return the beginning of every text of a user, which is in no other user's text."""
    return f"x{caller.id[:10]}x"


@pytest.fixture
def world(
    server: Postgres, standin: StandIn, issuer: Issuer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """Run two servers, each with a model API and a proxy of its own."""
    from chat.app import ChatProcess, create_app

    monkeypatch.setattr("chat.app.MAX_SECONDS", MARGIN + DEADLINE)
    monkeypatch.setattr("chat.running.LOOK_SECONDS", 0.02)
    monkeypatch.setattr("chat.stream.response.COMMENT_SECONDS", 0.05)
    world = World([], [], [], rows, issuer, standin)
    with ExitStack() as stack:
        stack.enter_context(db_assertions.watched(rows))
        for api in ("responses", "chat_completions"):
            fragile = stack.enter_context(proxy.running(server.app_url))
            process = ChatProcess(toolset)
            for name, value in variables(fragile.url(server.app_url), standin, issuer, api).items():
                monkeypatch.setenv(name, value)
            assert process.settings.model_api == api  # read now, and kept
            world.proxies.append(fragile)
            world.databases.append(process.database)
            world.urls.append(stack.enter_context(serving(create_app(process))))
        yield world


@pytest.fixture(autouse=True)
def renewed_often(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renew each lease every few milliseconds. Some renewals lose their answer."""
    chance = random.Random(SEED)  # noqa: S311  # no secret: it draws faults

    def renew_or_lose(database: Database, holder: LeaseHolder) -> bool:
        if chance.random() < 0.1:
            world.proxies[world.databases.index(database)].lose_answer_to = b"commit"
        is_done = renew(database, holder)
        world.counts["renewed" if is_done else "renewals without an answer"] += 1
        return is_done

    monkeypatch.setattr(renewal, "renew", renew_or_lose)
    monkeypatch.setattr(renewal, "RENEW_SECONDS", 0.01)
    monkeypatch.setattr(renewal, "RETRY_SECONDS", 0.01)


def test_in_any_order_and_with_faults_each_list_is_in_order_complete_and_true(world: World, report: Report) -> None:
    """Users take turns at once. Each is asked for until it is done."""
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for each in [pool.submit(Someone(world, SEED + n).take_turns, TURNS // AT_ONCE) for n in range(AT_ONCE)]:
                each.result()
    finally:
        counts = ", ".join(f"{number} {what}" for what, number in sorted(world.counts.items()))
        report(f"random streamed turns: {counts} (STREAM_SEED={SEED})")
    assert world.counts["turns"] == TURNS
    assert world.counts["renewed"] > TURNS
    assert world.counts["renewals without an answer"] > 0
