"""The clocks of function, database, gateway and auth server may differ, pass midnight or change.

Promises: Postgres's clock alone judges what Postgres stores, whatever the function's clock says. No lease ends early or
late, no user's quota resets at the wrong midnight, and Retry-After is right. The gateway's clock can neither end a
request at once nor give it more than 29 seconds. The model reads the same time for a message in every request, in any
time zone.
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
from taskchat.conversations.lease import LEASE_SECONDS
from taskchat.http.auth import LEEWAY
from taskchat.http.gateway import MAX_SECONDS, Event, seconds_left
from testing.callers import AUTH, Caller
from testing.gateway import LambdaContext, Response, event, invoke
from tests import clocks, db_assertions
from tests.clocks import DatabaseClock
from tests.conftest import Person, variables
from tests.crash_points import Trap
from tests.db_assertions import Rows
from tests.domain import example
from tests.environments import Environment, Fleet, ForkServer

MINUTES_OFF = [timedelta(minutes=minutes) for minutes in (-10, -2, 2, 10)]
MESSAGE = example.add("buy milk")
DAY_SECONDS = 86_400
SLACK = 10
"""Seconds that may pass between two readings of a clock."""


@pytest.fixture(scope="module")
def clock(rows: Rows) -> Iterator[DatabaseClock]:
    """Give Postgres a clock that the test sets."""
    with clocks.running(rows) as clock, db_assertions.watched(rows):
        yield clock


@pytest.fixture
def database_url(server: Postgres, clock: DatabaseClock) -> str:
    """Give the runtime role's URL, for sessions that read that clock."""
    clock.differ_by(timedelta())
    return server.app_url


@pytest.fixture(params=MINUTES_OFF, ids=str)
def minutes_off(request: pytest.FixtureRequest, database_url: str, clock: DatabaseClock) -> timedelta:
    """Set Postgres's clock minutes ahead of the function's, or behind it."""
    offset: timedelta = request.param
    clock.differ_by(offset)
    return offset


class TestLeases:
    """Leases begin, hold and end by Postgres's clock."""

    def test_a_turn_runs_with_a_wrong_database_clock(
        self, minutes_off: timedelta, fleet: Fleet, issuer: Issuer, rows: Rows
    ) -> None:
        """The lease holds for each call, and the turn releases it."""
        client, message = Caller.new(issuer), MESSAGE.then(example.change("buy milk"))
        answer = fleet.start().ask(client.request({"message": message})).answer
        db_assertions.check_turn(rows, client.id, message, answer)
        assert example.rows_of(rows, client.id) == [example.row("buy milk", changed=True)]

    def test_a_killed_turns_lease_ends_in_time(
        self, minutes_off: timedelta, clock: DatabaseClock, fleet: Fleet, issuer: Issuer, rows: Rows
    ) -> None:
        """The conversation is busy until the lease ends. Then the same key resumes the turn."""
        client = Caller.new(issuer)
        request = client.request({"message": MESSAGE}, "key")
        with fleet.cold() as environment:
            assert environment.ask(request, Trap.kill(1, "model: sent")).trapped
        assert LEASE_SECONDS - SLACK < clock.lease_left(client.id) <= LEASE_SECONDS
        again = fleet.start()
        refused = again.ask(request).answer
        assert (refused.status, refused.headers["retry-after"]) == (409, "2")
        clock.advance(timedelta(seconds=LEASE_SECONDS))
        db_assertions.check_turn(rows, client.id, MESSAGE, again.ask(request).answer)
        assert db_assertions.effects(rows, client.id) == MESSAGE.effects

    def test_a_turn_whose_lease_ended_writes_nothing(
        self, minutes_off: timedelta, clock: DatabaseClock, fleet: Fleet, issuer: Issuer, rows: Rows
    ) -> None:
        """The function's own clock may say that there is time left."""
        client = Caller.new(issuer)
        request = client.request({"message": MESSAGE}, "key")
        zombie = fleet.start()
        assert zombie.ask(request, Trap.freeze(1, "model: sent")).trapped
        clock.advance(timedelta(seconds=LEASE_SECONDS))
        done = fleet.start().ask(request).answer
        zombie.thaw()
        late = zombie.outcome().answer
        assert (late.status, late.headers["retry-after"]) == (409, "1")
        db_assertions.check_turn(rows, client.id, MESSAGE, done)
        assert db_assertions.effects(rows, client.id) == MESSAGE.effects

    def test_a_turn_whose_lease_ends_early_resumes_with_its_key(
        self, clock: DatabaseClock, fleet: Fleet, issuer: Issuer, rows: Rows
    ) -> None:
        """Postgres's clock is set forward while the model thinks."""
        client, environment = Caller.new(issuer), fleet.start()
        request = client.request({"message": MESSAGE}, "key")
        assert environment.ask(request, Trap.freeze(1, "model: sent")).trapped
        clock.advance(timedelta(minutes=10))
        environment.thaw()
        late = environment.outcome().answer
        assert (late.status, late.headers["retry-after"]) == (409, "1")
        db_assertions.check_turn(rows, client.id, MESSAGE, environment.ask(request).answer)
        assert db_assertions.effects(rows, client.id) == MESSAGE.effects

    def test_a_turn_finishes_when_the_clock_is_set_back(
        self, clock: DatabaseClock, fleet: Fleet, issuer: Issuer, rows: Rows
    ) -> None:
        """The lease lasts longer by as much, and the turn still releases it."""
        client, environment = Caller.new(issuer), fleet.start()
        assert environment.ask(client.request({"message": MESSAGE}), Trap.freeze(1, "model: sent")).trapped
        clock.advance(timedelta(minutes=-10))
        assert 600 < clock.lease_left(client.id) <= 600 + LEASE_SECONDS
        environment.thaw()
        db_assertions.check_turn(rows, client.id, MESSAGE, environment.outcome().answer)
        assert clock.lease_left(client.id) == 0


