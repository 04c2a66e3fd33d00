"""Send all requests to the versions before the last deployment (`make rollback ENV=…`).

A deployment that still moves traffic is stopped: CodeDeploy then turns the traffic back by itself. The schema stays as
it is: a migration only adds to it, so the code before runs on it.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from operations import stack
from operations.log_source import OperatorError
from operations.stack import ALIAS, LEFT, Function, Stack

_CHANGING: Final = frozenset(f"{kind}_IN_PROGRESS" for kind in ("CREATE", "UPDATE", "ROLLBACK", "UPDATE_ROLLBACK"))
"""States of a stack in which CloudFormation still moves aliases."""


@dataclass(frozen=True)
class Step:
    """A function whose alias goes back."""

    function: Function
    target: int


def plan(found: Stack, functions: Sequence[Function]) -> list[Step]:
    """Return the steps for every function of which the last deployment published a version. Raises OperatorError.

    A deployment publishes only the functions that it changes. One that it made has no version to go back to: it stays.
    """
    if found.status in _CHANGING:
        raise OperatorError(
            f"the stack is in {found.status}, and would move the aliases on. Wait for its end, or cancel it."
        )
    changed = [
        each for each in functions if each.published[each.live] >= found.updated_at and list(each.published) != [1]
    ]
    if not changed:
        raise OperatorError("the last deployment published no version that has one before it.")
    pruned = [each.name for each in changed if each.before is None]
    if pruned:
        raise OperatorError(f"there is no version before the one that serves, of {', '.join(pruned)}.")
    return [Step(each, each.before) for each in changed if each.before is not None]


def turn_back(client: Any, steps: Sequence[Step]) -> None:
    """Point each alias at the version before. If one cannot move, move the others forth again and raise its error."""
    moved: list[Step] = []
    try:
        for step in steps:
            _point(client, step.function, step.target, step.function.revision)
            moved.append(step)
        for step in steps:
            _mark_left(client, step.function)
    except (ClientError, BotoCoreError):
        for step in moved:
            _point(client, step.function, step.function.live)
        raise


def _point(client: Any, function: Function, version: int, revision: str | None = None) -> None:
    client.update_alias(
        FunctionName=function.name,
        Name=ALIAS,
        FunctionVersion=str(version),
        RoutingConfig={"AdditionalVersionWeights": {}},
        **({"RevisionId": revision} if revision else {}),
    )


def _mark_left(client: Any, function: Function) -> None:
    """Note the version that served, so that no later roll-back goes to it."""
    left = sorted({*function.left, function.live} & function.published.keys())
    client.tag_resource(Resource=function.arn, Tags={LEFT: " ".join(map(str, left))})


def stop_roll_outs(codedeploy: Any, found: Stack) -> list[str]:
    """Stop each deployment of CodeDeploy that is under way, and return its id. CodeDeploy turns the traffic back."""
    stopped = []
    for application, group in found.roll_outs:
        pages = codedeploy.get_paginator("list_deployments").paginate(
            applicationName=application,
            deploymentGroupName=group,
            includeOnlyStatuses=["Created", "Queued", "InProgress", "Ready"],
        )
        for deployment in [each for page in pages for each in page["deployments"]]:
            codedeploy.stop_deployment(deploymentId=deployment, autoRollbackEnabled=True)
            stopped.append(deployment)
    return stopped


def roll_back(session: Any, name: str) -> None:
    """Stop the deployment that is under way, or else turn the last one back. Raises OperatorError or ClientError."""
    found, client = stack.read_stack(session.client("cloudformation"), name), session.client("lambda")
    if stopped := stop_roll_outs(session.client("codedeploy"), found):
        print(f"Stopped {', '.join(stopped)}: CodeDeploy turns the traffic back, and CloudFormation the stack.")
        return
    steps = plan(found, stack.read_functions(client, found.functions))
    turn_back(client, steps)
    for step in steps:
        print(f"{step.function.name}: {ALIAS} serves version {step.target} again, instead of {step.function.live}")
    print("The next `make deploy` with a change publishes a new version and moves the traffic on.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Roll back. The exit code is 1 if nothing was changed."""
    parser = argparse.ArgumentParser(prog="make rollback")
    parser.add_argument("environment")
    options = parser.parse_args(arguments)
    try:
        roll_back(*stack.connect(options.environment))
    except (OperatorError, ClientError, BotoCoreError) as error:
        print(f"Nothing was rolled back: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
