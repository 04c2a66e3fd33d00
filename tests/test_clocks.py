"""Clocks that differ between function, database, gateway and auth server; midnight; clocks that change.

Promises: what the database keeps is judged by the database's clock alone, whatever the function's says: no lease ends
early or late, no person is locked out or let in by the wrong midnight, and Retry-After is true. The gateway's clock can
neither end a request at once nor give it more than 29 seconds. What a person said is shown to the model with the same
moment each time, in any time zone.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, time, timedelta
from importlib.resources import files
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest

from chat.model_input import build_input
from dev.postgres import Postgres
from dev.standin_model.client import StandIn
from dev.tokens import Issuer
from taskchat.conversations.history import Turn
from taskchat.conversations.lease import LEASE_GRACE, MAX_LEASE
from taskchat.http.auth import LEEWAY
from taskchat.http.gateway import MAX_SECONDS, Event, seconds_left
from testing.callers import AUTH, Caller
from testing.gateway import LambdaContext, Response, event, invoke
from tests import clocks
from tests import db_assertions as truth
from tests.clocks import DatabaseClock
from tests.conftest import Person, variables
from tests.crash_points import Trap
from tests.db_assertions import Rows
from tests.domain import example
from tests.environments import Environment, Fleet, Zygote

MINUTES_OFF = [timedelta(minutes=minutes) for minutes in (-10, -2, 2, 10)]
MESSAGE = "Add buy milk"
DAY_SECONDS = 86_400
SLACK = 10
"""Seconds that may pass between two looks at a clock."""


@pytest.fixture(scope="module")
def clock(rows: Rows) -> Iterator[DatabaseClock]:
    """The database's clock."""
    with clocks.running(rows) as clock, truth.watched(rows):
        yield clock


@pytest.fixture
def database_url(server: Postgres, clock: DatabaseClock) -> str:
    """The runtime role's URL, for sessions that see that clock."""
    clock.differ_by(timedelta())
    return server.app_url


@pytest.fixture(params=MINUTES_OFF, ids=str)
def minutes_off(request: pytest.FixtureRequest, database_url: str, clock: DatabaseClock) -> timedelta:
    """A database whose clock is minutes ahead of the function's, or behind it."""
    offset: timedelta = request.param
    clock.differ_by(offset)
    return offset


