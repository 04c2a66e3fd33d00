"""The README and the documents are true."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from chat.stream.sse import NAMES
from dev import client, proof
from dev.inspector import Inspector, readme_command
from tests.conftest import ROOT, Person
from tests.privacy import LogSearch
from tests.test_dev import ENVIRONMENT, Development, development
from tests.test_hostile import MCP_BODIES, MCP_HEADERS, MCP_PATHS

README = (ROOT / "README.md").read_text()
PAGES = ("README.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md")
DOCUMENTS = [*map(ROOT.joinpath, PAGES), *sorted((ROOT / "docs").rglob("*.md"))]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
CODE = (ROOT / "docs" / "code.md").read_text()
HOW_TO = [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "upgrading.md"]
"""Pages that name files, commands and code for a reader to use."""
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.strip() for block in BLOCKS for line in re.sub(r"\\\n *", "", block).strip().splitlines()]
"""Each command of the README, in one line as a reader pastes it."""
MAKEFILE = (ROOT / "Makefile").read_text()
PASTE_SECONDS = 120

PROVED_BY = {
    "install": "Makefile",  # every other target begins with it
    "thorough": ".ci/run",
    "openapi": "docs/add-a-route.md",  # tests/test_add_a_route.py runs its commands
    "reference": "docs/add-a-route.md",
    "inspector": ".ci/run",
    "dev": "tests/test_dev.py",
    "chat": "tests/test_docs.py",
    "test": ".ci/run",
    "check": ".ci/run",
    "build": "Makefile",  # smoke and sam-local, which CI runs, begin with it
    "smoke": ".ci/run",
    "sam-local": ".ci/run",
    "audit": ".ci/run",
    "bench": ".ci/run",
    "conformance": ".ci/run",
    "clients": ".ci/run",
    "examples": ".ci/run",
    "evals": ".ci/run",
    "page": "tests/test_page_deployment.py",
    "screenshots": "tests/browser/test_pictures.py",
    "guide": ".ci/run",
    "migrate": "tests/test_docs.py",
    "lock": "Makefile",  # by check-locks, which compiles the same
    "help": "tests/test_docs.py",
}
"""The file that runs each make target that README and CONTRIBUTING name."""


def mcp_statuses() -> set[int]:
    """Return the statuses of the MCP endpoint, from docs/http.md."""
    return set(map(int, re.findall(r"^\| (\d{3}) \|", (ROOT / "docs/http.md").read_text(), re.MULTILINE)))


def targets(text: str) -> set[str]:
    """Return the make targets that a text names as commands."""
    return set(re.findall(r"(?:^|`)(?:[A-Z_]+=\S+ )*make ([a-z-]+)", text, re.MULTILINE))


def commands_for(target: str) -> list[str]:
    """Return the commands of the README that run the make target, or the program."""
    return [each for each in COMMANDS if re.search(rf"(^|make ){target}( |$)", each)]


def command_for(target: str) -> str:
    """Return the one such command."""
    [command] = commands_for(target)
    return command


def test_a_test_or_ci_runs_every_command() -> None:
    """A block of README is `make` with a target, or one that a test below runs: variables, a stream, the Inspector."""
    assert [re.split(r"[\s=]", block)[0] for block in BLOCKS] == ["make", "make", "URL", "curl", "PATH"]
    named = targets(README) | targets(CONTRIBUTING) | targets("\n".join(COMMANDS))
    assert named == set(PROVED_BY)
    for name in named:
        assert re.search(rf"^{name}:", MAKEFILE, re.MULTILINE), name
        assert re.search(rf"\b{name}\b", (ROOT / PROVED_BY[name]).read_text()), name


def test_make_help_lists_every_target_of_the_readme() -> None:
    """A newcomer who runs `make help` finds each of them."""
    output = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout  # noqa: S607  (as typed)
    assert targets(README) | targets(CONTRIBUTING) <= {
        line.split()[0] for line in output.splitlines() if line[0].isalpha()
    }


def paste(command: str, directory: Path, **known: str) -> str:
    """Run a command in a shell with these variables, and return its output.

    Only `make` differs from a reader's: it must not install again into the environment that runs the tests.
    """
    make = directory / "make"
    make.write_text(f'#!/bin/sh\nexec {shutil.which("make")} --assume-old=.venv/.installed "$@"\n')
    make.chmod(0o755)
    known |= {"PATH": f"{directory}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(  # noqa: S603
        ["sh", "-c", command],  # noqa: S607
        cwd=ROOT,
        env=ENVIRONMENT | known,
        capture_output=True,
        text=True,
        check=False,
        timeout=PASTE_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def running(log_search: LogSearch) -> Iterator[Development]:
    """Run `make dev`, as in another terminal."""
    with tempfile.TemporaryDirectory(prefix="taskchat-test-") as name, development(Path(name)) as server:
        yield server
        log_search.add_output((Path(name) / "server.log").read_text())


def test_the_commands_work_as_they_stand(running: Development, tmp_path: Path) -> None:
    """A reader pastes the printed curl line first, and then README's commands in their order."""
    known = {"TASKCHAT_DEV_DIR": running.environment["TASKCHAT_DEV_DIR"]}
    paste(running.curl, tmp_path, **known)
    added = paste(command_for("chat"), tmp_path, **known)
    assert re.findall(r'(\w+_tasks?)\((?:title="([\w ]+)")?', added) == [
        ("add_task", "call mum"),
        ("add_task", "dentist"),
    ]
    variables, stream = (block for block in BLOCKS if "curl" in block and "npx" not in block and "make" not in block)
    variables = re.sub(r"(?m)^URL=.*$", f"URL={running.url}", variables)
    printed = paste(variables + stream, tmp_path, **known)
    events = re.findall(r"^event: (\w+)$", printed, re.MULTILINE)
    assert (events[0], events[-1]) == ("accepted", "finished")
    assert {"tool_started", "tool_finished", "text"} < set(events) <= set(NAMES.values())
    assert re.search(r'"response":"Moved dentist \(\d+, Friday [\d-]+ 09:00\)', printed)


