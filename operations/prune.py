"""Delete the versions of the functions that no roll-back needs (`make prune ENV=…`). Each snapshot costs money.

What stays: the version that serves, two before it, every newer one, and every version that an alias names.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from operations import stack
from operations.log_source import OperatorError
from operations.stack import Function

KEPT: Final = 2
"""Earlier versions that stay: an alarm may have turned the newer one's roll-out back."""


def old_versions(function: Function) -> list[int]:
    """Return the versions that may go, from the oldest to the newest."""
    kept = function.aliased.union(function.earlier[:KEPT])
    return sorted(version for version in function.published if version < function.live and version not in kept)


def prune(client: Any, functions: Iterable[Function], *, delete: bool) -> int:
    """Print what may go, delete it if `delete` says so, and return the number of versions."""
    count = 0
    for function in functions:
        old = old_versions(function)
        for version in old if delete else ():
            client.delete_function(FunctionName=function.name, Qualifier=str(version))
        count += len(old)
        kept = sorted(set(function.published) - set(old))
        print(f"{function.name}: {'deleted' if delete else 'would delete'} {_listed(old)}, kept {_listed(kept)}")
    return count


def _listed(versions: Sequence[int]) -> str:
    return ", ".join(map(str, versions)) or "none"


def main(arguments: Sequence[str] | None = None) -> int:
    """Show the old versions, or delete them. The exit code is 1 if the stack cannot be read or changed."""
    parser = argparse.ArgumentParser(prog="make prune")
    parser.add_argument("environment")
    parser.add_argument("--delete", action="store_true")
    options = parser.parse_args(arguments)
    try:
        session, name = stack.connect(options.environment)
        client = session.client("lambda")
        found = stack.read_stack(session.client("cloudformation"), name)
        count = prune(client, stack.read_functions(client, found.functions), delete=options.delete)
    except (OperatorError, ClientError, BotoCoreError) as error:
        print(f"{'Nothing more was deleted' if options.delete else 'Nothing to show'}: {error}", file=sys.stderr)
        return 1
    if count and not options.delete:
        print(f"To delete them: make prune ENV={options.environment} DELETE=1")
    return 0


if __name__ == "__main__":
    sys.exit(main())
