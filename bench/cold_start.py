"""Run one cold start of the chat function in this process, which bench/cold.py starts.

The process can import the built artifact and Python's standard library only, so this file imports nothing of bench/.
It reads events as JSON, passes each to the handler, and prints every duration in milliseconds.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any


class Context:
    """The context of an invocation."""

    function_name, function_version, memory_limit_in_mb = "chat", "1", 1024
    invoked_function_arn, aws_request_id = "arn:aws:lambda:eu-west-1:123456789012:function:chat", "0"

    def get_remaining_time_in_millis(self) -> int:
        """Return the time limit of a function."""
        return 29_000


def main() -> None:
    """Start, answer the events, and print the durations."""
    events = json.loads(sys.stdin.read())
    answers, sys.stdout = sys.stdout, open(os.devnull, "w")
    spans = {"Python": _since_the_process_began()}
    began = time.perf_counter()
    os.environ.pop("AWS_LAMBDA_RUNTIME_API")  # so that the import does not call `get_ready`, which is measured alone
    from chat import app

    spans["imports"] = _since(began)
    spans |= _get_ready(app)
    turns = [_timed(partial(_answer, app.handler, event)) for event in events]
    answers.write(json.dumps({"spans": spans | {"the first turn": turns[0]}, "turns": turns}))
    answers.flush()
    os._exit(0)


def _get_ready(app: Any) -> dict[str, float]:
    """Get the process ready as on Lambda. Measure the connection and the key set separately from the rest."""
    import asyncio

    from taskchat.process import get_ready

    asyncio.set_event_loop(asyncio.new_event_loop())
    waited: list[float] = []
    run_concurrently = app.run_concurrently

    def timed(*steps: Callable[[], object]) -> None:
        waited.append(_timed(lambda: run_concurrently(*steps)))

    app.run_concurrently = timed
    whole = _timed(lambda: get_ready(app.process))
    app.run_concurrently = run_concurrently
    return {"settings, clients, tools": whole - waited[0], "connection and keys": waited[0]}


def _answer(handler: Callable[..., Any], event: dict[str, Any]) -> None:
    response = handler(event, Context())
    if response["statusCode"] != 200:
        raise RuntimeError(response["body"])


def _timed(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return _since(began)


def _since(began: float) -> float:
    return 1000 * (time.perf_counter() - began)


def _since_the_process_began() -> float:
    """Return the age of the process, by the system's clock (Linux)."""
    with open("/proc/self/stat") as stat:
        ticks = int(stat.read().rsplit(")", 1)[1].split()[19])
    with open("/proc/uptime") as uptime:
        return 1000 * (float(uptime.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK"))


if __name__ == "__main__":
    main()
