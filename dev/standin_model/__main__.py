"""Serve the stand-in model until Ctrl-C: `python -m dev.standin_model --host 127.0.0.1 --port 0` prints its URL."""

import argparse
import contextlib

from .server import Server, address, listen


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dev.standin_model", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    options = parser.parse_args()
    listener = listen(options.host, options.port)
    print(address(listener), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        Server().run([listener])


main()
