"""Serve the chat API, and at `GET /bench` the cost of this process: `python -m uvicorn bench.watched:app`.

This module wraps the function of a turn's first transaction. The shipped modules do not know of it.
"""

import os
import time
from collections import deque
from functools import wraps
from pathlib import Path
from typing import Any, Final

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from chat.app import app as chat
from chat.turn import TurnRunner

KEPT: Final = 500
"""First transactions of which the durations are kept."""

PAGE: Final = os.sysconf("SC_PAGE_SIZE")

_begins: Final = deque[float](maxlen=KEPT)


def _watch(function: Any) -> Any:
    @wraps(function)
    async def watched(*arguments: Any) -> Any:
        began = time.perf_counter()
        answer = await function(*arguments)
        _begins.append((time.perf_counter() - began) * 1000)
        return answer

    return watched


TurnRunner.begin = _watch(TurnRunner.begin)  # type: ignore[method-assign]


def _cost() -> dict[str, Any]:
    """Return CPU seconds, megabytes of resident memory, and the milliseconds of the first transactions."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"cpu": time.process_time(), "megabytes": pages * PAGE / 2**20, "begins": list(_begins)}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Pass every request on, except those about the cost."""
    if scope["type"] == "http" and scope["path"] == "/bench":
        await JSONResponse(_cost())(scope, receive, send)
    else:
        await chat(scope, receive, send)
