"""`python -m tests.snapshot PACKAGE`: run one function's package as Lambda does, with SnapStart and without it.

The program reads an event, and the variables that change between snapshot and restore. This process is the snapshot:
each fork of it is an environment restored from it, twice; one more fork runs without a snapshot. The program prints the
state of the snapshot, and the answer and state of the three forks.

A fork shares the event loop's descriptors, which a snapshot copies. So each child gets its own loop.
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

from testing.gateway import LambdaContext


def main() -> None:
    """Start, run the hooks before a snapshot, and restore twice."""
    app = import_module(f"{sys.argv[1]}.app")  # its last line gets the process ready: AWS_LAMBDA_RUNTIME_API is set
    given = json.loads(sys.stdin.readline())
    report = {"before": _state(app), "started": _fork(app, given, _started), "held": _freeze(app)}
    report["restored"] = [_fork(app, given, _restored) for _ in range(2)]
    sys.stdout.write(json.dumps(report))


def _state(app: Any) -> dict[str, Any]:
    connected = app.process.database.engine.pool.checkedin()
    with app.process.database.engine.connect() as connection:
        connection.execute(text("select 1"))
        driver: Any = connection.connection.dbapi_connection
        own, port = driver._usock.getsockname(), driver._usock.getpeername()[1]
    return {"connected": connected, "connection": own, "port": port, "random": random.random()}  # noqa: S311


def _freeze(app: Any) -> dict[str, Any]:
    """Run the hooks before a snapshot as the runtime does, and return which objects that must be fresh are alive."""
    process = app.process
    fresh = {"settings": process.settings, "verifier": process.verifier}
    with process.database.engine.connect() as connection:
        fresh["connection"] = connection.connection.dbapi_connection
    del connection
    if hasattr(process, "turns"):
        fresh["model"] = process.turns.runner.agent._model
    watched = {name: weakref.ref(made) for name, made in fresh.items()}
    fresh.clear()
    for hook, arguments, named in reversed(hooks.get_before_snapshot()):
        hook(*arguments, **named)
    gc.unfreeze()
    gc.collect()
    return {"alive": [name for name, made in watched.items() if made() is not None], "sockets": _connections()}


def _connections() -> int:
    """Return the number of this process's TCP connections (Linux)."""
    links = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _is_link(name)]
    own = {f"socket:[{line.split()[9]}]" for line in open("/proc/self/net/tcp").readlines()[1:]}
    return sum(link in own for link in links)


def _is_link(name: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{name}")


def _fork(app: Any, given: dict[str, Any], run: Callable[[Any, dict[str, Any]], dict[str, Any]]) -> Any:
    """Run a function in a fork of this process and return its report."""
    reading, writing = os.pipe()
    state_in_snapshot = random.getstate()
    child = os.fork()
    if child == 0:
        random.setstate(state_in_snapshot)  # Python seeds anew in a fork, but not in a restored snapshot
        os.close(reading)
        asyncio.set_event_loop(asyncio.new_event_loop())
        os.write(writing, json.dumps(run(app, given)).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        report = pipe.read()
    os.waitpid(child, 0)
    return json.loads(report)


def _restored(app: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Run the hooks after a restore as the runtime does, and answer."""
    os.environ.update(given["environment"])
    for hook, arguments, named in hooks.get_after_restore():
        hook(*arguments, **named)
    return _state(app) | _started(app, given)


def _started(app: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Answer a first request."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the log
    modules = len(sys.modules)
    status = app.handler(given["event"], LambdaContext())["statusCode"]
    return {"status": status, "modules": len(sys.modules) - modules}


if __name__ == "__main__":
    main()
