"""Check that docs/your-own-tools.md can be followed. `make guide` follows it, which takes minutes; this takes none."""

import ast
import importlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from dev import node
from dev.guide import steps
from dev.guide.steps import Command, File, GuideError
from tests.conftest import ROOT

STEPS = steps.read()
FILES = {str(step.path): step.text for step in STEPS if isinstance(step, File)}
MODULES = [path for path in FILES if path.endswith(".py")]
COMMANDS = [line for step in STEPS if isinstance(step, Command) for line in step.text.splitlines()]
DOMAIN = "shared/taskchat/expenses"
STANDIN = "dev/standin_model/expenses"
EXAMPLE = "tests/expenses/example.py"


def tools() -> set[str]:
    """Return the names of the guide's tools: the functions with the decorator."""
    tree = ast.parse(FILES[f"{DOMAIN}/tools.py"])
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {function.name for function in functions if "tool(" in "".join(map(ast.unparse, function.decorator_list))}


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """The files of the repository."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    return set(listed.stdout.splitlines())


@pytest.mark.parametrize("path", MODULES)
def test_each_file_of_python_is_whole(path: str) -> None:
    """It parses, and it says what it is for."""
    assert ast.get_docstring(ast.parse(FILES[path]))


@pytest.mark.parametrize("path", MODULES)
def test_each_file_imports_names_that_are_there(path: str) -> None:
    """Of the packages of the repository; other files of the guide have the rest."""
    imports = [found for found in ast.walk(ast.parse(FILES[path])) if isinstance(found, ast.ImportFrom)]
    for statement in imports:
        module = statement.module or ""
        if module.split(".")[0] in {"taskchat", "dev", "tests", "migrations"} and ".expenses" not in module:
            there = importlib.import_module(module)
            assert [alias.name for alias in statement.names if not hasattr(there, alias.name)] == [], module


def test_each_file_has_its_directory(tracked: set[str]) -> None:
    """It is one of the repository, or a step before made it."""
    there = {str(Path(path).parent) for path in tracked}
    for step in STEPS:
        if isinstance(step, File):
            assert str(step.path.parent) in there, step
        else:
            there.update(line.removeprefix("mkdir ") for line in step.text.splitlines() if line.startswith("mkdir "))


def test_commands_name_files_that_are_there(tracked: set[str]) -> None:
    """Each path that a command names is in the repository, or the guide wrote it."""
    there = tracked | set(FILES) | {str(parent) for path in tracked | set(FILES) for parent in Path(path).parents}
    made = {line.removeprefix("mkdir ") for line in COMMANDS if line.startswith("mkdir ")}
    for line in COMMANDS:
        named = {word for word in shlex.split(line) if re.fullmatch(r"[a-z][\w./-]*", word) and "/" in word}
        assert named <= there | made, line


def test_the_panel_is_a_domain_s_module(tmp_path: Path) -> None:
    """It parses, and exports what the page needs of one, as the panel of the tasks does."""
    names = [tmp_path / "expenses.mjs", tmp_path / "tasks.mjs"]
    names[0].write_text(FILES[f"{DOMAIN}/panel.js"])
    shutil.copy(ROOT / "shared/taskchat/tasks/panel.js", names[1])
    for name in names:
        script = f"console.log(Object.keys(await import({json.dumps(name.as_uri())})).join())"
        done = node.run([node.program(), "--input-type=module", "-e", script], 60)
        assert done.stdout.strip() == "concerns,describe,render,suggestions,title", done.stderr


def test_the_lines_to_change_are_there() -> None:
    """Each substitution finds its words in each file that it names."""
    substitutions = [shlex.split(line) for line in COMMANDS if line.startswith("perl ")]
    for _, _, _, pattern, *paths in substitutions:
        _, words, _, _ = pattern.split("/")
        for path in paths:
            assert re.search(words, (ROOT / path).read_text()), (words, path)


def test_no_file_that_stays_imports_what_is_removed(tracked: set[str]) -> None:
    """In what runs. The tests that the guide leaves to the reader may, and the examples of clients."""
    changed = {path for line in COMMANDS if line.startswith("perl ") for path in shlex.split(line)[4:]}
    removed = tuple(line.removeprefix("rm -r ") for line in COMMANDS if line.startswith("rm -r "))
    stays = {
        path for path in tracked if path.endswith(".py") and not path.startswith(("tests/", "examples/", *removed))
    }
    for path in stays - changed - set(FILES):
        assert not re.search(r"^\s*(from|import) \S*\btasks\b", (ROOT / path).read_text(), re.MULTILINE), path


def test_tools_agree() -> None:
    """The stand-in, its examples and the tests name the tools that there are."""
    assert len(tools()) == 5
    assert set(re.findall(r"^  (\w+): \[", FILES[f"{DOMAIN}/panel.js"], re.MULTILINE)) == tools()
    for path in (f"{STANDIN}/__init__.py", f"{STANDIN}/sentences.py", EXAMPLE):
        named = set(re.findall(r'"(\w+_expenses?|total_by_month)"', FILES[path]))
        assert named <= tools(), path
    assert set(re.findall(r'^            \("(\w+)", \{', FILES[f"{STANDIN}/__init__.py"], re.MULTILINE)) == tools()


def migration() -> str:
    """Return the migration that the guide writes."""
    (text,) = [text for path, text in FILES.items() if path.startswith("migrations/versions/")]
    return text


def test_tables_agree() -> None:
    """Model, migration, examples and tests name one table."""
    migrated, restored = re.findall(r"create table (\w+)", migration())
    (modelled,) = re.findall(r'metadata\.tables\["(\w+)"\]', FILES[f"{DOMAIN}/models.py"])
    (shown,) = re.findall(r'table="(\w+)"', FILES[f"{STANDIN}/__init__.py"])
    (tested,) = re.findall(r'table, text, state = "(\w+)"', FILES[EXAMPLE])
    assert {migrated, modelled, shown, tested} == {"expense"}
    assert restored == "task"


def test_the_migration_is_the_next_one() -> None:
    """It follows the newest of the repository, and the code of the guide needs it."""
    head = ScriptDirectory.from_config(Config(toml_file=str(ROOT / "pyproject.toml"))).get_current_head()
    (down,) = re.findall(r'^down_revision = "(\w+)"$', migration(), re.MULTILINE)
    assert down == head
    (needed,) = re.findall(r'/NEEDED: Final = "(\w+)"/', steps.GUIDE.read_text())
    assert f'\nrevision = "{needed}"\n' in migration()


@pytest.mark.parametrize("text", ["Words:\n\n```python\nx = 1\n```\n", "Words\n```sh\nls\n```\n", "\n\n```sh\nls\n"])
def test_a_block_that_is_no_step_is_an_error(text: str, tmp_path: Path) -> None:
    """A file without a path, or a block that the parser would overlook."""
    (tmp_path / "guide.md").write_text(text)
    with pytest.raises(GuideError):
        steps.read(tmp_path / "guide.md")
