"""Read days and times of plain English: `tomorrow`, `Friday at 9`, `24 December`, `in two hours`, `next week`.

A weekday is the first one after today; `next Friday` is the Friday of next week. Weeks begin on Monday. `9` is nine in
the morning, `9pm` nine in the evening.
"""

import re
from calendar import monthrange
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

from dev.standin_model.script import Trouble

WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MONTHS: Final = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
NUMBERS: Final = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_PARTS: Final = {"morning": "09:00", "noon": "12:00", "midday": "12:00", "afternoon": "15:00", "evening": "19:00"}
_PARTS_OF_DAY: Final = _PARTS | {"tonight": "20:00", "night": "20:00", "midnight": "00:00"}
AMBIGUOUS: Final = "Is the day or the month first in {}? Write the month as a word, please: what is the date?"


@dataclass(frozen=True, slots=True)
class When:
    """A day and a time, of which one may be missing, as a tool takes them: `2026-11-27` and `09:00`."""

    day: str | None = None
    time: str | None = None

    def due(self, now: datetime) -> str:
        """Return the text for the tool. A time without a day is the next such time."""
        day = self.day or str(now.date() + timedelta((self.time or "") <= f"{now:%H:%M}"))
        return f"{day}T{self.time}" if self.time else day


# Days: a pattern each, and a function from its words to the day.


def _after(days: int) -> Callable[[date, str], date]:
    return lambda today, _: today + timedelta(days)


def _monday(today: date) -> date:
    return today - timedelta(today.weekday())


def _index(names: tuple[str, ...], words: str) -> int:
    """Return which of the names is the last word, or begins with it."""
    return next(index for index, name in enumerate(names) if name.startswith(words.split()[-1][:3]))


def _next_weekday(today: date, words: str) -> date:
    return today + timedelta((_index(WEEKDAYS, words) - today.weekday() - 1) % 7 + 1)


def _weekday_of_next_week(today: date, words: str) -> date:
    return _monday(today) + timedelta(7 + _index(WEEKDAYS, words))


def _number(word: str) -> int:
    return int(word) if word.isdecimal() else NUMBERS.index(word) + 1 if word in NUMBERS else 1


def _in_days(today: date, words: str) -> date:
    found = re.search(rf"({_NUMBER}) (month)|{LENGTH}", words)
    if found is None:
        raise ValueError(words)
    return _month_later(today, _number(found[1])) if found[2] else today + timedelta(length(found[0]))


def _month_later(day: date, months: int) -> date:
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    return date(year, month + 1, min(day.day, monthrange(year, month + 1)[1]))


def _week_from(today: date, words: str) -> str:
    """Return the day a week after the one that the words name in the end."""
    return str(date.fromisoformat(_find(_DAYS, re.split(r" (?:from|after) ", words)[-1], today)[0]) + timedelta(7))


def _end_of_month(today: date, _: str) -> date:
    return today.replace(day=monthrange(today.year, today.month)[1])


def _day_of_month(today: date, words: str) -> date:
    day = int(re.findall(r"\d+", words)[0])
    months = (_month_later(today.replace(day=1), later) for later in range(13))
    return next(
        m.replace(day=day) for m in months if day <= monthrange(m.year, m.month)[1] and m.replace(day=day) >= today
    )


def _named_month(today: date, words: str) -> str:
    month = 1 + next(_index(MONTHS, word) for word in re.findall(r"[a-z]+", words) if re.fullmatch(_MONTH, word))
    numbers = [int(number) for number in re.findall(r"\d+", words)]
    return _in_year(today, month, numbers[0], numbers[1] if len(numbers) > 1 else None)


def _numeric(today: date, words: str) -> str:
    """Return the day of `24.12.2030` or `24/12`. Raises Trouble if the order of day and month is not clear."""
    first, second, *year = (int(number) for number in re.findall(r"\d+", words))
    if "/" in words and first <= len(MONTHS) and second <= len(MONTHS) and first != second:
        raise Trouble(AMBIGUOUS.format(words))
    day, month = (second, first) if second > len(MONTHS) else (first, second)
    return _in_year(today, month, day, year[0] if year else None)