class TestLeases:
    """They begin, hold and end by the database's clock."""

    def test_a_turn_is_done(self, minutes_off: timedelta, fleet: Fleet, issuer: Issuer, rows: Rows) -> None:
        """Its lease holds for each call, and is given back."""
        client, message = Caller.new(issuer), "Add buy milk, then finish the milk"
        answer = fleet.start().ask(client.request({"message": message})).answer
        truth.check_turn(rows, client.id, message, answer)
        assert example.rows_of(rows, client.id) == [("buy milk", True)]

    def test_a_turn_that_was_killed_is_over_in_time(
        self, minutes_off: timedelta, clock: DatabaseClock, fleet: Fleet, issuer: Issuer, rows: Rows
    ) -> None:
        """Its conversation is busy for as long as its lease was to last, and then goes on with the same key."""
        client = Caller.new(issuer)
        request = client.request({"message": MESSAGE}, "key")
        with fleet.cold() as environment:
            assert environment.ask(request, Trap.kill(1, "model: sent")).trapped
        assert MAX_SECONDS - SLACK < clock.lease_left(client.id) <= MAX_SECONDS + LEASE_GRACE
        again = fleet.start()
        refused = again.ask(request).answer
        assert (refused.status, refused.headers["retry-after"]) == (409, "2")
        clock.go_on(timedelta(seconds=MAX_LEASE))
        truth.check_turn(rows, client.id, MESSAGE, again.ask(request).answer)
        assert truth.effects(rows, client.id) == ["insert buy milk"]

    def test_a_turn_that_outlived_its_lease_writes_nothing(
        self, minutes_off: timedelta, clock: DatabaseClock, fleet: Fleet, issuer: Issuer, rows: Rows
    ) -> None:
        """Its own clock may say that there is time left."""
        client = Caller.new(issuer)
        request = client.request({"message": MESSAGE}, "key")
        zombie = fleet.start()
        assert zombie.ask(request, Trap.freeze(1, "model: sent")).trapped
        clock.go_on(timedelta(seconds=MAX_LEASE))
        done = fleet.start().ask(request).answer
        zombie.thaw()
        late = zombie.outcome().answer
        assert (late.status, late.headers["retry-after"]) == (409, "1")
        truth.check_turn(rows, client.id, MESSAGE, done)
        assert truth.effects(rows, client.id) == ["insert buy milk"]

    def test_a_turn_whose_lease_ends_early_goes_on_with_its_key(
        self, clock: DatabaseClock, fleet: Fleet, issuer: Issuer, rows: Rows
    ) -> None:
        """The database's clock is set forward while the model thinks."""
        client, environment = Caller.new(issuer), fleet.start()
        request = client.request({"message": MESSAGE}, "key")
        assert environment.ask(request, Trap.freeze(1, "model: sent")).trapped
        clock.go_on(timedelta(minutes=10))
        environment.thaw()
        late = environment.outcome().answer
        assert (late.status, late.headers["retry-after"]) == (409, "1")
        truth.check_turn(rows, client.id, MESSAGE, environment.ask(request).answer)
        assert truth.effects(rows, client.id) == ["insert buy milk"]

    def test_a_turn_is_done_while_the_clock_is_set_back(
        self, clock: DatabaseClock, fleet: Fleet, issuer: Issuer, rows: Rows
    ) -> None:
        """Its lease lasts longer by as much, and is given back all the same."""
        client, environment = Caller.new(issuer), fleet.start()
        assert environment.ask(client.request({"message": MESSAGE}), Trap.freeze(1, "model: sent")).trapped
        clock.go_on(timedelta(minutes=-10))
        assert 600 < clock.lease_left(client.id) <= 600 + MAX_SECONDS + LEASE_GRACE
        environment.thaw()
        truth.check_turn(rows, client.id, MESSAGE, environment.outcome().answer)
        assert clock.lease_left(client.id) == 0


def limited(fleet_of: Zygote, url: str, standin: StandIn, issuer: Issuer, tokens: int) -> Fleet:
    """A deployment in which a person may use so many model tokens a day."""
    return Fleet(fleet_of, variables(url, standin, issuer) | {"DAILY_MODEL_TOKENS": str(tokens)})


def midnight_after(moment: datetime) -> datetime:
    """The next midnight by UTC."""
    return datetime.combine(moment.astimezone(UTC).date() + timedelta(days=1), time(), UTC)


def used(rows: Rows, user_id: str) -> tuple[datetime, int]:
    """The day that the person's use is kept for, and how many tokens it is."""
    kept = rows.execute("select day, model_tokens from allowance where user_id = %s and door = 'chat'", [user_id])
    row = kept.fetchone()
    assert row is not None
    return row["day"], row["model_tokens"]


