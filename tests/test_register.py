"""Every private name of a dependency is listed in docs/upgrading.md, and every imported package is declared."""

import ast
import re
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest

from taskchat.database.pg8000_pipeline import _INSIDE
from tests.conftest import ROOT
from tests.private_names import OWN, Module, Search, Use

PIPELINE = "shared/taskchat/database/pg8000_pipeline.py"

MOST_ELSEWHERE = 3
"""Private names that all other files together may use."""

PROVIDED = {
    "snapshot_restore_py": "Lambda's managed runtime has it, and the import may fail",
    "botocore": "Lambda's managed runtime has it, and Powertools imports it to read a secret",
}
"""Modules that shipped code imports, but that do not ship with it."""

IN_PLACE_OF = {"fastmcp-slim": "fastmcp"}
"""Distributions that hold the modules of another one, which asks for exactly its own version of them."""


class Row(NamedTuple):
    """A row of docs/upgrading.md."""

    file: str
    name: str
    test: str


def rows(heading: str) -> list[Row]:
    """Return the rows of the table under a heading of docs/upgrading.md."""
    _, section = (ROOT / "docs" / "upgrading.md").read_text().split(f"\n## {heading}\n")
    lines = re.findall(r"^\| `(.*)` \|$", section.split("\n## ")[0], re.MULTILINE)
    return [Row(cells[0], cells[1].split(" | ")[0].strip("`"), cells[-1]) for cells in (cut(line) for line in lines)]


def cut(line: str) -> list[str]:
    """Return the cells of a table's row, without the marks around code."""
    return [cell.strip("`") for cell in line.split(" | ")]


PRIVATE = rows("Private names")
UNDOCUMENTED = rows("Names without an underscore that no vendor documents")


def shipped() -> list[Module]:
    """Return every module that ships, parsed."""
    roots = [ROOT / "functions", ROOT / "shared"]
    return [Module.read(path, root, ROOT) for root in roots for path in sorted(root.rglob("*.py"))]


@pytest.fixture(scope="module")
def uses() -> set[Use]:
    """Return the private names that shipped code uses."""
    return Search(shipped()).uses()


def test_every_use_has_a_row(uses: set[Use]) -> None:
    """Shipped code uses no private name of a dependency that docs/upgrading.md does not list."""
    known = {(row.file, row.name) for row in PRIVATE}
    assert [use for use in sorted(uses) if (use.file, use.name) not in known] == []


def test_every_row_is_used(uses: set[Use]) -> None:
    """A row goes when its use goes, or when the dependency's class no longer has the name."""
    found = {(use.file, use.name) for use in uses}
    assert [row for row in PRIVATE if (row.file, row.name) not in found] == []
    assert len({(row.file, row.name) for row in PRIVATE}) == len(PRIVATE)


def test_few_are_outside_the_pipeline(report: Callable[[str], None]) -> None:
    """The driver's pipeline is one file that knows one version. All other code keeps to what vendors promise."""
    elsewhere = [row for row in PRIVATE if row.file != PIPELINE]
    report(
        f"private names of dependencies: {len(PRIVATE) - len(elsewhere)} in the pipeline, {len(elsewhere)} elsewhere"
    )
    assert len(elsewhere) <= MOST_ELSEWHERE


def test_every_undocumented_name_is_used() -> None:
    """Each file of the second table still holds its name."""
    for row in UNDOCUMENTED:
        assert row.name in (ROOT / row.file).read_text(), row


def test_every_name_that_the_pipeline_checks_is_listed() -> None:
    """A name that the pipeline needs of the driver stands in one of the tables."""
    listed = {row.name.rpartition(".")[2] for row in [*PRIVATE, *UNDOCUMENTED] if row.file == PIPELINE}
    assert {name for names in _INSIDE.values() for name in names} <= listed


@pytest.mark.parametrize("row", [*PRIVATE, *UNDOCUMENTED], ids=lambda row: f"{Path(row.file).stem}-{row.name}")
def test_each_row_names_a_test_that_exists(row: Row) -> None:
    """The test that notices is there, by its file and its name."""
    file, _, name = row.test.partition("::")
    assert re.search(rf"^(class|def) {name}\b", (ROOT / "tests" / file).read_text(), re.MULTILINE)


