"""What the README and the documents say is true."""

import os
import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT, Person, serving
from tests.test_hostile import MCP_BODIES, MCP_HEADERS, MCP_PATHS

README = (ROOT / "README.md").read_text()
DOCUMENTS = [*map(ROOT.joinpath, ("README.md", "CHANGELOG.md", "SECURITY.md")), *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = [line.strip() for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
MAKEFILE = (ROOT / "Makefile").read_text()

PROVED_BY = {
    "dev": "tests/test_dev.py",
    "chat": "tests/test_dev.py",
    "test": ".ci/run",
    "check": ".ci/run",
    "build": "Makefile",  # smoke and sam-local, which CI runs, begin with it
    "smoke": ".ci/run",
    "sam-local": ".ci/run",
    "audit": ".ci/run",
    "bench": ".ci/run",
    "conformance": ".ci/run",
    "migrate": "tests/test_migrations.py",
    "lock": "Makefile",  # by check-locks, which compiles the same
    "help": "tests/test_docs.py",
    "deploy": "tests/test_docs.py",
}
"""Where each make target that the README names is run."""


def mcp_statuses() -> set[int]:
    """What the MCP endpoint answers, by docs/http.md."""
    return set(map(int, re.findall(r"^\| (\d{3}) \|", (ROOT / "docs/http.md").read_text(), re.MULTILINE)))


def targets(text: str) -> set[str]:
    """The make targets named in a text as commands."""
    return set(re.findall(r"(?:^|`)(?:[A-Z_]+=\S+ )*make ([a-z-]+)", text, re.MULTILINE))


def test_every_make_target_exists_and_is_run_somewhere() -> None:
    """A command in the README is a target of the Makefile, and a test or CI runs it."""
    named = targets(README) | targets("\n".join(COMMANDS))
    assert named <= set(PROVED_BY)
    for target in named:
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target
        where = (ROOT / PROVED_BY[target]).read_text()
        assert target in where, target


def test_make_help_lists_every_target_of_the_readme() -> None:
    """A newcomer who asks is told."""
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout  # noqa: S607
    assert targets(README) <= {line.split()[0] for line in told.splitlines() if line[0].isalpha()}


def test_make_deploy_asks_for_an_environment_that_is_configured() -> None:
    """It would deploy with what samconfig.toml says; without AWS that is as far as it can be tried."""
    recipe = subprocess.run(
        ["make", "--dry-run", "deploy", "ENV=prod"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "deploy --config-env prod" in recipe
    assert "[prod.deploy.parameters]" in (ROOT / "samconfig.toml").read_text()


@pytest.fixture
def url(environment: None) -> Iterator[str]:
    """The chat API behind a real HTTP server on this machine."""
    from chat.app import app

    with serving(app) as address:
        yield address


def test_the_curl_command_works_as_it_stands(alice: Person, url: str) -> None:
    """Pasted into a shell that knows the three variables, twice: the second answer is the first."""
    (command,) = re.findall(r"```sh\n(curl .*?)```", README, re.DOTALL)
    known = os.environ | {"URL": url, "USER_ID": alice.id, "TOKEN": alice.token}
    first, second = (
        subprocess.run(["sh", "-c", command], env=known, capture_output=True, text=True, check=True).stdout  # noqa: S603, S607
        for _ in range(2)
    )
    assert '"response":"Added buy milk' in first
    assert first == second


def test_the_example_answer_has_the_fields_of_a_real_one(alice: Person) -> None:
    """No field more, none less."""
    (example,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    answer = alice.say("Add buy milk").json
    fields = set(answer) | set(answer["tool_calls"][0]) | set(answer["tool_calls"][0]["result"]) | {"title"}
    assert set(re.findall(r'"(\w+)":', example)) == fields


def test_the_map_of_the_house_names_every_room() -> None:
    """Each module that ships stands in the README, and each file named there exists."""
    shipped = [*ROOT.glob("functions/*/*.py"), *ROOT.glob("shared/taskchat/**/*.py")]
    missing = {path.name for path in shipped if path.stem != "__init__" and f"`{path.name}`" not in README}
    assert missing == set()
    named = set(re.findall(r"`(\w+\.py)`", README))
    assert named <= {path.name for path in [*shipped, *ROOT.glob("tests/*.py")]}


def test_each_status_of_the_mcp_endpoint_is_told() -> None:
    """Those that hostile requests get, those without a token, and those of limits, outages and lack of time."""
    answered = {status for status, *_ in [*MCP_BODIES.values(), *MCP_HEADERS.values(), *MCP_PATHS.values()]}
    assert mcp_statuses() == answered | {401, 429, 500, 503, 504}


def test_each_threat_is_met_by_a_test_that_exists() -> None:
    """Every row of the threat model names tests, and each of those is there, by its file and its name."""
    _, *threats = re.findall(r"^\|(?!-)(.*)\|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    assert len(threats) > 20
    for threat in threats:
        shown_by = re.findall(r"`(test_\w+\.py)::(\w+)`", threat.rsplit("|", 1)[1])
        assert shown_by, threat
        for file, name in shown_by:
            defined = re.findall(r"^(?:class|def) (\w+)", (ROOT / "tests" / file).read_text(), re.MULTILINE)
            assert name in defined, f"{file}::{name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: os.PathLike[str]) -> None:
    """Every relative link in a document is a file or a directory."""
    text = (ROOT / document).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not ((ROOT / document).parent / link).exists()] == []