def _in_year(today: date, month: int, day: int, year: int | None) -> str:
    """Return the day of the year, or the next one. It is unchecked: the tool refuses one that does not exist."""
    if year is None:
        year = today.year + ((month, day) < (today.month, today.day))
    return f"{year + 2000 if year < 100 else year}-{month:02}-{day:02}"


def _next_week(today: date, _: str) -> str:
    return f"{_monday(today) + timedelta(7)}/{_monday(today) + timedelta(13)}"


def _month(today: date, words: str) -> str:
    first = _month_later(today.replace(day=1), words.startswith("next"))
    return f"{first}/{_end_of_month(first, '')}"


def _first_day(period: Callable[[date, str], str]) -> Callable[[date, str], str]:
    return lambda today, words: period(today, words).split("/")[0]


_NUMBER: Final = rf"(?:\d{{1,3}}|a couple of|an?|{'|'.join(NUMBERS)})"
_WEEKDAY: Final = rf"(?:{'|'.join(WEEKDAYS)}|mon|tues?|wed|thu|thurs?|fri|sat)\b"
_MONTH: Final = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)"
)
_NTH: Final = r"\d{1,2}(?:st|nd|rd|th)?"
_ORDINAL: Final = r"\d{1,2}(?:st|nd|rd|th)"

Table = dict[str, Callable[[date, str], date | str]]
_SIMPLE: Final[Table] = {
    r"(?:the )?day after tomorrow": _after(2),
    r"tomorrow|tmrw?|tomorow": _after(1),
    r"today|tonight": _after(0),
    rf"in {_NUMBER} (?:day|week|month)s?|{_NUMBER} (?:day|week|month)s? from (?:now|today)": _in_days,
    rf"next {_WEEKDAY}": _weekday_of_next_week,
    rf"(?:\d{{1,2}}(?:st|nd|rd|th)? (?:of )?{_MONTH}|{_MONTH} (?:the )?{_NTH})\b(?:,? \d{{4}}\b)?": _named_month,
    _WEEKDAY: _next_weekday,
    r"\d{4}-\d\d-\d\d": lambda _, words: words,  # unchecked, as above
    r"\d{1,2}\.\d{1,2}\.\d{4}\b|\d{1,2}/\d{1,2}(?:/\d{4}|/\d\d)?\b": _numeric,
    rf"the {_ORDINAL}(?: of (?:the|this) month)?": _day_of_month,
    r"(?:the )?end of (?:the|this) month": _end_of_month,
    r"(?:the )?(?:end of the week|weekend)": lambda today, _: _next_weekday(today, "saturday"),
}
_DAYS: Final[Table] = {rf"a week (?:from|after) (?:{'|'.join(_SIMPLE)})": _week_from} | _SIMPLE
_BEGINNINGS: Final[Table] = {r"next week": _first_day(_next_week), r"next month": _first_day(_month)}
_PERIODS: Final[Table] = {
    r"overdue": lambda _, words: words,
    r"this week": lambda *_: "this_week",
    r"next week": _next_week,
    r"(?:this|next) month": _month,
} | _DAYS

# Times

