"""Log each try of a model call: its outcome, times and tokens, and no text."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from aws_lambda_powertools import Logger

from chat.answers import Json
from chat.retries import reason_of
from chat.usage import Usage, current_usage
from taskchat import deadline, genai, measures
from taskchat.measures import to_ms

SCHEMA: Final = "taskchat.model/1"
"""Version of the log line about one try. A version may get new fields; none changes or goes."""

logger = Logger()


@dataclass
class Try:
    """Hold the figures of one request to a model."""

    number: int
    started: float = field(default_factory=time.perf_counter)
    first_token_ms: float | None = None
    """When the first text of a streamed answer came. None for a whole answer, and for one without a text."""
    error: str | None = None

    def note_text(self) -> None:
        if self.first_token_ms is None:
            self.first_token_ms = to_ms(time.perf_counter() - self.started)


class Tries:
    """Numbers the tries of one model call, the fallback's too, and logs each."""

    def __init__(self, provider: str) -> None:
        self._provider, self._number = provider, 0

    @contextmanager
    def logged(self, body: Json) -> Iterator[Try]:
        """Log the try in the block, which counts its tokens."""
        self._number += 1
        this, usage = Try(self._number), current_usage()
        before = replace(usage)
        try:
            yield this
        except BaseException as error:
            this.error = _reason(error)
            raise
        finally:
            self._log(this, body, before, usage)

    def _log(self, this: Try, body: Json, before: Usage, after: Usage) -> None:
        request, outcome = measures.current(), "failed" if this.error else "ok"
        duration_ms = to_ms(time.perf_counter() - this.started)
        request.model_calls.append((outcome, duration_ms))
        described = genai.describe_model_call(
            self._provider,
            body["model"],
            after.input_tokens - before.input_tokens,
            after.cached_tokens - before.cached_tokens,
            after.output_tokens - before.output_tokens,
            this.error,
        )
        figures = {"attempt": this.number, "duration_ms": duration_ms, "first_token_ms": this.first_token_ms}
        fields = {"schema": SCHEMA, **request.turn_ids, "outcome": outcome, **figures, **described}
        logger.info("model call", extra=fields)


def _reason(error: BaseException) -> str:
    """Return the error's kind. A timeout cancels the try."""
    is_late = isinstance(error, asyncio.CancelledError) and deadline.remaining() <= 0
    return TimeoutError.__name__ if is_late else reason_of(error)
