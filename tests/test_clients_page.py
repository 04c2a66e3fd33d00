"""docs/clients.md shows the files of examples/, which `make examples` runs, and its commands are theirs."""

import json
import re
from pathlib import Path

import pytest

from dev.examples import pages, running
from dev.proof import ProofError
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "clients.md").read_text()
SNIPPETS = re.findall(r"^`(examples/[^`]+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
EXAMPLES = [path for path in (ROOT / "examples").iterdir() if path.is_dir()]
PACKAGES = sorted((ROOT / "examples").glob("*/package.json"))


@pytest.mark.parametrize(("path", "text"), SNIPPETS)
def test_each_snippet_is_a_part_of_its_file(path: str, text: str) -> None:
    """A reader sees what CI runs."""
    assert text in f"{(ROOT / path).read_text()}\n"


def test_every_block_of_code_is_a_snippet_or_a_command() -> None:
    """No block is left out of the test above."""
    kinds = re.findall(r"^```(\w+)$", PAGE, re.MULTILINE)
    assert len(kinds) == len(SNIPPETS) + kinds.count("sh")


def test_every_example_is_listed() -> None:
    """With its directory, in the examples' own list and on the page."""
    listed = (ROOT / "examples" / "README.md").read_text()
    assert {path.name for path in EXAMPLES if f"[`{path.name}/`]" not in listed} == set()
    assert {path.name for path in EXAMPLES if f"examples/{path.name}" not in PAGE} == set()


def test_each_npm_command_is_a_script_of_a_package() -> None:
    """`npm run NAME` is one of its example's scripts."""
    scripts = {name for path in PACKAGES for name in json.loads(path.read_text())["scripts"]}
    assert set(re.findall(r"npm run (\w+)", PAGE)) <= scripts
    assert {path.parent.name for path in PACKAGES} == {"typescript", *pages.NAMES}


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: str(path.parent.name))
def test_each_package_is_pinned(path: Path) -> None:
    """To one version: there is no lock file."""
    package = json.loads(path.read_text())
    versions = [*package.get("dependencies", {}).values(), *package["devDependencies"].values()]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in versions)


class TestACommand:
    """`make examples` fails if an example fails, or prints another thing than it should."""

    def test_one_that_fails_is_reported(self) -> None:
        """With its output."""
        with pytest.raises(ProofError, match="ended with 3:\nno"):
            running.run(["sh", "-c", "echo no; exit 3"], {})

    def test_one_without_the_text_is_reported(self) -> None:
        """With the text that is missing."""
        with pytest.raises(ProofError, match=r"expected \['b'\]"):
            running.run(["echo", "a"], {}, says=("a", "b"))