class TestTheDay:
    """It begins and ends at midnight by the database's clock."""

    @pytest.fixture
    def deployment(
        self, warm_zygote: Zygote, database_url: str, standin: StandIn, issuer: Issuer
    ) -> Iterator[Callable[[int], Environment]]:
        """Start an environment with a limit."""
        fleets: list[Fleet] = []

        def start(tokens: int) -> Environment:
            fleets.append(limited(warm_zygote, database_url, standin, issuer, tokens))
            return fleets[-1].start()

        yield start
        for fleet in fleets:
            fleet.stop()

    @pytest.mark.parametrize("minutes", [-10, -1, 1, 10], ids=lambda minutes: f"{minutes} minutes to midnight")
    def test_a_turn_that_uses_the_day_up_names_the_right_midnight(
        self, minutes: int, clock: DatabaseClock, deployment: Callable[[int], Environment], issuer: Issuer
    ) -> None:
        """Whatever day it is for the function."""
        clock.show(midnight_after(datetime.now(UTC)) + timedelta(minutes=minutes))
        answer = deployment(10).ask(Caller.new(issuer).request({"message": MESSAGE})).answer
        wait = (midnight_after(clock.now()) - clock.now()).total_seconds()
        assert answer.status == 429, answer.body
        assert len(answer.json["tool_calls"]) == 1
        assert wait <= int(answer.headers["retry-after"]) <= wait + SLACK

    def test_somebody_who_used_the_day_up_is_let_in_at_midnight(
        self, clock: DatabaseClock, deployment: Callable[[int], Environment], issuer: Issuer, rows: Rows
    ) -> None:
        """Refused until then, and not later; the turn that was ended goes on with its key."""
        midnight, client = midnight_after(datetime.now(UTC)), Caller.new(issuer)
        clock.show(midnight - timedelta(minutes=5))
        environment, request = deployment(10), client.request({"message": MESSAGE}, "key")
        assert environment.ask(request).answer.status == 429
        refused = environment.ask(client.request({"message": "hello"})).answer
        assert (refused.status, 290 <= int(refused.headers["retry-after"]) <= 300) == (429, True)
        clock.show(midnight + timedelta(seconds=1))
        truth.check_turn(rows, client.id, MESSAGE, environment.ask(request).answer)

    def test_a_turn_that_lasts_over_midnight_counts_on_the_day_it_ends_on(
        self,
        clock: DatabaseClock,
        deployment: Callable[[int], Environment],
        issuer: Issuer,
        rows: Rows,
        standin: StandIn,
    ) -> None:
        """Begun at 23:59:58: all of it, and none of what the person used before."""
        midnight, client = midnight_after(datetime.now(UTC)), Caller.new(issuer)
        clock.show(midnight - timedelta(minutes=1))
        environment = deployment(10**6)
        assert environment.ask(client.request({"message": "hello"})).answer.status == 200
        before, spent = used(rows, client.id)
        assert (before, spent > 0) == ((midnight - timedelta(days=1)).date(), True)
        standin.reset()
        clock.show(midnight - timedelta(seconds=2))
        assert environment.ask(client.request({"message": MESSAGE}), Trap.freeze(2, "model: sent")).trapped
        clock.show(midnight + timedelta(seconds=2))
        environment.thaw()
        truth.check_turn(rows, client.id, MESSAGE, environment.outcome().answer)
        assert used(rows, client.id) == (midnight.date(), sum(request["tokens"] for request in standin.requests()))


class TestTheGateway:
    """Its clock tells how long a request has waited, if that can be true."""

    @pytest.mark.parametrize("offset", MINUTES_OFF, ids=str)
    def test_a_turn_has_its_time(self, offset: timedelta, fleet: Fleet, issuer: Issuer, rows: Rows) -> None:
        """It is neither over at once nor has it more than the gateway gives."""
        client = Caller.new(issuer)
        request = client.request({"message": MESSAGE})
        request["requestContext"]["timeEpoch"] = int((datetime.now(UTC) + offset).timestamp() * 1000)
        truth.check_turn(rows, client.id, MESSAGE, fleet.start().ask(request).answer)
        assert seconds_left(Event.model_validate(request), LambdaContext(900)) == MAX_SECONDS

    def test_a_wait_that_can_be_true_is_believed(self) -> None:
        """A slow cold start: the gateway does not wait any longer for that."""
        request = event("POST", "/")
        request["requestContext"]["timeEpoch"] = int((datetime.now(UTC) - timedelta(seconds=10)).timestamp() * 1000)
        left = seconds_left(Event.model_validate(request), LambdaContext(900))
        assert MAX_SECONDS - 10 - SLACK < left <= MAX_SECONDS - 10