def limited_fleet(fork_server: ForkServer, url: str, standin: StandIn, issuer: Issuer, tokens: int) -> Fleet:
    """Return a deployment that gives each user so many model tokens a day."""
    return Fleet(fork_server, variables(url, standin, issuer) | {"DAILY_MODEL_TOKENS": str(tokens)})


def midnight_after(moment: datetime) -> datetime:
    """Return the next midnight in UTC."""
    return datetime.combine(moment.astimezone(UTC).date() + timedelta(days=1), time(), UTC)


def used(rows: Rows, user_id: str) -> tuple[datetime, int]:
    """Return the day of the user's stored usage, and its model tokens."""
    kept = rows.execute("select day, model_tokens from allowance where user_id = %s and door = 'chat'", [user_id])
    row = kept.fetchone()
    assert row is not None
    return row["day"], row["model_tokens"]


class TestDailyQuota:
    """The day begins and ends at midnight UTC by Postgres's clock."""

    @pytest.fixture
    def deployment(
        self, warm_fork_server: ForkServer, database_url: str, standin: StandIn, issuer: Issuer
    ) -> Iterator[Callable[[int], Environment]]:
        """Give a function that starts an environment with this daily quota."""
        fleets: list[Fleet] = []

        def start(tokens: int) -> Environment:
            fleets.append(limited_fleet(warm_fork_server, database_url, standin, issuer, tokens))
            return fleets[-1].start()

        yield start
        for fleet in fleets:
            fleet.stop()

    @pytest.mark.parametrize("minutes", [-10, -1, 1, 10], ids=lambda minutes: f"{minutes} minutes to midnight")
    def test_retry_after_of_a_used_up_quota_is_the_right_midnight(
        self, minutes: int, clock: DatabaseClock, deployment: Callable[[int], Environment], issuer: Issuer
    ) -> None:
        """The function's own day does not matter."""
        clock.show(midnight_after(datetime.now(UTC)) + timedelta(minutes=minutes))
        answer = deployment(10).ask(Caller.new(issuer).request({"message": MESSAGE})).answer
        wait = (midnight_after(clock.now()) - clock.now()).total_seconds()
        assert answer.status == 429, answer.body
        assert len(answer.json["tool_calls"]) == 1
        assert wait <= int(answer.headers["retry-after"]) <= wait + SLACK

    def test_a_used_up_quota_resets_at_midnight(
        self, clock: DatabaseClock, deployment: Callable[[int], Environment], issuer: Issuer, rows: Rows
    ) -> None:
        """Turns get 429 until then and not later. The key of the turn that was stopped resumes it."""
        midnight, client = midnight_after(datetime.now(UTC)), Caller.new(issuer)
        clock.show(midnight - timedelta(minutes=5))
        environment, request = deployment(10), client.request({"message": MESSAGE}, "key")
        assert environment.ask(request).answer.status == 429
        refused = environment.ask(client.request({"message": "hello"})).answer
        assert (refused.status, 290 <= int(refused.headers["retry-after"]) <= 300) == (429, True)
        clock.show(midnight + timedelta(seconds=1))
        db_assertions.check_turn(rows, client.id, MESSAGE, environment.ask(request).answer)

    def test_a_turn_over_midnight_counts_on_the_day_it_ends(
        self,
        clock: DatabaseClock,
        deployment: Callable[[int], Environment],
        issuer: Issuer,
        rows: Rows,
        standin: StandIn,
    ) -> None:
        """All of its tokens count on the new day, and none of the tokens used before."""
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
        db_assertions.check_turn(rows, client.id, MESSAGE, environment.outcome().answer)
        assert used(rows, client.id) == (midnight.date(), sum(request["tokens"] for request in standin.requests()))


