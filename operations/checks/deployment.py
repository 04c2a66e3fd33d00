"""Describe the deployment that the checks look at, and what a check returns or raises."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection

from taskchat.postgres_url import PostgresUrl, parse
from taskchat.settings import MAY_BE_EMPTY, Settings

LOCAL_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class Wrong(Exception):
    """Raised by a check that found a fault. `mend` says what the operator does about it."""

    def __init__(self, text: str, mend: str) -> None:
        super().__init__(text)
        self.mend = mend


class Skipped(Exception):
    """Raised by a check that cannot run here. The text says why."""


@dataclass
class Deployment:
    """Hold the settings of a deployment, and what the checks share. The connections are None until a check opens them.

    A check never puts a value of a setting into its text, except addresses without a password.
    """

    variables: Mapping[str, str]
    """The environment of the function, or of this process."""
    read_secret: Callable[[str], str]
    """Returns the text of the secret with this ARN."""
    url: str | None = None
    """The address of the API, without a path."""
    region: str | None = None
    """The region of the functions."""
    clock: Callable[[], float] = time.time
    secret: dict[str, Any] | None = None
    runtime: Connection | None = None
    owner: Connection | None = None
    opened: list[Connection] = field(default_factory=list)

    @property
    def values(self) -> dict[str, Any]:
        """Return the settings as the functions read them: the secret wins, and an empty value counts as not set."""
        merged: dict[str, Any] = {**self.variables, **(self.secret or {})}
        return {name: value for name, value in merged.items() if value != "" or name in MAY_BE_EMPTY}

    @property
    def settings(self) -> Settings:
        """Return the settings of the APIs. Raises Skipped if they are wrong, which another check says."""
        try:
            return Settings.model_validate(self.values)
        except ValueError:
            raise Skipped("the settings are wrong") from None

    def database(self, name: str) -> PostgresUrl:
        """Return the parsed URL in this variable. Raises Skipped if it is not set or wrong."""
        if not self.values.get(name):
            raise Skipped(f"{name} is not set")
        try:
            return parse(self.values[name])
        except ValueError:
            raise Skipped(f"{name} is wrong") from None

    def close(self) -> None:
        """Close the connections that the checks opened."""
        for connection in self.opened:
            connection.close()
            connection.engine.dispose()
