"""Read what the operator's commands have in common: where the lines are, from when to when, and in which time zone."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TextIO
from zoneinfo import ZoneInfo

import botocore.exceptions
from sqlalchemy.exc import DBAPIError

from operations import deployment
from operations.log_source import FileLog, InsightsLog, LogSource, OperatorError, ScannedLog
from taskchat.settings import SettingsError

_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}
_AGO: Final = re.compile(r"([0-9]{1,6})([mhd])")


def local_file(name: str) -> Path:
    """Return a file that `make dev` writes, where the variable TASKCHAT_DEV_DIR or else the checkout has it."""
    return Path(os.environ.get("TASKCHAT_DEV_DIR") or Path(__file__).parent.parent / ".dev") / name


def parser(description: str, since: str) -> argparse.ArgumentParser:
    """Return a parser with the common options. `since` is the default of that option."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--env", help="the deployment's table in samconfig.toml")
    made.add_argument("--log", help="a file of JSON lines, or - for standard input (default: make dev's log)")
    made.add_argument("--scan", action="store_true", help="read CloudWatch's log groups without Logs Insights")
    made.add_argument("--since", default=since, help=f"a time, or 90m, 26h, 7d ago (default: {since})")
    made.add_argument("--until", default="now", help="a time, or 90m, 26h, 7d ago (default: now)")
    made.add_argument("--timezone", default="UTC", help="an IANA name (default: UTC)")
    return made


@dataclass(frozen=True)
class Options:
    """The common options, parsed."""

    given: argparse.Namespace
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    @cached_property
    def zone(self) -> ZoneInfo:
        """Return the time zone. Raises OperatorError."""
        try:
            return ZoneInfo(self.given.timezone)
        except (ValueError, OSError, LookupError):
            raise OperatorError(f"There is no time zone {self.given.timezone!r}: use an IANA name.") from None

    @property
    def since(self) -> datetime:
        """Return the beginning of the range. Raises OperatorError."""
        since = self.parse_time(self.given.since)
        if since >= self.until:
            raise OperatorError("--since must be before --until.")
        return since

    @property
    def until(self) -> datetime:
        """Return the end of the range, which does not belong to it. Raises OperatorError."""
        return self.parse_time(self.given.until)

    def parse_time(self, text: str) -> datetime:
        """Return the time that is meant. A time without an offset is in the time zone. Raises OperatorError."""
        if text == "now":
            return self.now
        try:
            if ago := _AGO.fullmatch(text):
                return self.now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
            parsed = datetime.fromisoformat(text)
            return (parsed if parsed.tzinfo else parsed.replace(tzinfo=self.zone)).astimezone(UTC)
        except (ValueError, OverflowError):
            raise OperatorError(f"{text!r} is not a time: write 2026-11-24, 2026-11-24T09:30 or 26h.") from None

    def show_time(self, when: datetime) -> str:
        """Return the time in the time zone, with milliseconds."""
        return when.astimezone(self.zone).isoformat(sep=" ", timespec="milliseconds")

    @cached_property
    def deployment(self) -> deployment.Deployment | None:
        """Return the deployment that `--env` names. Raises OperatorError."""
        return deployment.find(self.given.env) if self.given.env else None

    def log(self) -> LogSource:
        """Return the place with the log lines. Raises OperatorError."""
        deployed = self.deployment
        if self.given.log or not deployed:
            return FileLog(self.given.log or str(local_file("log.jsonl")))
        client = deployed.session.client("logs")
        return (ScannedLog if self.given.scan else InsightsLog)(client, deployed.log_groups)


def printable(text: str) -> str:
    """Return the text with each control character escaped: a log must not steer the operator's terminal."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


class Progress:
    """Writes one line about the progress over itself, if a person watches."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._width = 0

    def show(self, line: str) -> None:
        """Replace the line."""
        if self._stream.isatty():
            print(f"\r{line:<{self._width}}", end="", file=self._stream, flush=True)
            self._width = len(line)

    def clear(self) -> None:
        """Remove the line."""
        self.show("")
        if self._width == 0 and self._stream.isatty():
            print("\r", end="", file=self._stream, flush=True)


def run(command: Callable[[], int]) -> int:
    """Return the command's exit code: 2, with one line about it, when it could not go on."""
    try:
        return command()
    except BrokenPipeError:  # the reader has enough, as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OperatorError, SettingsError) as error:
        problem = str(error)
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
        problem = f"AWS refused: {error}"
    except (DBAPIError, OSError) as error:
        problem = f"The database cannot be read: {_first_line(error)}"
    print(f"error: {problem}", file=sys.stderr)
    return 2


def _first_line(error: Exception) -> str:
    cause: Any = error.orig if isinstance(error, DBAPIError) else error
    detail = cause.args[0].get("M") if cause and cause.args and isinstance(cause.args[0], dict) else str(cause)
    return (str(detail) or type(error).__name__).splitlines()[0]