_HOURS: Final = rf"(?:[01]?\d|2[0-4]|{'|'.join(NUMBERS)})"
_HOUR: Final = rf"{_HOURS}\b"
_HALF: Final = r"(?: ?[ap]\.?m\b\.?)"
_EXACT: Final = (
    rf"(?:\d{{1,2}}:\d\d{_HALF}?|\d{{1,2}}(?:\.\d\d)?(?:{_HALF}| ?o'clock)"
    rf"|(?:half past|quarter past|quarter to) {_HOUR}{_HALF}?)"
)
_CLOCK: Final = rf"(?:{_EXACT}|\d{{1,2}}(?:\.\d\d|h(?:\d\d)?\b)|{_HOUR}|noon|midday|midnight)"
_SOON: Final = rf"(?:by|around|before) (?:{_EXACT}|noon|midday|midnight)"
_PART: Final = r"(?:in the |this )?(?:morning|afternoon|evening|night)"
_SPAN: Final = rf"in (?:half an|{_NUMBER}) (?:minute|hour)s?"
_AT: Final = "(?:(?:at|by|around|before|@) )"
_TIME: Final = rf"(?:(?:(?:at|@) {_CLOCK}|{_SOON}|{_EXACT})(?: {_PART})?|(?:in the|this) {_PART}(?: {_AT}{_CLOCK})?)"
_DAY: Final = (
    r"(?:(?:on|for|by|until|till|before|at|@|due|this|coming|the|to|over) ){0,3}"
    rf"(?:{'|'.join(_DAYS | _BEGINNINGS)})"
)
_TIME_AFTER: Final = rf"(?:T|,? )(?:{_AT}?{_CLOCK}(?: {_PART})?|{_PART}(?: {_AT}?{_CLOCK})?)"

WHEN: Final = rf"(?:{_DAY}(?:{_TIME_AFTER})?|{_TIME}(?:,? {_DAY})?|{_SPAN})"
"""A day with or without a time before or behind it, or a time."""

LENGTH: Final = rf"{_NUMBER} (?:day|week)s?"
"""By how much a task is postponed."""

PERIOD: Final = rf"(?:{'|'.join(_PERIODS)})"
"""A day, a week, a month, or `overdue`."""


def read(words: str, now: datetime) -> When:
    """Return the day and the time that the words name. Raises Trouble if the day is not clear."""
    words = words.lower()
    if re.fullmatch(_SPAN, words):
        then = _later(words, now)
        return When(str(then.date()), f"{then:%H:%M}")
    if not re.search(_DAY, words):
        return When(time=_time(words))
    day, rest = _find(_DAYS | _BEGINNINGS, words, now.date())
    return When(day, _time(f"{rest} tonight" if "tonight" in words else rest))


def period(words: str, today: date) -> str:
    """Return the period as `list_tasks` takes it."""
    return _find(_PERIODS, words.lower(), today)[0]


def length(words: str) -> int:
    """Return how many days a length of time has."""
    number, unit = words.lower().replace("a couple of", "two").split()
    return _number(number) * (7 if unit.startswith("week") else 1)


def _find(table: Table, words: str, today: date) -> tuple[str, str]:
    """Return the day that the words name, and the words around it."""
    for pattern, day in table.items():
        if found := re.search(rf"\b(?:{pattern})", words):
            return str(day(today, found[0])), words[: found.start()] + words[found.end() :]
    raise ValueError(words)


def _later(words: str, now: datetime) -> datetime:
    minutes = 60 if "hour" in words else 1
    number = 0.5 if "half" in words else _number(words.removeprefix("in ").replace("a couple of", "two").split()[0])
    return (now.astimezone(UTC) + timedelta(minutes=minutes * number)).astimezone(now.tzinfo)


def _time(words: str) -> str | None:
    """Return the time that the words name, such as `9`, `half past nine`, `8 in the evening`, `morning` or `noon`."""
    part = next((part for part in _PARTS_OF_DAY if re.search(rf"\b{part}\b", words)), None)
    clock = re.search(
        rf"(?P<quarter>half past|quarter past|quarter to)? ?(?<![\da-su-z])(?P<hour>{_HOURS})(?!\d)"
        r"(?:[:.h](?P<minute>\d\d))?",
        words,
    )
    if clock is None:
        return part and _PARTS_OF_DAY[part]
    hour, minute = _number(clock["hour"]), int(clock["minute"] or 0)
    hour, minute = {"half past": (hour, 30), "quarter past": (hour, 15), "quarter to": (hour - 1, 45)}.get(
        clock["quarter"], (hour, minute)
    )
    half = re.search(r"([ap])\.?m\b", words)
    if half:
        hour = hour % 12 + 12 * (half[1] == "p")
    elif part in ("afternoon", "evening", "night", "tonight") and hour < 12:
        hour += 12
    return f"{hour:02}:{minute:02}"
