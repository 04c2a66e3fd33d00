"""The release has one version: pyproject.toml, the MCP server and the OpenAPI description name the same."""

import json
import tomllib

from taskchat.version import VERSION
from tests.conftest import ROOT


def test_the_version_is_that_of_the_project() -> None:
    """Nothing of pyproject.toml is in the artifact, so the code has a constant."""
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION


def test_the_api_describes_this_version() -> None:
    """FastAPI would name a version of its own."""
    from chat.app import app

    assert app.openapi()["info"]["version"] == VERSION
    assert json.loads((ROOT / "docs" / "openapi.json").read_text())["info"]["version"] == VERSION
