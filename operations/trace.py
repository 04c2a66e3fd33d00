"""Draw a turn's waterfall in the terminal, from the logs alone: `make trace TURN=<id>`.

A turn has an attempt for each request that worked on it. A line is written when its step ends, with the step's time.
"""

import argparse
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final, TextIO
from uuid import UUID

from operations import options
from operations.log_source import Line, LogSource, OperatorError, Query, in_order, time_of
from taskchat import genai

_OF_A_TURN: Final = ("taskchat.usage", "taskchat.model", "taskchat.audit")
_OF_A_REQUEST: Final = "taskchat.request"
_LABEL: Final = 26
_NARROWEST: Final = 10
_WIDEST: Final = 60
_TIME: Final = len("12,345 ms")
_LONGEST_REQUEST: Final = timedelta(minutes=15)
"""The longest time that Lambda gives a request."""


@dataclass(frozen=True)
class Span:
    """One step: its name, its beginning and end, and what else is known of it."""

    name: str
    start: datetime
    end: datetime
    detail: str = ""

    @property
    def ms(self) -> float:
        """Return the step's time in milliseconds."""
        return (self.end - self.start) / timedelta(milliseconds=1)


@dataclass
class Attempt:
    """The lines of one request that worked on the turn."""

    request_id: str
    lines: list[Line] = field(default_factory=list)
    request: Line | None = None
    """The request's last line. None if its process was killed, and for the lines of an earlier version."""

    @property
    def usage(self) -> Line:
        """Return the line about the end of the attempt, or an empty one."""
        return next((line for line in self.lines if _schema(line) == "taskchat.usage"), {})

    @property
    def spans(self) -> list[Span]:
        """Return the steps in order of their beginning."""
        steps = [_step(line) for line in self.lines if _schema(line) != "taskchat.usage"]
        return sorted([*self._transactions(steps), *steps, *self._pauses()], key=lambda span: span.start)

    def _pauses(self) -> Iterator[Span]:
        """Return the waits between a failed try of a model call and the next try."""
        tries = [line for line in self.lines if _schema(line) == "taskchat.model"]
        for before, after in pairwise(tries):
            if after["attempt"] > 1:
                yield Span("pause", time_of(before), _step(after).start)

    def _transactions(self, steps: list[Span]) -> Iterator[Span]:
        """Return the turn's own transactions: the first ends where the first step begins, the last ends the turn."""
        usage = self.usage
        if not usage:
            return
        if begin_ms := usage.get("begin_ms"):
            end = min((span.start for span in steps), default=self._start_of(usage) + _ms(begin_ms))
            yield Span("begin", max(end - _ms(begin_ms), min(self._start_of(usage), end)), end)
        if finish_ms := usage.get("finish_ms"):
            yield Span("finish", time_of(usage) - _ms(finish_ms), time_of(usage))

    @property
    def start(self) -> datetime:
        """Return when the request arrived at the gateway, as far as known."""
        known = [self._start_of(line) for line in (self.request, self.usage) if line]
        return min([*known, *(_step(line).start for line in self.lines if _schema(line) != "taskchat.usage")])

    @property
    def end(self) -> datetime:
        """Return when the last line was written."""
        return max(time_of(line) for line in (*self.lines, *filter(None, [self.request])))

    @property
    def unaccounted_ms(self) -> float:
        """Return the time in which no known step ran."""
        left, reached = timedelta(), self.start
        for span in self.spans:
            left += max(span.start - reached, timedelta())
            reached = max(reached, span.end)
        return (left + max(self.end - reached, timedelta())) / timedelta(milliseconds=1)

    def _start_of(self, line: Line) -> datetime:
        return time_of(line) - _ms(line.get("duration_ms") or 0)


def _schema(line: Line) -> str:
    return str(line["schema"]).partition("/")[0]


def _ms(number: float) -> timedelta:
    return timedelta(milliseconds=number)


def _step(line: Line) -> Span:
    start = time_of(line) - _ms(line.get("duration_ms") or 0)
    if _schema(line) == "taskchat.model":
        name = f"model, try {line['attempt']}" if line["attempt"] > 1 else "model"
        return Span(name, start, time_of(line), _describe_model_call(line))
    return Span(line["tool"], start, time_of(line), line["outcome"])


def _describe_model_call(line: Line) -> str:
    call = genai.read_model_call(line)
    parts = [line["outcome"], call.model]
    parts += [f"first word after {line['first_token_ms']:,.0f} ms"] if line.get("first_token_ms") is not None else []
    if call.input_tokens:
        parts.append(f"{call.input_tokens:,} tokens in ({call.cached_tokens:,} cached), {call.output_tokens:,} out")
    return ", ".join(filter(None, [*parts, (call.error or "").removesuffix(" None")]))


