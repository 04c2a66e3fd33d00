"""Hold the credentials of a process, and read the secret again when the database or the model refuses one.

Only these two change while a process runs. Any other setting changes with a deployment, which starts new processes.
"""

import time
from threading import Lock
from typing import Any, Final, Literal

from aws_lambda_powertools import Logger

from taskchat import deadline, measures
from taskchat.settings import Settings, SettingsError, names_secret, read_again

Credential = Literal["database_url", "openai_api_key"]

RENEW_SECONDS: Final = 5.0
"""Seconds after a refusal in which the secret is read again: an operator's two changes are never made at once."""

QUIET_SECONDS: Final = 10.0
"""Seconds after that in which it is not, so that a wrong secret does not make every request read it."""

FIRST_PAUSE: Final = 0.25
"""Seconds before the second read. The pauses double, so a process reads at most six times in RENEW_SECONDS."""

READ_SECONDS: Final = 2.0
"""Seconds to wait for Secrets Manager at most."""

logger = Logger()


class Credentials:
    """The database's URL and the model's key, as the secret has them now, as far as this process knows."""

    def __init__(self, settings: Settings) -> None:
        """Begin with the credentials that were read at start."""
        self._settings = settings
        self._refused_at: dict[Credential, float] = {}
        self._read_at = -FIRST_PAUSE
        self._lock = Lock()

    def database_url(self) -> str:
        return self._settings.database_url.get_secret_value()

    def model_key(self) -> str:
        return self._settings.openai_api_key.get_secret_value()

    def renew(self, refused: Credential) -> bool:
        """Read the secret again after a refusal. Return True if the caller should try again now.

        If the secret has not changed, this waits a little first: the operator may be about to change it, or the
        database may not yet know its new password. Without a secret, it returns False at once.
        """
        if not names_secret():
            return False
        with self._lock:
            pause = self._pause(refused)
            if pause <= 0 or pause >= deadline.remaining():
                return False
            if time.monotonic() - self._read_at >= FIRST_PAUSE and self._read(refused):
                return True
        time.sleep(pause)
        return True

    def _pause(self, refused: Credential) -> float:
        """Return the seconds to wait before the next try, or 0 if there is to be none."""
        now = time.monotonic()
        if now - self._refused_at.get(refused, now) >= RENEW_SECONDS + QUIET_SECONDS:
            del self._refused_at[refused]
        passed = now - self._refused_at.setdefault(refused, now)
        return min(max(FIRST_PAUSE, passed), RENEW_SECONDS - passed)

    def _read(self, refused: Credential) -> bool:
        """Read the secret, and return True if it has another value for what was refused."""
        before = self._settings
        try:
            found = read_again(Settings, min(READ_SECONDS, deadline.remaining()))
        except SettingsError as error:
            reason = ": ".join(str(error).split(": ")[:2])  # the rest may look like a URL
            logger.error("secret not read again", extra={"reason": reason})
            return False
        finally:
            self._read_at = time.monotonic()
            measures.current().secrets_read_again += 1
        credentials: dict[str, Any] = {"database_url": found.database_url}
        if found.openai_api_key:  # a client without a key sends nothing, so no refusal would replace the empty one
            credentials["openai_api_key"] = found.openai_api_key
        self._settings = before.model_copy(update=credentials)
        is_changed = bool(getattr(before, refused) != getattr(self._settings, refused))
        logger.warning("secret read again", extra={"reason": f"{refused} was refused", "changed": is_changed})
        if self._settings != before:
            self._refused_at.clear()
        return is_changed
