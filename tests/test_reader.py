"""The development server gives the API's description, and a page to read it."""

import json
from collections.abc import Iterator

import httpx2
import pytest
from starlette.applications import Starlette

from dev import reader
from tests.conftest import ROOT, serving


@pytest.fixture
def url(environment: None) -> Iterator[str]:
    """Serve the reader's routes."""
    from chat.app import app

    with serving(Starlette(routes=reader.routes(app))) as url:
        yield url


def test_the_description_is_the_file_s(url: str) -> None:
    """It is docs/openapi.json, as every server gives it."""
    answer = httpx2.get(f"{url}/openapi.json")
    assert answer.json() == json.loads((ROOT / "docs" / "openapi.json").read_text())


@pytest.mark.parametrize("path", ["/reference", "/reference/reader.js", "/reference/style.css"])
def test_the_page_loads_nothing_from_elsewhere(url: str, path: str) -> None:
    """Its policy allows its own files only, without inline scripts and styles. `make examples` opens it in Chromium."""
    answer = httpx2.get(f"{url}{path}")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in answer.text