class TestTheAuthServer:
    """Tokens are judged by the function's clock, and the two may differ by the leeway."""

    def ask(self, person: Person, clock: timedelta) -> Response:
        """Come with a token that an auth server with such a clock has just made."""
        from chat.app import handler

        now = int((datetime.now(UTC) + clock).timestamp())
        token = person.issuer.mint(person.id, issuer=AUTH, audience=AUTH, iat=now, exp=now + 900)
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        return invoke(handler, event("POST", f"/api/{person.id}/chat", headers=headers, body=b'{"message": "hello"}'))

    @pytest.mark.parametrize("seconds", [-600, -120, -LEEWAY + 5, LEEWAY - 5])
    def test_a_fresh_token_is_taken(self, alice: Person, seconds: int) -> None:
        """From a server whose clock is behind, however far within a token's life, or ahead by less than the leeway."""
        assert self.ask(alice, timedelta(seconds=seconds)).status == 200

    @pytest.mark.parametrize("seconds", [-900 - LEEWAY - 5, LEEWAY + 5, 120, 600])
    def test_a_token_from_another_time_is_refused(self, alice: Person, seconds: int) -> None:
        """It has expired, or is of a time that is yet to come."""
        answer = self.ask(alice, timedelta(seconds=seconds))
        assert (answer.status, answer.json["type"]) == (401, "urn:taskchat:problem:unauthenticated")


def shown(said_at: datetime, timezone: str | None) -> str:
    """The line that the model reads above the words."""
    turn = Turn(uuid4(), 0, "hello", said_at, timezone)
    (item,) = build_input([], turn)
    assert (item,) == tuple(build_input([], turn))
    line, words = str(item["content"]).split("\n")
    assert words == "hello"
    return line


def utc(text: str) -> datetime:
    """The moment, written in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


class TestTheMomentAMessageWasSaid:
    """As the model reads it."""

    @pytest.mark.parametrize(
        ("said_at", "timezone", "line"),
        [
            ("2026-03-29T00:59:59", "Europe/Paris", "Sunday 2026-03-29 01:59, Europe/Paris"),
            ("2026-03-29T01:00:00", "Europe/Paris", "Sunday 2026-03-29 03:00, Europe/Paris"),
            ("2026-10-25T00:30:00", "Europe/Paris", "Sunday 2026-10-25 02:30, Europe/Paris"),
            ("2026-10-25T01:30:00", "Europe/Paris", "Sunday 2026-10-25 02:30, Europe/Paris"),
            ("2026-04-04T15:15:00", "Australia/Lord_Howe", "Sunday 2026-04-05 01:45, Australia/Lord_Howe"),
            ("2026-12-31T18:14:00", "Asia/Kathmandu", "Thursday 2026-12-31 23:59, Asia/Kathmandu"),
            ("2026-12-31T18:15:00", "Asia/Kathmandu", "Friday 2027-01-01 00:00, Asia/Kathmandu"),
            ("2026-12-31T10:00:00", "Pacific/Kiritimati", "Friday 2027-01-01 00:00, Pacific/Kiritimati"),
            ("2027-01-01T11:59:00", "Etc/GMT+12", "Thursday 2026-12-31 23:59, Etc/GMT+12"),
            ("2028-02-29T23:59:59", None, "Tuesday 2028-02-29 23:59, UTC"),
        ],
    )
    def test_is_that_of_the_person(self, said_at: str, timezone: str | None, line: str) -> None:
        """Around changes of the clocks, with odd offsets, at the ends of years and on leap days."""
        assert shown(utc(said_at), timezone) == f"[context: {line}]"

    def test_can_be_told_in_every_zone(self) -> None:
        """Each name that a request may bring, at each hour of a year's changes."""
        zones = (files("tzdata") / "zones").read_text().split()
        moments = [utc(f"2026-{month:02}-28T{hour:02}:59:59") for month in range(1, 13) for hour in range(0, 24, 6)]
        for zone in zones:
            for moment in moments:
                there = moment.astimezone(ZoneInfo(zone))
                assert shown(moment, zone) == f"[context: {there:%A %Y-%m-%d %H:%M}, {zone}]"
        assert len(zones) > 500
