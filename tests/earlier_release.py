"""`python -m tests.earlier_release PACKAGE`: answer one function's events, a line of JSON each, with an earlier code.

The parent puts the code of an earlier commit first on the path. The first line of the output names where it came from.
"""

import json
import sys
from importlib import import_module

from testing.gateway import LambdaContext


def main() -> None:
    """Answer events until the input ends."""
    output, sys.stdout = sys.stdout, sys.stderr  # log lines go to the other stream
    app = import_module(f"{sys.argv[1]}.app")
    print(app.__file__, file=output, flush=True)
    for line in sys.stdin:
        print(json.dumps(app.handler(json.loads(line), LambdaContext())), file=output, flush=True)


if __name__ == "__main__":
    main()
