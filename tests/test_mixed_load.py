"""Twenty people talk, read, rename, delete, and one of them is erased, at the same time on five server connections.

Promises: no turn is lost, none takes effect twice, and no answer holds a text of another person. A deleted conversation
leaves its effects and its redacted calls. Erasing one person touches no row of another, and leaves no text behind.
"""

import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any
from uuid import uuid4

import pytest

from dev import processes
from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from testing.callers import Caller
from testing.gateway import Response
from tests import db_assertions
from tests.conftest import variables
from tests.db_assertions import Rows
from tests.domain import example
from tests.environments import Environment, Fleet, ForkServer
from tests.tally import report_at_end

ENVIRONMENTS = 12
"""Processes, each of which serves one request at a time: more than the pooler has connections."""
PEOPLE, CONVERSATIONS, TURNS, READS, RENAMES = 20, 2, 4, 4, 2
COPIES = 2
SEED = int(os.environ.get("LOAD_SEED") or random.SystemRandom().randrange(10**6))
PATIENCE = 120
"""Seconds for which the test retries a refused request. It needs far less."""


@dataclass
class Person:
    """A caller with conversations. The last one is deleted under way."""

    caller: Caller
    conversations: list[str] = field(default_factory=list)
    turns: dict[str, tuple[str, list[Response]]] = field(default_factory=dict)
    """The conversation and the answers of each message, by its mark."""
    titles: set[str] = field(default_factory=set)
    is_deleting: bool = False

    @property
    def mark(self) -> str:
        """Return the beginning of all texts of this person. No other person's text contains it."""
        return f"x{self.caller.id[:10]}x"

    @property
    def doomed(self) -> str:
        """Return the conversation that is deleted."""
        return self.conversations[-1]


@dataclass(frozen=True)
class Job:
    """One request of a person."""

    person: Person
    what: str
    event: dict[str, Any]
    place: str = ""
    """The conversation or, for a message, its mark."""


