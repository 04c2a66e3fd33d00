"""`python -m tests.snapshot PACKAGE`: one of the functions' packages, as Lambda runs it, without SnapStart and with it.

It reads an event and the variables that change while the snapshot lies there. The snapshot is this process itself: what
is started from it is forked, twice; and once without one. It tells what the snapshot holds, and what each of the three
then does and has.

A fork shares the event loop's descriptors, where a snapshot copies them; so each child gets a loop of its own.
"""

import asyncio
import gc
import json
import os
import random
import sys
import weakref
from collections.abc import Callable
from importlib import import_module
from typing import Any

import snapshot_restore_py as hooks
from sqlalchemy import text

from tests.gateway import LambdaContext


def main() -> None:
    """Start, be frozen, and be restored twice."""
    app = import_module(f"{sys.argv[1]}.app")  # its last line gets the process ready: AWS_LAMBDA_RUNTIME_API is set
    asked = json.loads(sys.stdin.readline())
    told = {"before": _state(app), "started": _fork(app, asked, _started), "held": _freeze(app)}
    told["restored"] = [_fork(app, asked, _restored) for _ in range(2)]
    sys.stdout.write(json.dumps(told))


def _state(app: Any) -> dict[str, Any]:
    connected = app.process.database.engine.pool.checkedin()
    with app.process.database.engine.connect() as connection:
        connection.execute(text("select 1"))
        driver: Any = connection.connection.dbapi_connection
        own, port = driver._usock.getsockname(), driver._usock.getpeername()[1]
    return {"connected": connected, "connection": own, "port": port, "random": random.random()}  # noqa: S311


def _freeze(app: Any) -> dict[str, Any]:
    """Run the hooks as the runtime does before it takes a snapshot. What is still alive of what must be fresh?"""
    process = app.process
    fresh = {"settings": process.settings, "verifier": process.verifier}
    with process.database.engine.connect() as connection:
        fresh["connection"] = connection.connection.dbapi_connection
    del connection
    if hasattr(process, "turns"):
        fresh["model client"] = process.turns.agent._client
    watched = {name: weakref.ref(made) for name, made in fresh.items()}
    fresh.clear()
    for hook, arguments, named in reversed(hooks.get_before_snapshot()):
        hook(*arguments, **named)
    gc.unfreeze()
    gc.collect()
    return {"alive": [name for name, made in watched.items() if made() is not None], "sockets": _connections()}


def _connections() -> int:
    """How many connections to others this process has (Linux)."""
    links = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _is_link(name)]
    own = {f"socket:[{line.split()[9]}]" for line in open("/proc/self/net/tcp").readlines()[1:]}
    return sum(link in own for link in links)


def _is_link(name: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{name}")


def _fork(app: Any, asked: dict[str, Any], live: Callable[[Any, dict[str, Any]], dict[str, Any]]) -> Any:
    reading, writing = os.pipe()
    as_it_lies_there = random.getstate()
    child = os.fork()
    if child == 0:
        random.setstate(as_it_lies_there)  # Python seeds anew in a fork; nothing does in what a snapshot is copied to
        os.close(reading)
        asyncio.set_event_loop(asyncio.new_event_loop())
        os.write(writing, json.dumps(live(app, asked)).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return json.loads(told)


def _restored(app: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Run the hooks as the runtime does after it has restored a snapshot, and answer."""
    os.environ.update(asked["environment"])
    for hook, arguments, named in hooks.get_after_restore():
        hook(*arguments, **named)
    return _state(app) | _started(app, asked)


def _started(app: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Answer a first request."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # its log
    modules = len(sys.modules)
    status = app.handler(asked["event"], LambdaContext())["statusCode"]
    return {"status": status, "modules": len(sys.modules) - modules}


if __name__ == "__main__":
    main()