FOUND = {
    "a private module": ("from openai._models import BaseModel", "openai._models.BaseModel"),
    "a private module, whole": ("import pydantic._internal._config as c", "pydantic._internal._config"),
    "a private name of a module": ("from json import _default_decoder", "json._default_decoder"),
    "an import inside a function": ("def f():\n    import openai._base_client", "openai._base_client"),
    "an undocumented module": ("from pg8000.core import make_params", "pg8000.core.make_params"),
    "an import by text": ("importlib.import_module('openai._utils')", "openai._utils"),
    "an attribute of a module": ("import openai\nopenai._utils", "openai._utils"),
    "an attribute of an object": ("def f(driver): driver._usock.close()", "_usock"),
    "an attribute by text": ("def f(x): return getattr(x, '_usock')", "_usock"),
    "an attribute in a dictionary": ("def f(x): return vars(x)['_usock']", "_usock"),
    "a pydantic name with four underscores": ("def f(x): return x.__pydantic_fields__", "__pydantic_fields__"),
    "a change of a class": ("import openai\nopenai.OpenAI.post = None", "openai.OpenAI.post"),
    "a change of an item": ("from agents import tool\ntool.known['x'] = 1", "agents.tool.known"),
    "a change with others": ("import json, openai\njson.x, openai.y = 1, 2", "openai.y"),
    "a deletion": ("import openai\ndel openai.OpenAI", "openai.OpenAI"),
    "a change by text": ("import openai\nsetattr(openai, 'x', 1)", "openai.x"),
    "a change by a computed text": ("import openai\ndef f(x): setattr(openai, x, 1)", "openai.*"),
    "a module's __getattr__": ("import openai\nopenai.__getattr__ = None", "openai.__getattr__"),
    "a __getattr__ by text": ("def f(m): setattr(m, '__getattr__', None)", "__getattr__"),
    "an import finder": ("import sys\nsys.meta_path.insert(0, None)", "sys.meta_path"),
    "a module put in place": ("import sys\nsys.modules['x'] = None", "sys.modules"),
    "an overridden method": (
        "import openai\nclass Mine(openai.AsyncOpenAI):\n    def _build_headers(self): ...",
        "openai._base_client.BaseClient._build_headers",
    ),
    "a method of the base class": (
        "from openai import AsyncOpenAI\nclass Mine(AsyncOpenAI):\n    def f(self): return self._build_headers()",
        "openai._base_client.BaseClient._build_headers",
    ),
    "an attribute of the base class": (
        "import pg8000\nclass A(pg8000.Connection): ...\nclass B(A):\n    def f(self): self._sock = None",
        "pg8000.core.CoreConnection._sock",
    ),
    "a method by super": (
        "import openai\nclass Mine(openai.AsyncOpenAI):\n    def f(self): return super()._build_headers()",
        "openai._base_client.BaseClient._build_headers",
    ),
    "an attribute that no class defines": ("class A:\n    def f(self): return self._x", "_x"),
}
"""Python code, and the private name that the search must find in it."""

NOT_FOUND = {
    "our own attribute": "class A:\n    def __init__(self): self._x = 1\n    def f(self): return self._x",
    "our own attribute of another object": "class A:\n    _x: int\ndef f(a): return a._x",
    "our own inherited attribute": "class A:\n    _x = 1\nclass B(A):\n    def f(self): return self._x",
    "our own module": "from taskchat.x import _y\nimport taskchat\ntaskchat._z = 1",
    "Python's own names": "def f(x): return x.__cause__, x.__class__.__name__, x._replace(a=1), x.__init__()",
    "a setting that Python documents": "import logging\nlogging.raiseExceptions = False",
    "a variable without a name": "for _ in []: ...",
    "a public attribute of an object": "def f(app): app.routes[:] = []",
}


def search(code: str) -> set[str]:
    """Return the names that are found in a module with this code."""
    return {use.name for use in Search([Module("taskchat.made_up", "made_up.py", ast.parse(code))]).uses()}


@pytest.mark.parametrize("what", FOUND)
def test_the_search_finds(what: str) -> None:
    """It finds each kind of use."""
    code, name = FOUND[what]
    assert name in search(code)


@pytest.mark.parametrize("what", NOT_FOUND)
def test_the_search_leaves_alone(what: str) -> None:
    """It does not find what is public, or ours."""
    assert search(NOT_FOUND[what]) == set()


def declared() -> dict[str, str]:
    """Return the lines of `[project].dependencies`, with their comments, by the name of the distribution."""
    text = (ROOT / "pyproject.toml").read_text()
    names = [re.split(r"[\[=<>]", each)[0] for each in tomllib.loads(text)["project"]["dependencies"]]
    return {
        normal(name): line for name in names for line in re.findall(rf'^ +"{name}[\[=<>"].*$', text, re.MULTILINE)[:1]
    }


def normal(name: str) -> str:
    """Return a distribution's name as the packaging standard compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(module: Module) -> set[str]:
    """Return the top names of what a module imports, or names as a package whose files it reads."""
    nodes = list(ast.walk(module.tree))
    names = {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    read = [
        node.args[0]
        for node in nodes
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("files", "import_module")
    ]
    names |= {str(argument.value) for argument in read if isinstance(argument, ast.Constant)}
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - OWN


def test_every_imported_package_is_declared() -> None:
    """Shipped code imports no distribution that pyproject.toml does not declare: another one would drop it one day."""
    known, distributions = declared(), packages_distributions()
    for module in shipped():
        for name in imported(module) - PROVIDED.keys():
            providers = {normal(each) for each in distributions.get(name, [])}
            assert {IN_PLACE_OF.get(each, each) for each in providers} & known.keys(), f"{module.file} imports {name}"


def test_every_declared_package_has_a_cap_and_a_reason() -> None:
    """A reader sees how far `make lock` may go, and why no further."""
    for name, line in declared().items():
        requirement, _, reason = line.partition("#")
        assert len(reason.split()) > 3, name
        assert "==" in requirement or "<" in requirement or "no cap" in reason, name
