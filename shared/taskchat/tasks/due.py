"""Parse and write when a task is due: on a day, or at an instant of a time zone. It uses no database and no clock.

The text of an instant is that of RFC 9557, such as `2026-11-27T09:00+01:00[Europe/Paris]`.
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, tzinfo
from typing import Final, Self
from zoneinfo import ZoneInfo

from taskchat.timezones import check_timezone

WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
"""The names in English on every machine. `strftime` would take them from the machine's locale."""

_DAY: Final = r"\d{4}-\d\d-\d\d"
_TIME: Final = r"(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d)?"
_ZEROS: Final = r"(?:\.0{1,6})?"  # JavaScript writes milliseconds
_OFFSET: Final = rf"Z|[+-]{_TIME}"  # with seconds, too: Paris was 9 minutes and 21 seconds ahead until 1911
_DUE: Final = re.compile(
    rf"(?P<day>{_DAY})(?:T(?P<time>{_TIME}){_ZEROS}(?P<offset>{_OFFSET})?(?:\[(?P<zone>[A-Za-z0-9_+/-]+)\])?)?",
    re.ASCII,
)
_DAYS: Final = re.compile(rf"(?P<only>{_DAY})|(?P<from>{_DAY}|\.\.)/(?P<to>{_DAY}|\.\.)", re.ASCII)
_OPEN: Final = ".."
_SIGNS: Final = ("+", "-")
_WALL: Final = len("2026-11-27T09:00:00")

_SLACK: Final = 3
"""Days. The day of an instant in its own zone is fewer days away from its day in any other zone."""

_BEGIN_OF_TIME: Final = datetime.min.replace(tzinfo=UTC)
_END_OF_TIME: Final = datetime.max.replace(tzinfo=UTC)


class BadDate(ValueError):
    """Raised for a text that is no day, instant or range. Its text is a plain sentence that repeats nothing."""


@dataclass(frozen=True)
class Due:
    """A day, which is the same day in every zone, or an instant in its zone. The fields are a row's columns."""

    on: date
    """The day, in `zone` if there is one."""
    at: datetime | None = None
    zone: str | None = None
    """An IANA name, or an offset such as +05:30. Only an instant has a zone."""

    @classmethod
    def parse(cls, text: str, zone: str) -> Self:
        """Return the day or the instant. A time without an offset and a zone is in `zone`. Raises BadDate."""
        form = _DUE.fullmatch(text)
        if form is None:
            raise BadDate("write a day as 2026-11-27 and a time as 2026-11-27T09:00")
        try:
            return cls(date.fromisoformat(form["day"])) if form["time"] is None else cls._parse_instant(form, zone)
        except (ValueError, OverflowError) as error:
            raise error if isinstance(error, BadDate) else BadDate("there is no such day, time or zone") from None

    @classmethod
    def _parse_instant(cls, form: re.Match[str], zone: str) -> Self:
        """Return the instant. A time that the clocks skip moves on by the gap. One that they repeat is the first.

        Raises BadDate, or ValueError or OverflowError for a time that does not exist.
        """
        offset = form["offset"]
        wall = datetime.fromisoformat(f"{form['day']}T{form['time']}{offset or ''}")
        name = form["zone"] or (wall.isoformat()[_WALL:] if offset else zone)
        place = _zone(name)
        at = (wall if offset else wall.replace(tzinfo=place)).astimezone(UTC)
        local = at.astimezone(place)
        if offset not in (None, "Z") and local.utcoffset() != wall.utcoffset():
            raise BadDate("the offset is not that of the zone at this time")
        return cls(local.date(), at, name)

    def __str__(self) -> str:
        """Return a text from which `parse` makes the same day or instant again."""
        if self.at is None or self.zone is None:
            return self.on.isoformat()
        local = self.at.astimezone(_zone(self.zone))
        text = local.isoformat(timespec="seconds" if local.second else "minutes")
        return text if self.zone.startswith(_SIGNS) else f"{text}[{self.zone}]"

    @property
    def weekday(self) -> str:
        """Return the name of the day in English."""
        return WEEKDAYS[self.on.weekday()]


@dataclass(frozen=True)
class Window:
    """The days from `first` to `last`, and the instants from `begin` until before `end`."""

    first: date
    last: date
    begin: datetime
    end: datetime
    is_overdue: bool = False
    """It ends now, and only a pending task can be in it."""

    @classmethod
    def parse(cls, text: str, now: datetime, zone: str) -> Self:
        """Return the window that `text` names for a person in `zone`. Raises BadDate."""
        today = now.astimezone(ZoneInfo(zone)).date()
        if text == "overdue":
            return cls(date.min, _shift(today, -1), _BEGIN_OF_TIME, now, is_overdue=True)
        first, last = _parse_days(text, today)
        if first > last:
            raise BadDate("the first day comes after the last")
        begin = _BEGIN_OF_TIME if first == date.min else _midnight(first, zone)
        end = _END_OF_TIME if last == date.max else _midnight(_shift(last, 1), zone)
        return cls(first, last, begin, end)

    @property
    def earliest(self) -> date:
        """Return a day before which no task in the window has its `on`, whatever its zone."""
        return _shift(self.first, -_SLACK)

    @property
    def latest(self) -> date:
        """Return a day after which no task in the window has its `on`, whatever its zone."""
        return _shift(self.last, _SLACK)


def _parse_days(text: str, today: date) -> tuple[date, date]:
    """Return the first and the last day. Raises BadDate."""
    if text == "today":
        return today, today
    if text == "this_week":
        monday = _shift(today, -today.weekday())
        return monday, _shift(monday, 6)
    form = _DAYS.fullmatch(text)
    if form is None:
        raise BadDate("write overdue, today, this_week, a day as 2026-11-27 or a range as 2026-11-23/2026-11-29")
    first, last = form["only"] or form["from"], form["only"] or form["to"]
    try:
        return (
            date.min if first == _OPEN else date.fromisoformat(first),
            date.max if last == _OPEN else date.fromisoformat(last),
        )
    except ValueError:
        raise BadDate("there is no such day") from None


def _midnight(day: date, zone: str) -> datetime:
    """Return the instant at which the day begins, after the gap if the clocks skip midnight."""
    return datetime.combine(day, time.min, ZoneInfo(zone)).astimezone(UTC)


def _shift(day: date, days: int) -> date:
    """Return the day so many days later, or the last or first day that there is."""
    return date.fromordinal(min(max(day.toordinal() + days, date.min.toordinal()), date.max.toordinal()))


def _zone(name: str) -> tzinfo | None:
    """Return the time zone. Raises ValueError for a name that is neither an offset nor IANA's."""
    if name.startswith(_SIGNS):
        return datetime.fromisoformat(f"2000-01-01T00:00{name}").tzinfo
    return ZoneInfo(check_timezone(name))
