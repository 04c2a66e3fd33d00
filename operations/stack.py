"""Read which functions a deployed stack has, which versions of them exist, and which ones serve."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import boto3

from operations import deployment
from operations.log_source import OperatorError

ALIAS: Final = "live"
"""The alias that every request goes to."""

LEFT: Final = "taskchat:rolled-back"
"""The tag of a function with the versions from which `make rollback` went back."""


@dataclass(frozen=True)
class Stack:
    """A deployed stack."""

    name: str
    functions: tuple[str, ...]
    roll_outs: tuple[tuple[str, str], ...]
    """CodeDeploy's application and deployment group of each function that serves an API."""
    updated_at: datetime
    """The beginning of the last deployment."""
    status: str = "UPDATE_COMPLETE"


@dataclass(frozen=True)
class Function:
    """The published versions of a function, from the oldest to the newest, and those that an alias names."""

    name: str
    published: dict[int, datetime]
    live: int
    aliased: frozenset[int]
    revision: str
    """Lambda's id of the alias as it was read: an update that names it fails if another one came before."""
    arn: str = ""
    left: frozenset[int] = frozenset()
    """Versions from which `make rollback` went back."""

    @property
    def earlier(self) -> list[int]:
        """Return the versions before the one that serves, from the newest, without those that were left."""
        return sorted((each for each in self.published if each < self.live and each not in self.left), reverse=True)

    @property
    def before(self) -> int | None:
        """Return the version to go back to."""
        return next(iter(self.earlier), None)


def connect(environment: str, config: Path = deployment.SAMCONFIG) -> tuple[Any, str]:
    """Return a session in the region of `make deploy ENV=…`, and the stack's name. Raises OperatorError."""
    name, region = deployment.read_stack(environment, config)
    return boto3.Session(region_name=region), name


def read_stack(cloudformation: Any, name: str) -> Stack:
    """Return the stack of that name. Raises OperatorError if it has no function."""
    [stack] = cloudformation.describe_stacks(StackName=name)["Stacks"]
    pages = cloudformation.get_paginator("list_stack_resources").paginate(StackName=name)
    found = [
        (each["ResourceType"], each["PhysicalResourceId"]) for page in pages for each in page["StackResourceSummaries"]
    ]
    functions = tuple(sorted(name for kind, name in found if kind == "AWS::Lambda::Function"))
    if not functions:
        raise OperatorError(f"The stack {name} has no function.")
    applications = [name for kind, name in found if kind == "AWS::CodeDeploy::Application"]
    groups = [name for kind, name in found if kind == "AWS::CodeDeploy::DeploymentGroup"]
    roll_outs = tuple((application, group) for application in applications for group in groups)
    updated_at = stack.get("LastUpdatedTime") or stack["CreationTime"]
    return Stack(name, functions, roll_outs, updated_at, stack["StackStatus"])


def read_functions(client: Any, names: Sequence[str]) -> list[Function]:
    """Return each function that has the alias."""
    return [_read_function(client, name) for name in names]


def _read_function(client: Any, name: str) -> Function:
    versions = client.get_paginator("list_versions_by_function").paginate(FunctionName=name)
    aliases = client.get_paginator("list_aliases").paginate(FunctionName=name)
    found = [alias for page in aliases for alias in page["Aliases"]]
    live = next((alias for alias in found if alias["Name"] == ALIAS), None)
    if live is None:
        raise OperatorError(f"{name} has no alias {ALIAS}.")
    weights = [alias.get("RoutingConfig", {}).get("AdditionalVersionWeights", {}) for alias in found]
    named = [*(alias["FunctionVersion"] for alias in found), *(version for each in weights for version in each)]
    arn = live["AliasArn"].removesuffix(f":{ALIAS}")
    left = client.list_tags(Resource=arn)["Tags"].get(LEFT, "")
    return Function(
        name,
        {
            int(each["Version"]): datetime.fromisoformat(each["LastModified"])
            for page in versions
            for each in page["Versions"]
            if each["Version"].isdigit()
        },
        int(live["FunctionVersion"]),
        frozenset(int(version) for version in named if version.isdigit()),
        live["RevisionId"],
        arn,
        frozenset(map(int, left.split())),
    )