class TestGatewayClock:
    """The gateway's timestamp says how long a request has waited, if that is plausible."""

    @pytest.mark.parametrize("offset", MINUTES_OFF, ids=str)
    def test_a_wrong_gateway_clock_does_not_change_a_turns_time(
        self, offset: timedelta, fleet: Fleet, issuer: Issuer, rows: Rows
    ) -> None:
        """The turn neither ends at once nor gets more time than the gateway gives."""
        client = Caller.new(issuer)
        request = client.request({"message": MESSAGE})
        request["requestContext"]["timeEpoch"] = int((datetime.now(UTC) + offset).timestamp() * 1000)
        db_assertions.check_turn(rows, client.id, MESSAGE, fleet.start().ask(request).answer)
        assert seconds_left(Event.model_validate(request), LambdaContext(900)) == MAX_SECONDS

    def test_a_plausible_wait_shortens_the_deadline(self) -> None:
        """After a slow cold start the gateway does not wait any longer."""
        request = event("POST", "/")
        request["requestContext"]["timeEpoch"] = int((datetime.now(UTC) - timedelta(seconds=10)).timestamp() * 1000)
        left = seconds_left(Event.model_validate(request), LambdaContext(900))
        assert MAX_SECONDS - 10 - SLACK < left <= MAX_SECONDS - 10


class TestAuthServerClock:
    """The function's clock judges tokens, and allows the auth server's clock the leeway."""

    def ask(self, person: Person, clock: timedelta) -> Response:
        """Send a request with a fresh token of an auth server with such a clock."""
        from chat.app import handler

        now = int((datetime.now(UTC) + clock).timestamp())
        token = person.issuer.mint(person.id, issuer=AUTH, audience=AUTH, iat=now, exp=now + 900)
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        return invoke(handler, event("POST", f"/api/{person.id}/chat", headers=headers, body=b'{"message": "hello"}'))

    @pytest.mark.parametrize("seconds", [-600, -120, -LEEWAY + 5, LEEWAY - 5])
    def test_a_fresh_token_is_accepted(self, alice: Person, seconds: int) -> None:
        """The auth server's clock may be behind by less than a token's life, or ahead by less than the leeway."""
        assert self.ask(alice, timedelta(seconds=seconds)).status == 200

    @pytest.mark.parametrize("seconds", [-900 - LEEWAY - 5, LEEWAY + 5, 120, 600])
    def test_a_token_outside_its_time_is_refused(self, alice: Person, seconds: int) -> None:
        """The token has expired, or was issued in the future."""
        answer = self.ask(alice, timedelta(seconds=seconds))
        assert (answer.status, answer.json["type"]) == (401, "urn:taskchat:problem:unauthenticated")


def shown(said_at: datetime, timezone: str | None) -> str:
    """Return the context line that the model reads above the message."""
    turn = Turn(uuid4(), 0, "hello", said_at, timezone)
    (item,) = build_input([], turn)
    assert (item,) == tuple(build_input([], turn))
    line, text = str(item["content"]).split("\n")
    assert text == "hello"
    return line


def utc(text: str) -> datetime:
    """Return the moment, written in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


class TestTimeOfAMessage:
    """The model reads the local time of each message."""

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
    def test_the_model_reads_the_users_local_time(self, said_at: str, timezone: str | None, line: str) -> None:
        """Changes to and from summer time, odd offsets, ends of years and leap days are right."""
        assert shown(utc(said_at), timezone) == f"[context: {line}]"

    def test_every_time_zone_of_a_request_is_known(self) -> None:
        """Each zone's local time is right around the changes of a year."""
        zones = (files("tzdata") / "zones").read_text().split()
        moments = [utc(f"2026-{month:02}-28T{hour:02}:59:59") for month in range(1, 13) for hour in range(0, 24, 6)]
        for zone in zones:
            for moment in moments:
                there = moment.astimezone(ZoneInfo(zone))
                assert shown(moment, zone) == f"[context: {there:%A %Y-%m-%d %H:%M}, {zone}]"
        assert len(zones) > 500
