"""Start everything on this machine (`make dev`), print how to use it, and stop all of it at the end."""

import json
import os
import shlex
import sys

from dev import backend, client, processes, state
from dev.processes import StartupError
from dev.standin_model.domain import domain

DEFAULT_PORT = 8000
EXAMPLE = domain.examples.add_and_show


def main() -> int:
    """Serve until a signal ends it. The exit code is 1 when something could not start."""
    progress = backend.Progress(sys.stdout)
    try:
        processes.stop_on_signals()
        _serve(progress)
    except (StartupError, OSError) as error:  # OSError: a full disk, or a directory that another user owns
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        progress.print("Stopped.")
    return 0


def _serve(progress: backend.Progress) -> None:
    port = _port()
    progress.print(f"Starting taskchat; its data is in {state.shown(state.directory())}/")
    with backend.running(port, progress, reload=True, show=progress.print) as server, state.announced(server.url):
        progress.print(_instructions(server.url))
        server.process.wait()
    raise StartupError(f"The server ended unexpectedly; its log is {state.shown(backend.server_log())}.")


def _port() -> int:
    wanted = os.environ.get("PORT") or str(DEFAULT_PORT)
    if not wanted.isdecimal() or not 0 < int(wanted) < 2**16:
        raise StartupError(f"PORT={wanted} is not a port: use a number from 1 to 65535.")
    return int(wanted)


def _instructions(url: str) -> str:
    identity = client.token(url)
    path = f"{url}/api/{identity['user_id']}/chat"
    return f"""
  Page  {url}/
  API   {path}
  MCP   {url}/mcp (a client without a token signs you in; `mcp_token` of {url}/dev/token is one)
  Log   {state.shown(backend.server_log())}

Try it (this token is valid for an hour; `token` of {url}/dev/token is a fresh one):

{curl(path, identity["token"])}

The server restarts when a file under functions/ or shared/ changes. Ctrl-C stops everything.
"""


def curl(address: str, token: str) -> str:
    """Return one turn as a line to paste into a shell."""
    command = ["curl", "-sS", address, "-H", f"Authorization: Bearer {token}", "-H", "Content-Type: application/json"]
    return shlex.join([*command, "-w", r"\n", "-d", json.dumps({"message": EXAMPLE})])


if __name__ == "__main__":
    sys.exit(main())
