"""The objects that a process opens once and shares between requests, and when it opens and closes them.

Lambda either starts a process and sends it requests, or takes a snapshot of a process (SnapStart) and starts many from
it. The snapshot holds no settings, keys, clients or connections: each process opens its own. It does hold the engine,
whose compiled statements stay valid.
"""

import asyncio
import gc
import random
import time
from collections.abc import Callable
from contextvars import copy_context
from functools import cached_property
from threading import Thread
from typing import Final

from aws_lambda_powertools import Logger

from taskchat import deadline, limits, logs
from taskchat.conversations import turns
from taskchat.credentials import Credentials
from taskchat.database.transaction import Database, Statement
from taskchat.settings import Settings, SettingsError, forget_secret, is_on_lambda, load
from taskchat.toolcalls.toolset import Toolset

STARTUP_SECONDS: Final = 6.0
"""Seconds in which a process must be ready. Lambda gives 10 s to an initialisation, imports included."""

logger = Logger()

Step = Callable[[], object]


class Process:
    """The objects that requests share, each opened at its first use. A function adds its own in a subclass.

    No object here belongs to a request, and importing a module opens none.
    """

    def __init__(self, toolset: Toolset) -> None:
        """Serve the tools of `toolset`."""
        logs.configure()
        self.toolset = toolset
        self.database = self.create_database()
        self.tools = toolset.create_server(lambda: self.database)

    @cached_property
    def settings(self) -> Settings:
        return load(Settings)

    @cached_property
    def credentials(self) -> Credentials:
        """Return the credentials, which a rotation of the secret replaces. Raises SettingsError."""
        return Credentials(self.settings)

    @property
    def statements(self) -> list[Statement]:
        """Return the statements to prepare."""
        return [*limits.STATEMENTS, *turns.STATEMENTS]

    def create_database(self) -> Database:
        """Return a database that connects with the current credentials. It reads no setting before it connects."""
        return Database(lambda: self.credentials.database_url(), lambda: self.credentials.renew("database_url"))

    def get_ready(self) -> None:
        """Open what the first request would wait for. Raises SettingsError."""

    def connect(self) -> None:
        """Connect to the database, and prepare the usual statements. Raises what connecting raises."""
        self.database.prepare_statements(self.statements)

    async def close(self) -> None:
        """Close what was opened, and drop it: the next use opens it anew."""
        self.database.close()
        for name in list(vars(self)):
            if isinstance(getattr(type(self), name, None), cached_property):
                delattr(self, name)
        forget_secret()

    def reset(self) -> None:
        """Close and drop everything from outside the event loop, as before a snapshot."""
        asyncio.get_event_loop().run_until_complete(self.close())


def start(process: Process) -> None:
    """Get the process ready on Lambda, now and whenever one starts from a snapshot of it. Raises SettingsError.

    Elsewhere nothing happens: a developer's server and the tests import the same modules and open what they use.
    """
    if not is_on_lambda():
        return
    asyncio.set_event_loop(asyncio.new_event_loop())  # the only one of this process: connections belong to it
    get_ready(process)
    try:
        from snapshot_restore_py import (  # type: ignore[import-untyped]  # the managed runtime has it
            register_after_restore,
            register_before_snapshot,
        )
    except ImportError:
        return  # this runtime takes no snapshots
    register_before_snapshot(process.reset)
    register_after_restore(get_ready, process)


def get_ready(process: Process) -> None:
    """Get the process ready within STARTUP_SECONDS. Raises SettingsError."""
    random.seed()  # two processes from one snapshot must not draw the same numbers
    with deadline.within(STARTUP_SECONDS):
        process.get_ready()
    gc.freeze()  # what exists now stays: the collector need not look at it again


def run_concurrently(*steps: Step) -> None:
    """Run all steps at once, each in a thread, until the deadline. Raises SettingsError when all have ended.

    It logs any other failure and continues: the same step may succeed when a request needs it.
    """
    wrong: list[SettingsError] = []

    def run(step: Step) -> None:
        try:
            step()
        except SettingsError as error:  # a wrong setting stays wrong
            wrong.append(error)
        except Exception as error:
            logger.warning("not ready ahead", extra={"reason": type(error).__name__})

    end = time.monotonic() + min(deadline.remaining(), STARTUP_SECONDS)
    threads = [Thread(target=copy_context().run, args=(run, step), daemon=True) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    if wrong:
        raise wrong[0]