class Mixed:
    """Send all requests in a random order, and keep the answers."""

    def __init__(self, fleet: Fleet, issuer: Issuer) -> None:
        self.fleet = fleet
        self.random = random.Random(SEED)  # noqa: S311  (the seed repeats a run)
        self.statuses: dict[str, Counter[int]] = defaultdict(Counter)
        self.people = [Person(Caller.new(issuer)) for _ in range(PEOPLE)]
        self.erased = self.people[0]
        self.is_erasing = Event()

    def run(self) -> None:
        """Begin all conversations, then send everything at once."""
        self.environments = [self.fleet.start() for _ in range(ENVIRONMENTS)]
        with ThreadPoolExecutor(ENVIRONMENTS) as pool:
            beginnings = [
                Job(person, "begin", person.caller.request({"message": example.add(f"{person.mark}begin{number}")}))
                for person in self.people
                for number in range(CONVERSATIONS)
            ]
            self._serve(pool, beginnings)
            jobs = [job for person in self.people for job in self._jobs(person)]
            self.random.shuffle(jobs)
            jobs.insert(len(jobs) // 2, Job(self.erased, "erase", self.erased.caller.own("DELETE", confirm="erase")))
            self._serve(pool, jobs)

    def ask(self, event: dict[str, Any]) -> Response:
        """Send one request when all others are done."""
        return self.environments[0].ask(event).answer

    def _jobs(self, person: Person) -> Iterator[Job]:
        caller = person.caller
        for number in range(TURNS):
            mark = f"{person.mark}n{number}"
            conversation = person.conversations[number % CONVERSATIONS]
            person.turns[mark] = conversation, []
            body = {"message": example.add(mark).then(example.show()), "conversation_id": conversation}
            yield from [Job(person, "say", caller.request(body, f"key-{uuid4()}"), mark)] * COPIES
        for number in range(READS):
            conversation = person.conversations[number % CONVERSATIONS]
            yield Job(person, "read", caller.own("GET", f"/conversations/{conversation}"), conversation)
            yield Job(person, "list", caller.own("GET", "/conversations", query={"limit": 1 + number}))
            yield Job(person, "export", caller.own("GET", "/export"))
        for number in range(RENAMES):
            conversation, title = person.conversations[number % CONVERSATIONS], f"{person.mark}title{number}"
            person.titles.add(title)
            event = caller.own("PATCH", f"/conversations/{conversation}", body={"title": title})
            yield Job(person, "rename", event, conversation)
        yield Job(person, "delete", caller.own("DELETE", f"/conversations/{person.doomed}"), person.doomed)

    def _serve(self, pool: ThreadPoolExecutor, jobs: list[Job]) -> None:
        queue: SimpleQueue[Job] = SimpleQueue()
        for job in jobs:
            queue.put(job)
        for done in [pool.submit(self._work, environment, queue) for environment in self.environments]:
            done.result()

    def _work(self, environment: Environment, queue: "SimpleQueue[Job]") -> None:
        while True:
            try:
                job = queue.get_nowait()
            except Empty:
                return
            if job.person is not self.erased or not self.is_erasing.is_set():
                self._send(environment, job)

    def _send(self, environment: Environment, job: Job) -> None:
        """Send the request until nothing is in its way, and check that its status can be explained."""
        if job.what == "erase":
            self.is_erasing.set()
        job.person.is_deleting |= job.what == "delete"
        for _ in processes.attempts(PATIENCE):
            response = environment.ask(job.event).answer
            self.statuses[job.what][response.status] += 1
            self._check(job, response)
            if response.status != 409 or job.person is self.erased:
                return
            assert int(response.headers["retry-after"]) >= 1
        raise AssertionError("never answered")

    def _check(self, job: Job, response: Response) -> None:
        """Check the status, and that the answer holds no text of another person."""
        assert [person for person in self.people if person.mark in response.body] in ([], [job.person])
        if job.person is self.erased and self.is_erasing.is_set() and job.what != "erase":
            assert response.status in (200, 204, 404, 409), response.body
        elif response.status == 404:
            assert job.person.is_deleting
            assert job.person.doomed in (job.place, job.person.turns.get(job.place, ("",))[0])
        elif response.status == 409:
            assert job.what in ("say", "delete")
        else:
            assert response.status == (204 if job.what in ("delete", "erase") else 200), response.body
        if job.what == "begin":
            job.person.conversations.append(response.json["conversation_id"])
        if job.what == "say" and response.status == 200:
            job.person.turns[job.place][1].append(response)


@pytest.fixture(scope="module")
def mixed(
    warm_fork_server: ForkServer,
    server: Postgres,
    pooler: PgBouncer,
    running_model: StandIn,
    issuer: Issuer,
    rows: Rows,
    request: pytest.FixtureRequest,
) -> Iterator[Mixed]:
    """Run everything."""
    fleet = Fleet(warm_fork_server, variables(pooler.url(server.app_url), running_model, issuer))
    with db_assertions.watched(rows):
        mixed = Mixed(fleet, issuer)
        mixed.run()
        counts = "; ".join(
            f"{what}: " + ", ".join(f"{number} x {status}" for status, number in sorted(found.items()))
            for what, found in sorted(mixed.statuses.items())
        )
        report_at_end(request.config, f"{PEOPLE} people, 5 server connections: {counts} (LOAD_SEED={SEED})")
        yield mixed
        fleet.stop()


def test_no_turn_is_lost_and_none_takes_effect_twice(mixed: Mixed, rows: Rows) -> None:
    """Every message that was answered took effect once. One whose conversation was deleted took effect at most once."""
    for person in mixed.people[1:]:
        done = Counter(db_assertions.effects(rows, person.caller.id))
        for number in range(CONVERSATIONS):
            assert done[f"insert {person.mark}begin{number}"] == 1
        for mark, (conversation, answers) in person.turns.items():
            assert len({answer.body for answer in answers}) <= 1
            assert answers or conversation == person.doomed
            assert done[f"insert {mark}"] == 1 if answers else done[f"insert {mark}"] <= 1


def test_what_was_not_deleted_is_whole(mixed: Mixed, rows: Rows) -> None:
    """Each turn of a conversation that is left is stored with its answer, its calls and its effect."""
    for person in mixed.people[1:]:
        for mark, (conversation, answers) in person.turns.items():
            if conversation != person.doomed:
                message = example.add(mark).then(example.show())
                db_assertions.check_turn(rows, person.caller.id, message, answers[0])


def test_a_deleted_conversation_leaves_only_redacted_calls(mixed: Mixed, rows: Rows) -> None:
    """Neither messages nor arguments nor results."""
    for person in mixed.people[1:]:
        here = [person.caller.id, person.doomed]
        for table in ("conversation", "message"):
            column = "id" if table == "conversation" else "conversation_id"
            query = f"select from {table} where user_id = %s and {column} = %s"
            assert rows.execute(query.encode(), here).fetchall() == []
        query = "select arguments, result from tool_call where user_id = %s and conversation_id = %s"
        left = rows.execute(query, here).fetchall()
        assert left
        assert person.mark not in json.dumps(left)
        assert all(call["arguments"] == {} for call in left)


def test_a_title_is_one_that_was_given(mixed: Mixed) -> None:
    """The conversation that is left has one of the titles."""
    for person in mixed.people[1:]:
        listed = mixed.ask(person.caller.own("GET", "/conversations")).json["conversations"]
        assert [one["id"] for one in listed] == [person.conversations[0]]
        assert listed[0]["title"] in person.titles
        assert not listed[0]["running"]


def test_nothing_of_the_erased_person_is_left(mixed: Mixed, rows: Rows) -> None:
    """No column of any table holds their id or a text of theirs, once requests that were under way have ended."""
    person = mixed.erased
    assert mixed.ask(person.caller.own("DELETE", confirm="erase")).status == 204
    tables = rows.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
    for table in (row["tablename"] for row in tables):
        found = rows.execute(f'select t::text as row from "{table}" t'.encode()).fetchall()  # noqa: S608  (Postgres's own names)
        assert not [row for row in found if person.mark in row["row"] or person.caller.id in row["row"]], table