def test_the_inspector_command_works_as_it_stands(
    running: Development, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lists all tools. Its version is exact: for an older Node.js npx would take an older Inspector."""
    assert re.search(r" npx -y @modelcontextprotocol/inspector@\d+\.\d+\.\d+ ", readme_command())
    monkeypatch.setenv("TASKCHAT_DEV_DIR", str(tmp_path))
    tools = Inspector(running.url).list_tools(client.token(running.url)["mcp_token"])["tools"]
    assert {tool["name"] for tool in tools} == set(proof.TOOLS)


def test_the_example_answer_has_the_fields_of_a_real_one(alice: Person) -> None:
    """It has all of them and no other, and belongs to the message that the README names."""
    [(message, example)] = re.findall(r"The message `(.+)` gets this one:\n\n```json\n(.*?)```", README, re.DOTALL)
    answer, shown = alice.say(message).json, json.loads(example)
    assert re.sub(r"\d+", "1", answer["response"]) == shown["response"]
    assert answer["tool_calls"][0]["arguments"] == shown["tool_calls"][0]["arguments"]
    fields = set(answer) | set(answer["tool_calls"][0]) | set(answer["tool_calls"][0]["result"]) | {"title"}
    assert set(re.findall(r'"(\w+)":', example)) == fields


def test_every_module_is_named() -> None:
    """The page about the code names each shipped module, and each file that it names exists."""
    shipped = [*ROOT.glob("functions/*/**/*.py"), *ROOT.glob("shared/taskchat/**/*.py")]
    missing = {path.name for path in shipped if path.stem != "__init__" and f"`{path.name}`" not in CODE}
    assert missing == set()
    named = set(re.findall(r"`(\w+\.py)`", CODE))
    assert named <= {path.name for path in [*shipped, *ROOT.glob("tests/*.py"), *ROOT.glob("operations/*.py")]}


def test_each_status_of_the_mcp_endpoint_is_documented() -> None:
    """These are the statuses of hostile requests, of requests without a token, of limits, outages and timeouts."""
    answered = {status for status, *_ in [*MCP_BODIES.values(), *MCP_HEADERS.values(), *MCP_PATHS.values()]}
    assert mcp_statuses() == answered | {401, 429, 500, 503, 504}


def test_each_threat_names_tests_that_exist() -> None:
    """Every row of the threat model names tests, by file and name."""
    _, *threats = re.findall(r"^\|(?!-)(.*)\|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    assert len(threats) > 20
    for threat in threats:
        shown_by = re.findall(r"`((?:tasks/)?test_\w+\.py)::(\w+)`", threat.rsplit("|", 1)[1])
        assert shown_by, threat
        for file, name in shown_by:
            defined = re.findall(r"^(?:class|def) (\w+)", (ROOT / "tests" / file).read_text(), re.MULTILINE)
            assert name in defined, f"{file}::{name}"


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings. Of two alike, the second one gets a number."""
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    headings = [
        re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in re.findall(r"^#+ (.*)$", text, re.M)
    ]
    counts = [headings[:place].count(each) for place, each in enumerate(headings)]
    return {f"{each}-{count}" if count else each for each, count in zip(headings, counts, strict=True)}


def links(document: Path) -> list[tuple[Path, str]]:
    """Return the file and the anchor of each link to a file of the repository."""
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    found = re.findall(r"\]\(<?([^)>]+)>?\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)
    found += re.findall(r'(?:src|srcset)="([^"]+)"', text)
    inside = [link.partition("#") for link in found if "://" not in link]
    return [((document.parent / file).resolve() if file else document, anchor) for file, _, anchor in inside]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_have_targets(document: Path) -> None:
    """Every link within the repository leads to a file or a directory, and an anchor to a heading there."""
    found = links(document)
    assert [str(file) for file, _ in found if not file.exists()] == []
    assert [f"{file.name}#{anchor}" for file, anchor in found if anchor and anchor not in anchors(file)] == []


PAGES_OF_DOCS = sorted((ROOT / "docs").glob("*.md"))
KINDS = ("Tutorial", "How-to", "Reference", "Explanation")


@pytest.mark.parametrize("page", PAGES_OF_DOCS, ids=lambda path: path.name)
def test_a_page_says_for_whom_it_is(page: Path) -> None:
    """The line below the title does, in italics, and begins with one of the four kinds."""
    title, empty, line, *_ = page.read_text().splitlines()
    assert title.startswith("# ")
    assert (empty, bool(re.match(rf"\*({'|'.join(KINDS)}), for \S.*", line))) == ("", True), line


def test_the_index_lists_every_page() -> None:
    """Under the kind that the page itself names."""
    index = ROOT / "docs" / "README.md"
    sections = re.split(r"^## ", index.read_text(), flags=re.MULTILINE)[1:]
    assert [section.partition("\n")[0] for section in sections] == list(KINDS)
    for page in set(PAGES_OF_DOCS) - {index}:
        [kind] = re.findall(r"^\*([\w-]+), for", page.read_text(), re.MULTILINE)[:1]
        section = sections[KINDS.index(kind)]
        assert re.search(rf"\]\({re.escape(page.name)}[)#]", section), f"{page.name} is not under {kind}"


def test_the_newest_release_is_this_version() -> None:
    """The list of changes begins with what is not released, and the newest release has its date and its upgrade."""
    unreleased, newest, *_ = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]
    assert unreleased.startswith("Unreleased\n")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.match(rf"{re.escape(version)} - \d{{4}}-\d\d-\d\d\n\n### Upgrade\n", newest)


@pytest.mark.parametrize("form", ["bug", "idea"])
def test_an_issue_form_asks_each_thing_once(form: str) -> None:
    """GitHub shows a form only if it has these keys, and each field has an id of its own and a label."""
    document = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{form}.yml").read_text())
    assert document["name"]
    assert document["description"]
    fields = [field for field in document["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert len(set(ids)) == len(ids)
    assert all(field["attributes"]["label"] for field in fields)


def code(document: Path) -> list[str]:
    """Return the code of a page, from its lines and its blocks."""
    text = document.read_text()
    blocks = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return blocks + re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


@pytest.mark.parametrize("document", HOW_TO, ids=lambda path: path.name)
def test_each_path_and_make_target_exists(document: Path) -> None:
    """A named path is in the repository, in the environment, or written by the tests."""
    made = (ROOT / ".gitignore").read_text().split()
    words = {word for each in code(document) for word in each.split()}
    paths = {word for word in words if re.fullmatch(r"[\w.-]+(/[\w.-]*)+|[\w-]+\.(py|toml|yaml|md)", word)}
    assert [path for path in paths if not path.startswith(tuple(made)) and not (ROOT / path).exists()] == []
    programs = {path.rpartition("/")[2] for path in paths if path.startswith(".venv/bin/")}
    assert [name for name in programs if not (Path(sys.executable).parent / name).exists()] == []
    named = {target for each in code(document) for target in targets(each)}
    assert [name for name in named if not re.search(rf"^{name}:", MAKEFILE, re.MULTILINE)] == []


@pytest.mark.parametrize("document", HOW_TO, ids=lambda path: path.name)
def test_each_name_is_in_a_file_of_its_section(document: Path) -> None:
    """One of the files that a section names contains each class, function and constant that it names."""
    for section in re.split(r"^## ", document.read_text(), flags=re.MULTILINE)[1:]:
        marked = re.findall(r"`([^`\n]+)`", section)
        files = [ROOT / each for each in marked if (ROOT / each).is_file()]
        text = "\n".join(file.read_text() for file in files)
        names = {
            each.lstrip("@") for each in marked if re.fullmatch(r"@?[\w.]*[a-z_]*_\w+|@[\w.]+|[A-Z][a-z]\w+", each)
        }
        if not section.startswith(
            ("Private names", "Names without", "Checklist")
        ):  # tests/test_register.py reads these
            assert [name for name in names if name.split("(")[0] not in text] == [], section.splitlines()[0]


def test_the_command_with_a_selection_runs_a_test() -> None:
    """The page's command with `-k` finds at least one."""
    (command,) = [line for line in code(HOW_TO[0]) if line.startswith(".venv/bin/pytest") and " -k " in line]
    collect = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", *command.split()[1:]]
    done = subprocess.run(collect, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stdout


def test_the_command_for_a_migration_makes_the_next_file(tmp_path: Path) -> None:
    """With the next number, the command makes a file that follows the newest one."""
    (command,) = [line for line in code(HOW_TO[0]) if line.startswith(".venv/bin/alembic")]
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations")
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    newest = max(path.name[:4] for path in (tmp_path / "migrations" / "versions").glob("*.py"))
    number = f"{int(newest) + 1:04}"
    alembic = [
        sys.executable,
        "-m",
        "alembic",
        *shlex.split(re.sub(r"--rev-id \d+", f"--rev-id {number}", command))[1:],
    ]
    subprocess.run(alembic, cwd=tmp_path, check=True, capture_output=True)  # noqa: S603
    [made] = (tmp_path / "migrations" / "versions").glob(f"{number}_*.py")
    assert f'down_revision = "{newest}"' in made.read_text()
