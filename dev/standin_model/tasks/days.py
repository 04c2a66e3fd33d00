"""Read days and times of plain English: `tomorrow`, `Friday at 9`, `2026-12-01T09:30`, `next week`.

A weekday is the first one after today; `next Friday` is the Friday of next week. Weeks begin on Monday. `9` is nine in
the morning, `9pm` nine in the evening.
"""

import re
from collections.abc import Callable
from datetime import date, timedelta
from typing import Final

WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_WEEKDAY: Final = f"(?:{'|'.join(WEEKDAYS)})"


def _after(days: int) -> Callable[[date, str], date]:
    return lambda today, _: today + timedelta(days)


def _monday(today: date) -> date:
    return today - timedelta(today.weekday())


def _next_weekday(today: date, words: str) -> date:
    index = WEEKDAYS.index(words.split()[-1])
    return today + timedelta((index - today.weekday() - 1) % 7 + 1)


def _weekday_of_next_week(today: date, words: str) -> date:
    return _monday(today) + timedelta(7 + WEEKDAYS.index(words.split()[-1]))


def _in_days(today: date, words: str) -> date:
    _, number, unit = words.split()
    return today + timedelta(int(number) * (7 if unit.startswith("week") else 1))


def _next_week(today: date, _: str) -> str:
    return f"{_monday(today) + timedelta(7)}/{_monday(today) + timedelta(13)}"


_DAYS: Final[dict[str, Callable[[date, str], date | str]]] = {
    r"day after tomorrow": _after(2),
    r"tomorrow": _after(1),
    r"today": _after(0),
    r"in \d{1,3} (?:days?|weeks?)": _in_days,
    rf"next {_WEEKDAY}": _weekday_of_next_week,
    _WEEKDAY: _next_weekday,
    r"\d{4}-\d\d-\d\d": lambda _, words: words,  # unchecked: the tool refuses one that does not exist
}
_PERIODS: Final = _DAYS | {
    r"overdue": lambda _, words: words,
    r"this week": lambda *_: "this_week",
    r"next week": _next_week,
}
_CLOCK: Final = r"\d{1,2}(?::\d\d)? ?(?:[ap]m)?"

WHEN: Final = rf"(?:at {_CLOCK} )?(?:(?:on|for|by|this|the|due) ){{0,2}}(?:{'|'.join(_DAYS)})(?:(?:T| at | ){_CLOCK})?"
"""A day, with or without a time before or behind it."""

PERIOD: Final = rf"(?:{'|'.join(_PERIODS)})"
"""A day, a week, or `overdue`."""


def due(words: str, today: date) -> str:
    """Return the day, and the time if the words have one, as a tool takes it: `2026-11-27` or `2026-11-27T09:00`."""
    day, rest = _read(_DAYS, words.lower(), today)
    clock = re.search(r"(\d{1,2})(?::(\d\d))? ?([ap]m)?", rest)
    if clock is None:
        return day
    hour, minute, half = int(clock[1]), clock[2] or "00", clock[3]
    return f"{day}T{hour % 12 + 12 * (half == 'pm') if half else hour:02}:{minute}"


def period(words: str, today: date) -> str:
    """Return the period as `list_tasks` takes it."""
    return _read(_PERIODS, words.lower(), today)[0]


def _read(table: dict[str, Callable[[date, str], date | str]], words: str, today: date) -> tuple[str, str]:
    """Return the day that the words name, and the words around it."""
    for pattern, day in table.items():
        if found := re.search(pattern, words):
            return str(day(today, found[0])), words[: found.start()] + words[found.end() :]
    raise ValueError(words)
