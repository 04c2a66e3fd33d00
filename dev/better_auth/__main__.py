"""Run Better Auth beside `make dev` until a signal ends it. Print one line: its address, or why there is none."""

import os
import sys

from dev import better_auth, processes
from dev.processes import StartupError


def main() -> int:
    """Serve with the variables of our environment. The exit code is 1 when Better Auth could not start, or ended."""
    try:
        processes.stop_on_signals()
        with better_auth.started(better_auth.DEVELOPMENT, os.environ, better_auth.CONFIGURATION.read_text()) as server:
            print(server.address, flush=True)
            server.process.wait()
    except StartupError as error:
        print(" ".join(str(error).split()), flush=True)
    except KeyboardInterrupt:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
