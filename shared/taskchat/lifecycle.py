"""The life of an execution environment: what is done before its first request, and what no snapshot of it may hold.

Lambda either starts a process and sends it requests, or takes a snapshot of one (SnapStart) and starts many from that.
Both get ready in the same way, the second one at each start: it has forgotten all that must be fresh.
"""

import asyncio
import gc
import random
import time
from collections.abc import Callable
from contextvars import copy_context
from threading import Thread
from typing import Final

from aws_lambda_powertools import Logger

from taskchat import deadline
from taskchat.settings import SettingsError, is_on_lambda

PATIENCE: Final = 6.0
"""Seconds that getting ready may take. Lambda gives an initialisation 10, imports and all, then begins anew."""

logger = Logger()

Step = Callable[[], object]


def begin(get_ready: Step, forget: Step) -> None:
    """Get ready, if this is Lambda, and have it done again whenever a process is started from a snapshot.

    Raises SettingsError. `forget` drops what `get_ready` made.
    """
    if not is_on_lambda():
        return
    asyncio.set_event_loop(asyncio.new_event_loop())  # the one of this process: connections belong to it
    _freshly(get_ready)
    try:
        from snapshot_restore_py import (  # type: ignore[import-untyped]  # the managed runtime has it
            register_after_restore,
            register_before_snapshot,
        )
    except ImportError:
        return  # where there are no snapshots
    register_before_snapshot(forget)
    register_after_restore(_freshly, get_ready)


def _freshly(get_ready: Step) -> None:
    """Get ready within the time there is, and like no other process that started from the same snapshot."""
    random.seed()
    with deadline.within(PATIENCE):
        get_ready()
    gc.freeze()  # what there is now stays, and need not be looked through


def side_by_side(*steps: Step) -> None:
    """Take all steps at once, each in a thread, until the deadline. Raises as `attempt` does, at the end."""
    wrong: list[SettingsError] = []

    def take(step: Step) -> None:
        try:
            attempt(step)
        except SettingsError as error:
            wrong.append(error)

    late = time.monotonic() + min(deadline.remaining(), PATIENCE)
    threads = [Thread(target=copy_context().run, args=(take, step), daemon=True) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, late - time.monotonic()))
    if wrong:
        raise wrong[0]


def attempt(step: Step) -> None:
    """Take one step. A failure is logged and is none of this process's: a request may find that it has passed.

    Raises SettingsError, which does not pass.
    """
    try:
        step()
    except SettingsError:
        raise
    except Exception as error:
        logger.warning("not ready ahead", extra={"reason": type(error).__name__})
