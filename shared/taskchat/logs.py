"""Configure the loggers of libraries, and log errors. No text of a library reaches the log: it may quote a person."""

import logging
import sys
import traceback
from typing import Final

from aws_lambda_powertools import Logger

from taskchat.errors import TaskchatError
from taskchat.settings import SettingsError

_PLACES: Final = 8
"""Frames of a traceback that are logged, the innermost ones."""

UPKEEP: Final = "taskchat.upkeep/1"
"""Schema of the log line about a change that a person makes to what they own. A version may get new fields; none
changes or goes."""

logger = Logger()


class _KindAndPlace(logging.Handler):
    """Logs the kind and place of the exception in a record, and none of the record's text."""

    def emit(self, record: logging.LogRecord) -> None:
        """Handle one record. A record without an exception is dropped."""
        if record.exc_info and isinstance(record.exc_info[1], Exception):
            log_unexpected(record.exc_info[1])


def log_unexpected(error: Exception, text: str | None = None) -> None:
    """Log an error's kind, or `text`, and its place. Its own text may be a person's and is left out."""
    places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    logger.error("unexpected error", extra={"error": text or type(error).__name__, "places": places[-_PLACES:]})


def to_problem(error: Exception) -> TaskchatError:
    """Return the error itself if it is one of ours. Log any other, and return a plain 500 for it."""
    if isinstance(error, TaskchatError):
        return error
    log_unexpected(error, str(error) if isinstance(error, SettingsError) else None)  # a SettingsError's text is ours
    return TaskchatError()


_HANDLERS: Final = {
    # It logs a traceback with the arguments of each failed call. The audit line reports the call without them.
    "fastmcp": logging.NullHandler(),
    # It logs the exception of each failed call of the model. `model failed` reports its kind.
    "openai.agents": logging.NullHandler(),
    # It logs a traceback for each dead connection, and a freeze often ends one.
    "sqlalchemy.pool": logging.NullHandler(),
    # Its tracebacks quote arguments, but no other log line reports its errors.
    "mcp": _KindAndPlace(),
}
"""The only handler of each of these libraries."""


def configure_server() -> None:
    """Log kind and place of the errors of an HTTP server and its event loop. Their tracebacks quote exceptions."""
    for name in ("uvicorn.error", "asyncio"):
        _replace_handlers(name, _KindAndPlace())


def configure() -> None:
    """Keep the libraries' texts out of the log. Call it after the imports: some libraries add handlers of their own."""
    # A line that cannot be written is lost. Python's report of such a line prints its values, and can fail too.
    logging.raiseExceptions = False
    if sys.version_info >= (3, 12):
        logging.logAsyncioTasks = False  # else each line says which coroutine of the event loop wrote it
    for name, handler in _HANDLERS.items():
        _replace_handlers(name, handler)
    logging.getLogger("mangum").setLevel(logging.WARNING)  # below that it logs each path, which is the caller's text


def _replace_handlers(name: str, handler: logging.Handler) -> None:
    logging.getLogger(name).handlers[:] = [handler]
    logging.getLogger(name).propagate = False