def read_attempts(log: LogSource, turn_id: str, since: datetime, until: datetime) -> list[Attempt]:
    """Return the turn's attempts in order of time. Raises OperatorError for a turn without a line."""
    attempts: defaultdict[str, Attempt] = defaultdict(lambda: Attempt(""))
    for line in in_order(log.read(Query(since, until, _OF_A_TURN, {"turn_id": (turn_id,)}))):
        attempts[str(line.get("correlation_id"))].lines.append(line)
    if not attempts:
        raise OperatorError(f"The log has no line of the turn {turn_id} in this time. A wider one: --since 30d")
    for request_id, attempt in attempts.items():
        attempt.request_id = request_id
    ids = Query(*_around(attempts.values()), (_OF_A_REQUEST,), {"correlation_id": tuple(attempts)})
    for line in log.read(ids):
        attempts[line["correlation_id"]].request = line
    return sorted(attempts.values(), key=lambda attempt: attempt.start)


def _around(attempts: Any) -> tuple[datetime, datetime]:
    times = [time_of(line) for attempt in attempts for line in attempt.lines]
    return min(times), max(times) + _LONGEST_REQUEST


@dataclass(frozen=True)
class Pen:
    """Draws bars of a width, with plain characters if the output is no terminal."""

    width: int
    full: str
    empty: str

    @classmethod
    def for_stream(cls, stream: TextIO) -> "Pen":
        """Return a pen for the terminal, or for a file or a pipe."""
        columns = shutil.get_terminal_size((100, 24)).columns
        width = max(_NARROWEST, min(_WIDEST, columns - _LABEL - _TIME - 28))
        return cls(width, "█", "·") if stream.isatty() else cls(width, "#", ".")

    def bar(self, span: Span, start: datetime, whole: timedelta) -> str:
        """Return the span on the axis from `start`. The shortest span still has one character."""
        first = min(self.width - 1, int(self.width * ((span.start - start) / whole)))
        last = min(self.width, max(first + 1, round(self.width * ((span.end - start) / whole))))
        return self.empty * first + self.full * (last - first) + self.empty * (self.width - last)


def draw(attempts: list[Attempt], pen: Pen, common: options.Options) -> Iterator[str]:
    """Return the lines of the waterfall."""
    first = attempts[0].lines[0]
    yield f"turn {first['turn_id']}  conversation {first.get('conversation_id') or '-'}  person {first['actor']}"
    for number, attempt in enumerate(attempts, start=1):
        if number > 1:
            waited = (attempt.start - attempts[number - 2].end) / timedelta(seconds=1)
            yield f"  {waited:,.1f} s without a request" if waited >= 0 else "  while the attempt before still ran"
        yield from _draw_attempt(number, attempt, pen, common)


def _draw_attempt(number: int, attempt: Attempt, pen: Pen, common: options.Options) -> Iterator[str]:
    yield ""
    yield f"attempt {number}: {_describe_attempt(attempt)}"
    yield f"  {common.show_time(attempt.start)}  request {attempt.request_id}"
    whole = max(attempt.end - attempt.start, timedelta(milliseconds=1))
    for span in attempt.spans:
        yield _draw_row(span.name, pen.bar(span, attempt.start, whole), span.ms, span.detail)
    share = attempt.unaccounted_ms / (whole / timedelta(milliseconds=1))
    yield _draw_row("unaccounted", " " * pen.width, attempt.unaccounted_ms, f"{share:.0%} of the time")


def _draw_row(name: str, bar: str, ms: float, detail: str) -> str:
    return f"  {name[: _LABEL - 3]:<{_LABEL - 2}}{bar} {f'{ms:,.0f} ms':>{_TIME}}  {detail}".rstrip()


def _describe_attempt(attempt: Attempt) -> str:
    usage, request = attempt.usage, attempt.request
    whole = (attempt.end - attempt.start) / timedelta(milliseconds=1)
    ended = usage.get("outcome") or usage.get("problem") or usage.get("message", "").removeprefix("turn ")
    parts = [ended or "no last line: the process was killed, or is still at work"]
    parts += [f"{whole:,.0f} ms"] + ([f"status {request['status']}"] if request else [])
    parts += [f"goes on after {usage['resumed']} recorded calls"] if usage.get("resumed") else []
    parts += [f"first event after {usage['first_event_ms']:,.0f} ms"] if usage.get("first_event_ms") else []
    parts += [f"database {usage['database_ms']:,.0f} ms"] if usage.get("database_ms") else []
    parts += ["cold start"] if any(line.get("cold_start") for line in attempt.lines) else []
    return ", ".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Draw one turn."""
    parser = options.parser("Draw a turn's waterfall from the logs.", since="7d")
    parser.add_argument("--turn", required=True, type=UUID, help="the turn's id")
    return options.run(lambda: _trace(parser.parse_args(arguments)))


def _trace(given: argparse.Namespace) -> int:
    common, progress = options.Options(given), options.Progress()
    progress.show("reading the log")
    try:
        attempts = read_attempts(common.log(), str(given.turn), common.since, common.until)
    finally:
        progress.clear()
    print("\n".join(map(options.printable, draw(attempts, Pen.for_stream(sys.stdout), common))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
