"""A due date is parsed as the person meant it, and what a result shows can be given back."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskchat.tasks.due import BadDate, Due, Window

PARIS, NEW_YORK, TOKYO = "Europe/Paris", "America/New_York", "Asia/Tokyo"
ZONES = [PARIS, NEW_YORK, TOKYO, "UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago", "Pacific/Apia", "Asia/Kolkata"]
ZONES += ["Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns", "Africa/Casablanca", "Asia/Gaza"]

SHOWN = [
    ("2026-11-27", PARIS, "2026-11-27", "Friday"),
    ("2026-11-27T09:00", PARIS, "2026-11-27T09:00+01:00[Europe/Paris]", "Friday"),
    ("2026-11-27T09:00:30", "UTC", "2026-11-27T09:00:30+00:00[UTC]", "Friday"),
    ("2026-11-27T09:00:00.000Z", PARIS, "2026-11-27T09:00+00:00", "Friday"),  # as JavaScript writes it
    ("2026-11-27T09:00Z", PARIS, "2026-11-27T09:00+00:00", "Friday"),
    ("2026-11-27T09:00-00:00", PARIS, "2026-11-27T09:00+00:00", "Friday"),
    ("2026-11-27T09:00+05:30", PARIS, "2026-11-27T09:00+05:30", "Friday"),
    ("2026-11-27T09:00[Asia/Tokyo]", PARIS, "2026-11-27T09:00+09:00[Asia/Tokyo]", "Friday"),
    ("2026-11-27T23:00Z[Asia/Tokyo]", PARIS, "2026-11-28T08:00+09:00[Asia/Tokyo]", "Saturday"),
    ("2026-12-31T23:59", "Pacific/Kiritimati", "2026-12-31T23:59+14:00[Pacific/Kiritimati]", "Thursday"),
    ("2027-01-01T00:00", "Pacific/Pago_Pago", "2027-01-01T00:00-11:00[Pacific/Pago_Pago]", "Friday"),
    ("2026-11-27T09:00", "Asia/Kolkata", "2026-11-27T09:00+05:30[Asia/Kolkata]", "Friday"),
    ("2026-11-27T09:00", "Asia/Kathmandu", "2026-11-27T09:00+05:45[Asia/Kathmandu]", "Friday"),
    ("2028-02-29", "UTC", "2028-02-29", "Tuesday"),
    ("2000-02-29T12:00", "UTC", "2000-02-29T12:00+00:00[UTC]", "Tuesday"),
    ("0001-01-01", "UTC", "0001-01-01", "Monday"),
    ("9999-12-31", "UTC", "9999-12-31", "Friday"),
    ("0001-01-01T00:00", "UTC", "0001-01-01T00:00+00:00[UTC]", "Monday"),
    ("9999-12-31T23:59:59", "UTC", "9999-12-31T23:59:59+00:00[UTC]", "Friday"),
    ("1900-01-01T00:00", PARIS, "1900-01-01T00:00+00:09:21[Europe/Paris]", "Monday"),
]
"""What is given, in which zone, and what is shown."""

CLOCKS = [
    ("2026-03-28T09:00", PARIS, "2026-03-28T09:00+01:00[Europe/Paris]"),
    ("2026-03-29T09:00", PARIS, "2026-03-29T09:00+02:00[Europe/Paris]"),
    ("2026-10-24T09:00", PARIS, "2026-10-24T09:00+02:00[Europe/Paris]"),
    ("2026-10-25T09:00", PARIS, "2026-10-25T09:00+01:00[Europe/Paris]"),
    # skipped: on by the gap
    ("2026-03-29T02:30", PARIS, "2026-03-29T03:30+02:00[Europe/Paris]"),
    ("2026-03-08T02:30", NEW_YORK, "2026-03-08T03:30-04:00[America/New_York]"),
    ("2026-10-04T02:15", "Australia/Lord_Howe", "2026-10-04T02:45+11:00[Australia/Lord_Howe]"),
    ("2011-12-30T12:00", "Pacific/Apia", "2011-12-31T12:00+14:00[Pacific/Apia]"),
    # repeated: the first, unless the offset chooses
    ("2026-10-25T02:30", PARIS, "2026-10-25T02:30+02:00[Europe/Paris]"),
    ("2026-10-25T02:30+02:00[Europe/Paris]", TOKYO, "2026-10-25T02:30+02:00[Europe/Paris]"),
    ("2026-10-25T02:30+01:00[Europe/Paris]", TOKYO, "2026-10-25T02:30+01:00[Europe/Paris]"),
    ("2026-04-05T01:45", "Australia/Lord_Howe", "2026-04-05T01:45+11:00[Australia/Lord_Howe]"),
    ("2026-04-05T01:45+10:30[Australia/Lord_Howe]", "UTC", "2026-04-05T01:45+10:30[Australia/Lord_Howe]"),
]
"""Times near a change of the clocks: what is given, in which zone, and what is shown."""

NONSENSE = [
    *(
        "",
        " ",
        "none",
        "null",
        "tomorrow",
        "Friday",
        "2026",
        "2026-11",
        "2026-W48-5",
        "2026-331",
        "20261127",
        "27.11.2026",
    ),
    *("2026-13-01", "2026-00-10", "2026-11-31", "2027-02-29", "1900-02-29", "0000-01-01", "10000-01-01", "-2026-11-27"),
    *("2026-11-27T", "2026-11-27T9:00", "2026-11-27T09", "2026-11-27T24:00", "2026-11-27T09:60", "2026-11-27T23:59:60"),
    *("2026-11-27 09:00", "2026-11-27t09:00", "2026-11-27T09:00z", "2026-11-27T09:00:00.5", "2026-11-27T09:00,5"),
    *("2026-11-27T09:00+1", "2026-11-27T09:00+0100", "2026-11-27T09:00+24:00", "2026-11-27T09:00+01:60"),
    *(
        "2026-11-27T09:00[]",
        "2026-11-27T09:00[Mars/Base]",
        "2026-11-27T09:00[europe/paris]",
        "2026-11-27[Europe/Paris]",
    ),
    *("2026-11-27T09:00[../../etc/passwd]", "2026-11-27T09:00[/etc/passwd]", "2026-11-27T09:00[Europe]"),
    *("2026-11-27T09:00[Europe/Paris][u-ca=hebrew]", "2026-11-27T09:00[!Europe/Paris]", "2026-11-27T09:00[localtime]"),
    *(
        "\uff12\uff10\uff12\uff16-11-27",
        "\u0662\u0660\u0662\u0666-11-27",
        "2026-11-27\n",
        " 2026-11-27",
        "2026-11-27\0",
        "2026\u201111\u201127",
        "2026-11-27\ud800",
    ),
    *("2026-11-27" * 10_000, "9" * 100_000, "2026-11-27T09:00[" + "A" * 100_000 + "]"),
    *("2026-11-27T09:00+02:00[Europe/Paris]", "2026-03-29T02:30+01:00[Europe/Paris]"),  # offsets of another time
    *("0001-01-01T00:00[Asia/Tokyo]", "9999-12-31T23:00[America/New_York]", "0001-01-01T00:00Z[America/New_York]"),
]

_WALLS = st.datetimes().filter(lambda wall: 2 <= wall.year <= 9998)
_instants = st.builds(
    lambda wall, zone: f"{wall.isoformat(timespec='seconds')}[{zone}]",
    _WALLS,
    st.sampled_from(ZONES),
)
_offsets = st.builds(
    lambda wall, sign, hour, minute: f"{wall.isoformat(timespec='minutes')}{sign}{hour:02}:{minute:02}",
    _WALLS,
    st.sampled_from("+-"),
    st.integers(0, 23),
    st.integers(0, 59),
)


@pytest.mark.parametrize(("text", "zone", "shown", "weekday"), SHOWN)
def test_a_date_is_shown_with_its_weekday(text: str, zone: str, shown: str, weekday: str) -> None:
    """An instant has its offset and its zone."""
    due = Due.parse(text, zone)
    assert (str(due), due.weekday) == (shown, weekday)


@pytest.mark.parametrize(("text", "zone", "shown"), CLOCKS)
def test_a_time_keeps_its_hour_across_a_change_of_the_clocks(text: str, zone: str, shown: str) -> None:
    """A skipped time moves on by the gap. A repeated time is the first, unless its offset chooses."""
    assert str(Due.parse(text, zone)) == shown


@pytest.mark.parametrize("text", NONSENSE, ids=lambda text: ascii(text[:45]))
def test_nonsense_is_refused(text: str) -> None:
    """The sentence repeats nothing of the text."""
    with pytest.raises(BadDate) as refused:
        Due.parse(text, "UTC")
    assert str(refused.value) in {
        "write a day as 2026-11-27 and a time as 2026-11-27T09:00",
        "there is no such day, time or zone",
        "the offset is not that of the zone at this time",
    }


def test_a_day_is_the_same_day_everywhere() -> None:
    """It has no instant and no zone."""
    assert {Due.parse("2026-11-27", zone) for zone in ZONES} == {Due(date(2026, 11, 27))}


@given(st.one_of(_instants, _offsets, st.dates().map(date.isoformat)), st.sampled_from(ZONES))
def test_a_date_that_is_shown_can_be_given_back(text: str, zone: str) -> None:
    """The row is the same, whatever the zone of the person who gives it back."""
    due = Due.parse(text, "UTC")
    assert Due.parse(str(due), zone) == due


@given(st.text(max_size=80))
def test_any_text_is_a_date_or_refused(text: str) -> None:
    """No other error is raised, in either grammar."""
    for parse in (lambda: Due.parse(text, PARIS), lambda: Window.parse(text, datetime.now(UTC), PARIS)):
        try:
            parse()
        except BadDate:
            continue


FRIDAY = datetime(2026, 11, 27, 12, tzinfo=UTC)

WINDOWS = [
    ("today", FRIDAY, "UTC", "2026-11-27", "2026-11-27"),
    ("today", FRIDAY, "Pacific/Kiritimati", "2026-11-28", "2026-11-28"),
    ("today", FRIDAY.replace(hour=10), "Pacific/Pago_Pago", "2026-11-26", "2026-11-26"),
    ("this_week", FRIDAY, PARIS, "2026-11-23", "2026-11-29"),
    ("this_week", datetime(2026, 11, 29, 23, tzinfo=UTC), PARIS, "2026-11-30", "2026-12-06"),
    ("this_week", datetime(2027, 1, 1, tzinfo=UTC), "UTC", "2026-12-28", "2027-01-03"),
    ("this_week", datetime(2028, 2, 29, tzinfo=UTC), "UTC", "2028-02-28", "2028-03-05"),
    ("2026-11-27", FRIDAY, PARIS, "2026-11-27", "2026-11-27"),
    ("2026-11-23/2026-11-29", FRIDAY, PARIS, "2026-11-23", "2026-11-29"),
    ("../2026-11-30", FRIDAY, PARIS, "0001-01-01", "2026-11-30"),
    ("2026-11-30/..", FRIDAY, PARIS, "2026-11-30", "9999-12-31"),
    ("../..", FRIDAY, NEW_YORK, "0001-01-01", "9999-12-31"),
    ("0001-01-01/9999-12-31", FRIDAY, TOKYO, "0001-01-01", "9999-12-31"),
    ("today", datetime(9999, 12, 31, tzinfo=UTC), "UTC", "9999-12-31", "9999-12-31"),
]


@pytest.mark.parametrize(("text", "now", "zone", "first", "last"), WINDOWS)
def test_a_window_has_the_person_s_days(text: str, now: datetime, zone: str, first: str, last: str) -> None:
    """A week goes from Monday to Sunday."""
    window = Window.parse(text, now, zone)
    assert (window.first.isoformat(), window.last.isoformat()) == (first, last)
    assert not window.is_overdue


DAYS = [
    (PARIS, "2026-03-29", 23),
    (PARIS, "2026-10-25", 25),
    (PARIS, "2026-11-27", 24),
    ("Australia/Lord_Howe", "2026-10-04", 23.5),
    ("Australia/Lord_Howe", "2026-04-05", 24.5),
    ("Pacific/Apia", "2011-12-30", 0),
    ("America/Sao_Paulo", "2018-11-04", 23),  # its midnight was skipped
]


@pytest.mark.parametrize(("zone", "day", "hours"), DAYS)
def test_a_day_has_as_many_hours_as_the_clocks_give_it(zone: str, day: str, hours: float) -> None:
    """The day that Samoa skipped has none."""
    window = Window.parse(day, FRIDAY, zone)
    assert window.end - window.begin == timedelta(hours=hours)


@given(st.integers(0, 40 * 366 * 96), st.sampled_from([zone for zone in ZONES if "Johns" not in zone]))
def test_an_instant_is_in_the_window_of_its_day(quarters: int, zone: str) -> None:
    """It is in no other day's window. St. John's once put its clocks back at one minute past midnight."""
    instant = datetime(2010, 1, 1, tzinfo=UTC) + quarters * timedelta(minutes=15)
    day = instant.astimezone(ZoneInfo(zone)).date()
    windows = [Window.parse((day + timedelta(days=n)).isoformat(), FRIDAY, zone) for n in (-1, 0, 1)]
    assert [window.begin <= instant < window.end for window in windows] == [False, True, False]


@given(_instants, st.sampled_from(ZONES))
def test_a_window_reads_the_days_of_its_instants(text: str, zone: str) -> None:
    """The days between `earliest` and `latest` hold each instant's own day, also far from the person's zone."""
    due = Due.parse(text, "UTC")
    assert due.at is not None
    window = Window.parse(due.at.astimezone(ZoneInfo(zone)).date().isoformat(), FRIDAY, zone)
    assert window.earliest <= due.on <= window.latest
    overdue = Window.parse("overdue", due.at + timedelta(seconds=1), zone)
    assert overdue.earliest <= due.on <= overdue.latest


def test_overdue_ends_now() -> None:
    """A day is overdue when it has ended for the person, and an instant when it has passed."""
    window = Window.parse("overdue", FRIDAY, "Pacific/Kiritimati")
    assert (window.last, window.end, window.is_overdue) == (date(2026, 11, 27), FRIDAY, True)


BAD_WINDOWS = ["", "Today", "tomorrow", "this week", "/", "..", "2026-11-27/", "/2026-11-27", "2026-11-27/2026-11-26"]
BAD_WINDOWS += ["2026-11-27T09:00", "2026-02-30", "2026-02-30/..", "2026-11-27/P1D", "none", "today/..", "a" * 100_000]


@pytest.mark.parametrize("text", BAD_WINDOWS, ids=lambda text: text[:30])
def test_a_window_that_is_none_is_refused(text: str) -> None:
    """The sentence says what to write."""
    with pytest.raises(BadDate):
        Window.parse(text, FRIDAY, PARIS)
