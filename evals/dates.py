"""Read the days and times of the cases: `friday 09:00`, `+12d`, `+2h`. They count from the clock of the run."""

import calendar
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final, Self
from zoneinfo import ZoneInfo

WEEKDAYS: Final = [day.lower() for day in calendar.day_name]
TOLERANCE: Final = timedelta(minutes=5)
"""Error that an instant such as `+2h` may have: the model reads the clock in whole minutes, and may round."""

_SPAN: Final = re.compile(r"([+-]\d{1,3})([dw])")
_SOON: Final = re.compile(r"\+(\d{1,3})([hm])")
_CLOCK: Final = re.compile(r"(.+) (\d\d:\d\d|\*)")
_DUE: Final = re.compile(r"(\d{4}-\d\d-\d\d)(?:T([^\[]+)(?:\[(.+)\])?)?")
_PLACEHOLDER: Final = re.compile(r"\{([^{}|]+)\|([^{}|]+)\}")


class BadWhen(ValueError):
    """Raised for a text that names no day or time."""


@dataclass(frozen=True)
class Clock:
    """A moment, in the person's time zone."""

    now: datetime

    @classmethod
    def read(cls, zone: str) -> Self:
        """Return the present moment in the zone."""
        return cls(datetime.now(UTC).astimezone(ZoneInfo(zone)))

    @property
    def today(self) -> date:
        """Return the person's day."""
        return self.now.date()


@dataclass(frozen=True)
class When:
    """A day, a day at any time, or an instant."""

    on: date
    at: datetime | None = None
    any_time: bool = False
    tolerance: timedelta = timedelta()

    @classmethod
    def parse(cls, text: str, clock: Clock) -> Self:
        """Return the day or the instant that a text names. Raises BadWhen."""
        if soon := _SOON.fullmatch(text):
            at = clock.now + timedelta(**{{"h": "hours", "m": "minutes"}[soon[2]]: int(soon[1])})
            return cls(at.date(), at, tolerance=TOLERANCE)
        timed = _CLOCK.fullmatch(text)
        day = read_day(timed[1] if timed else text, clock.today)
        if timed is None or timed[2] == "*":
            return cls(day, any_time=timed is not None)
        return cls(day, datetime.combine(day, time.fromisoformat(timed[2]), clock.now.tzinfo))

    def fits(self, due: str) -> bool:
        """Return whether a task's `due` is this day or instant. The zone in which it is written does not matter."""
        found = _DUE.fullmatch(due)
        if found is None or found[2] is None:
            return found is not None and self.at is None and found[1] == str(self.on)
        if self.at is None:
            return self.any_time and found[1] == str(self.on)
        return abs(datetime.fromisoformat(f"{found[1]}T{found[2]}") - self.at) <= self.tolerance

    def written(self) -> str:
        """Return the day or the instant as a tool takes it."""
        if self.at is None:
            return str(self.on)
        return f"{self.at:%Y-%m-%dT%H:%M}[{self.at.tzinfo}]"


def read_day(text: str, today: date) -> date:
    """Return the day that a text names: a weekday is the first one after today. Raises BadWhen."""
    if text in _NAMED:
        return _NAMED[text](today)
    if span := _SPAN.fullmatch(text):
        return today + int(span[1]) * timedelta(days={"d": 1, "w": 7}[span[2]])
    *following, weekday = text.split()
    if weekday not in WEEKDAYS or following not in ([], ["next"]):
        raise BadWhen(f"{text!r} is no day: write today, +3d, friday or next friday, and a time as friday 09:00")
    ahead = WEEKDAYS.index(weekday) - today.weekday()
    return today + timedelta(days=ahead + 7 if following else (ahead - 1) % 7 + 1)


_NAMED: Final[dict[str, Callable[[date], date]]] = {
    "today": lambda today: today,
    "tomorrow": lambda today: today + timedelta(days=1),
    "yesterday": lambda today: today - timedelta(days=1),
    "end of month": lambda today: today.replace(day=calendar.monthrange(today.year, today.month)[1]),
}


def render(message: str, clock: Clock) -> str:
    """Return the message with its placeholders filled in: `{+12d|%d %B}` becomes `4 December`. Raises BadWhen."""
    return _PLACEHOLDER.sub(lambda found: format(When.parse(found[1], clock).on, found[2]).lstrip("0"), message)
