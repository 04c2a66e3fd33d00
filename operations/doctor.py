"""Check a deployment and print one line for each check: ok, WRONG with its mending, or skipped with the reason.

    make doctor                      the settings of this environment
    make doctor ENV=prod             the settings of the deployed function, with your AWS credentials
    make doctor URL=https://…        the API and the MCP endpoint at this address too

It changes nothing, prints no secret, and ends with 1 if a check is wrong. It costs one short answer of the model.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from operations import deployment
from operations.checks import database, services, settings
from operations.checks.deployment import Deployment, Skipped, Wrong
from operations.log_source import OperatorError

Check = Callable[[Deployment], str]

CHECKS: Final[dict[str, Check]] = {
    "secret": settings.check_secret,
    "settings": settings.check_settings,
    "endpoint": settings.check_pooled,
    "TLS": settings.check_tls,
    "passwords": settings.check_passwords,
    "region": settings.check_region,
    "database": database.check_connection,
    "pooler": database.check_pooler,
    "migrations": database.check_migrations_endpoint,
    "role": database.check_role,
    "schema": database.check_schema,
    "policies": database.check_policies,
    "rights": database.check_rights,
    "retention": database.check_retention_role,
    "clock": database.check_clock,
    "latency": database.check_latency,
    "key set": services.check_key_set,
    "model": services.check_model,
    "API": services.check_api,
    "MCP": services.check_mcp,
    "CORS": services.check_cors,
}
"""Each check by its name, in the order of the report: those that use a secret or a connection come after it."""


def examine(deployment: Deployment, write: Callable[[str], object]) -> bool:
    """Run all checks, write a line for each, and return whether none is wrong."""
    is_healthy = True
    try:
        for name, check in CHECKS.items():
            line, is_right = _run(check, deployment)
            is_healthy &= is_right
            write(f"{name:<11}{line}\n")
    finally:
        deployment.close()
    return is_healthy


def _run(check: Check, deployment: Deployment) -> tuple[str, bool]:
    try:
        return f"ok       {check(deployment)}", True
    except Skipped as reason:
        return f"skipped  {reason}", True
    except Wrong as fault:
        return f"WRONG    {fault}. To mend it: {fault.mend}", False
    except Exception as error:  # its text may quote a value
        return f"WRONG    the check failed: {type(error).__name__}. To mend it: report this with your versions", False


def deployed(environment: str) -> Deployment:
    """Return the deployment of this name in samconfig.toml, as its `live` function reads it. Raises OperatorError."""
    _, region = deployment.read_stack(environment)
    region = region or boto3.session.Session().region_name
    variables = _variables_of(f"taskchat-{environment}", boto3.client("lambda", region_name=region))
    return Deployment(variables, _secret_reader(region), region=region)


def _variables_of(service: str, client: Any) -> dict[str, str]:
    for function in client.get_paginator("list_functions").paginate().search("Functions[]"):
        if function.get("Environment", {}).get("Variables", {}).get("POWERTOOLS_SERVICE_NAME") == service:
            # After a roll-back, the version that serves is not the one that was deployed last.
            serving = client.get_function_configuration(FunctionName=function["FunctionName"], Qualifier="live")
            variables: dict[str, str] = serving["Environment"]["Variables"]
            return variables
    raise OperatorError(f"no function of the service {service} is deployed in this account and region")


def local(environment: Mapping[str, str]) -> Deployment:
    """Return the deployment that this process's environment describes."""
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    return Deployment(environment, _secret_reader(region), region=region)


def _secret_reader(region: str | None) -> Callable[[str], str]:
    def read(arn: str) -> str:
        named = arn.split(":")[3] if arn.count(":") > 3 else region
        answer = boto3.client("secretsmanager", region_name=named).get_secret_value(SecretId=arn)
        return str(answer["SecretString"])

    return read


def main() -> int:
    """Check the deployment that the arguments name."""
    parser = argparse.ArgumentParser(prog="make doctor", description=__doc__)
    parser.add_argument("--env", default="", help="a name in samconfig.toml")
    parser.add_argument("--url", default="", help="the address of the API")
    arguments = parser.parse_args()
    try:
        deployment = deployed(arguments.env) if arguments.env else local(os.environ)
    except OperatorError as error:
        sys.stdout.write(f"There is no such deployment: {error}\n")
        return 1
    except (ClientError, BotoCoreError, FileNotFoundError) as error:
        sys.stdout.write(f"The deployment cannot be read: {error}\n")
        return 1
    deployment.url = arguments.url or None
    return 0 if examine(deployment, sys.stdout.write) else 1


if __name__ == "__main__":
    sys.exit(main())
