"""Renew the lease of a running turn: in the background, every few seconds, in a short transaction each time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Protocol

from aws_lambda_powertools import Logger

from taskchat import deadline
from taskchat.conversations.lease import Lease
from taskchat.database.transaction import LOOKUP_SECONDS, Database
from taskchat.errors import CommitOutcomeUnknown, DatabaseUnavailable

RENEW_SECONDS: Final = 5.0
"""Seconds between two renewals: a third of a lease, so that the database may be away for a while."""

RETRY_SECONDS: Final = 1.0
"""Seconds until a renewal that failed is tried again."""

logger = Logger()


class LeaseHolder(Protocol):
    """A running turn. Its lease changes with each renewal."""

    lease: Lease


@asynccontextmanager
async def renewing(database: Database, holder: LeaseHolder) -> AsyncIterator[None]:
    """Renew the holder's lease while the block runs. Once it is lost, cancel the block, and raise LeaseLost.

    The block would only cost money then: the turn can write nothing more. A cancellation from outside passes.
    """
    block = asyncio.timeout(None)
    renewer = asyncio.create_task(_renew_until_lost(database, holder, block))
    try:
        async with block:
            yield
    except TimeoutError:
        if block.expired():
            renewer.result()  # raises what ended it
        raise
    finally:
        renewer.cancel()
        await asyncio.gather(renewer, return_exceptions=True)


async def _renew_until_lost(database: Database, holder: LeaseHolder, block: asyncio.Timeout) -> None:
    """Renew the lease until this is cancelled or the deadline is near. A failure ends the block at once."""
    pause = RENEW_SECONDS
    try:
        while deadline.remaining() > pause:
            await asyncio.sleep(pause)
            pause = RENEW_SECONDS if renew(database, holder) else RETRY_SECONDS
    except Exception:
        block.reschedule(asyncio.get_running_loop().time())
        raise


def renew(database: Database, holder: LeaseHolder) -> bool:
    """Renew the holder's lease, and return if that is known to be done. Raises LeaseLost.

    After a commit without an answer the lease has two ends, and either of them holds it, until a later renewal.
    """
    lease = holder.lease.extended()
    try:
        with (
            deadline.within(min(LOOKUP_SECONDS, deadline.remaining())),
            database.transaction(lease.user_id) as session,
        ):
            renewed = lease.renew(session)
    except DatabaseUnavailable as error:
        if isinstance(error, CommitOutcomeUnknown):
            holder.lease = lease
        logger.warning("lease not renewed", extra={"problem": error.slug})
        return False
    holder.lease = renewed
    return True
