"""Find a deployment's stack, log groups and clients of AWS, by its table in samconfig.toml."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import boto3
import botocore.exceptions

from operations.log_source import OperatorError

SAMCONFIG: Final = Path("samconfig.toml")
_LOG_GROUPS: Final = ("ChatLogGroup", "McpToolsLogGroup")


@dataclass(frozen=True)
class Deployment:
    """A stack's outputs and parameters, and the session that reads them."""

    session: Any
    outputs: dict[str, str]
    parameters: dict[str, str]

    @property
    def log_groups(self) -> tuple[str, ...]:
        """Return the names of the log groups of both APIs."""
        return tuple(self.outputs[name] for name in _LOG_GROUPS if name in self.outputs)

    @property
    def service(self) -> str:
        """Return the value of the metrics' dimension."""
        return f"taskchat-{self.parameters.get('EnvironmentName', 'dev')}"


def find(environment: str, config: Path = SAMCONFIG) -> Deployment:
    """Return the deployment of `make deploy ENV=…`. Raises OperatorError."""
    name, region = read_stack(environment, config)
    try:
        session = boto3.Session(region_name=region)
        return describe(session, session.client("cloudformation"), name)
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
        raise OperatorError(f"The stack {name} cannot be read: {error}") from None


def read_stack(environment: str, config: Path = SAMCONFIG) -> tuple[str, str | None]:
    """Return the name and the region of the stack. Without a region AWS's own configuration decides."""
    try:
        table = tomllib.loads(config.read_text())[environment]["deploy"]["parameters"]
        return table["stack_name"], table.get("region")
    except FileNotFoundError:
        raise OperatorError(f"There is no {config}: run the command at the root of the checkout.") from None
    except KeyError:
        raise OperatorError(f"{config} has no [{environment}.deploy.parameters] with a stack_name.") from None


def describe(session: Any, cloudformation: Any, name: str) -> Deployment:
    """Return the stack of that name."""
    (stack,) = cloudformation.describe_stacks(StackName=name)["Stacks"]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", ())}
    parameters = {found["ParameterKey"]: found.get("ParameterValue", "") for found in stack.get("Parameters", ())}
    return Deployment(session, outputs, parameters)
