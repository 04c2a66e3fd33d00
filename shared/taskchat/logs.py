"""How the libraries log. Their records can quote what a person wrote, so no library's own words reach the log."""

import logging
import traceback
from typing import Final

from aws_lambda_powertools import Logger

from taskchat.errors import TaskchatError
from taskchat.settings import SettingsError

SILENT: Final = (
    "fastmcp",  # a traceback for each failed call, with the arguments; the audit line reports it without them
    "openai.agents",  # the exception of each failed call of the model; `model failed` reports its kind
    "sqlalchemy.pool",  # a traceback for each dead connection; one that died in a freeze is usual
)
WARNINGS_ONLY: Final = ("mangum",)
"""It logs every path, and a path is whatever its caller wrote."""
KIND_AND_PLACE_ONLY: Final = ("mcp",)
"""Its tracebacks quote arguments, but its errors are reported nowhere else."""

_PLACES: Final = 8
"""Frames of a traceback that are logged, from the innermost out."""

logger = Logger()


class _KindAndPlace(logging.Handler):
    """Logs the kind and place of the exception in a record, and none of the record's words."""

    def emit(self, record: logging.LogRecord) -> None:
        """Handle one record. A record without an exception is dropped."""
        if record.exc_info and isinstance(record.exc_info[1], Exception):
            log_unexpected(record.exc_info[1])


def log_unexpected(error: Exception, what: str | None = None) -> None:
    """Log an error's kind, or `what`, and its place. Its text may be a person's and is left out."""
    places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    logger.error("unexpected error", extra={"error": what or type(error).__name__, "places": places[-_PLACES:]})


def to_problem(error: Exception) -> TaskchatError:
    """Return the error itself if it is one of ours. Log any other, and return a plain 500 for it."""
    if isinstance(error, TaskchatError):
        return error
    log_unexpected(error, str(error) if isinstance(error, SettingsError) else None)  # a SettingsError's words are ours
    return TaskchatError()


def configure() -> None:
    """Keep the libraries' words out of the log. Call it after the libraries were imported: some set up their own."""
    # A line that cannot be written is lost. Python's own report of that prints the line's values, and can fail too.
    logging.raiseExceptions = False
    for name in SILENT:
        _handle_with(name, logging.NullHandler())
    for name in KIND_AND_PLACE_ONLY:
        _handle_with(name, _KindAndPlace())
    for name in WARNINGS_ONLY:
        logging.getLogger(name).setLevel(logging.WARNING)


def _handle_with(name: str, handler: logging.Handler) -> None:
    library = logging.getLogger(name)
    library.handlers[:] = [handler]
    library.propagate = False
