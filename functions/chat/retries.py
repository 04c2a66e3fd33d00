"""Retry a model call while time remains, then ask the fallback model once.

Nothing else retries a model call: the retries of the vendor's client and of the SDK are off.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

import openai
from aws_lambda_powertools import Logger

from chat.answers import Json
from chat.transport import AnswerTooLong, AnswerUnreadable
from taskchat import deadline
from taskchat.errors import ModelFailed, OutOfTime, TaskchatError

MAX_ATTEMPTS: Final = 3
"""Tries of one call: a fault that passes is over by the third, and a lasting one should not cost the user the wait."""

FIRST_PAUSE: Final = 0.25
"""Seconds before the second try, where the model does not name a time; doubled for the third."""

MAX_RETRY_AFTER: Final = 86_400.0
"""Longest `Retry-After` of a model, in seconds, that is used."""

QUOTA_SPENT: Final = "insufficient_quota"
"""Code of a 429 that does not pass."""

KNOWN_CODES: Final = (
    *(None, QUOTA_SPENT, "rate_limit_exceeded", "invalid_api_key", "model_not_found", "server_error"),
    *("context_length_exceeded", "content_policy_violation", "invalid_prompt", "billing_hard_limit_reached"),
    *("unsupported_parameter", "unsupported_value", "unknown_parameter", "missing_required_parameter", "invalid_value"),
)
"""Codes of errors that an operator can act on. Others are the provider's own text, and may quote users."""

FAULTS: Final = (openai.APIError, AnswerUnreadable, TimeoutError)
"""Errors of a model call that are expected. All others are faults of this program."""

Result = TypeVar("Result")
Attempt = Callable[[Json], Awaitable[Result]]

logger = Logger()


async def ask_with_retries(
    attempt: Attempt[Result], body: Json, fallback: Callable[[], Json] | None, renew: Callable[[], bool]
) -> Result:
    """Return what an attempt returns for the body, or else for the fallback's. Raises ModelFailed or OutOfTime.

    All tries of the first model together leave the fallback half of the time. When a model refuses the key, `renew`
    is called in a thread, and the same try is made again if it returns True.
    """
    attempt = partial(_ask_with_valid_key, attempt, renew)
    try:
        with deadline.within(deadline.remaining() / (2 if fallback else 1)):
            async with asyncio.timeout(deadline.remaining()):
                return await _retry(attempt, body)
    except FAULTS as error:
        if fallback is None or not _is_down(error):
            raise to_failure(error) from error
    second = fallback()
    logger.warning("model is down, trying the fallback", extra={"fallback": second["model"]})
    try:
        async with asyncio.timeout(deadline.remaining()):
            return await attempt(second)
    except FAULTS as error:
        raise to_failure(error) from error


async def _ask_with_valid_key(attempt: Attempt[Result], renew: Callable[[], bool], body: Json) -> Result:
    while True:
        try:
            return await attempt(body)
        except openai.AuthenticationError:
            if not await asyncio.to_thread(renew):
                raise


async def _retry(attempt: Attempt[Result], body: Json) -> Result:
    for number in range(1, MAX_ATTEMPTS):
        try:
            return await attempt(body)
        except FAULTS as error:
            pause = _retry_after(error) or FIRST_PAUSE * 2 ** (number - 1)
            if not _may_pass(error) or pause >= deadline.remaining():
                raise
            logger.info("model call failed, trying again", extra={"reason": reason_of(error), "attempt": number})
        await asyncio.sleep(pause)
    return await attempt(body)


def to_failure(error: Exception) -> TaskchatError:
    """Return the problem for the caller, and log the reason for the operator."""
    if isinstance(error, TimeoutError):
        return OutOfTime()
    logger.error("model failed", extra={"reason": reason_of(error)})
    if isinstance(error, openai.RateLimitError) and error.code != QUOTA_SPENT:
        seconds = _retry_after(error)
        return ModelFailed("The model is busy.", retry_after=None if seconds is None else max(1, round(seconds)))
    if isinstance(error, openai.APIConnectionError):
        return ModelFailed("The model cannot be reached.")
    if isinstance(error, AnswerTooLong):
        return ModelFailed("The model's answer is too long.")
    if isinstance(error, AnswerUnreadable):
        return ModelFailed("The model's answer could not be read.")
    return ModelFailed()


def _may_pass(error: Exception) -> bool:
    """Tell if the same call may succeed a moment later.

    A retry after a timeout would need as much time again, and a model that wrote without end would do so again.
    """
    if isinstance(error, openai.RateLimitError):
        return error.code != QUOTA_SPENT
    return not isinstance(error, openai.APITimeoutError | AnswerTooLong) and _is_down(error)


def _is_down(error: Exception) -> bool:
    """Tell if the fault is the model's and not the request's."""
    is_refused = isinstance(error, openai.APIStatusError)
    return not is_refused or isinstance(error, openai.InternalServerError | openai.RateLimitError)


def _retry_after(error: Exception) -> float | None:
    headers = error.response.headers if isinstance(error, openai.APIStatusError) else {}
    try:
        seconds = float(headers.get("retry-after-ms", "nan")) / 1000
        if math.isnan(seconds):
            seconds = float(headers.get("retry-after", "nan"))
    except ValueError:
        return None  # a date, which is rare
    return seconds if 0 <= seconds < MAX_RETRY_AFTER else None


def reason_of(error: BaseException) -> str:
    """Return an error's kind, and the status and code of a refusal. Never its text: it may quote a person."""
    if not isinstance(error, openai.APIStatusError):
        return type(error).__name__
    code = error.code if error.code in KNOWN_CODES else "unknown"
    return f"{type(error).__name__} {error.status_code} {code}"
