"""The imports of a service that does the same without care for its start-up time."""

from typing import Final

IMPORTS: Final = "agents, fastmcp, fastapi, mangum, sqlmodel, pg8000, aws_lambda_powertools"
