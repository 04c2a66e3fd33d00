"""docs/deploy.md and the workflows name commands and parameters that exist. Those that need no account are run."""

import os
import re
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from dev import node, processes
from dev.postgres import Postgres
from tests.conftest import ROOT
from tests.test_docs import paste
from tests.test_migrations import EmptyDatabase
from tests.test_template import template

PAGE = (ROOT / "docs" / "deploy.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SECONDS = 60


def block(beginning: str) -> str:
    """Return the page's block of commands that begins so."""
    [found] = [each for each in BLOCKS if each.startswith(beginning)]
    return found


def steps(path: Path) -> list[dict[str, Any]]:
    """Return the steps of all jobs of a workflow."""
    return [step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"]]


def test_the_page_has_its_steps_in_order() -> None:
    """They are numbered without a gap."""
    assert re.findall(r"^## (\d)\.", PAGE, re.MULTILINE) == list("123456")


@pytest.mark.parametrize("commands", BLOCKS, ids=lambda commands: commands.split("\n")[0][:40])
def test_a_shell_can_parse_it(commands: str) -> None:
    """A reader pastes each block whole."""
    subprocess.run(["bash", "-n"], input=commands, text=True, check=True)  # noqa: S607  (as typed)


def test_its_make_targets_exist() -> None:
    """So do those of the workflows."""
    text = "\n".join([PAGE, *(str(step.get("run", "")) for path in WORKFLOWS for step in steps(path))])
    named = set(re.findall(r"(?:^|`|\$ )make ([a-z-]+)", text, re.MULTILINE))
    assert {"migrate", "build", "smoke", "deploy", "rollback", "prune", "reconcile"} <= named
    assert named <= set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def test_the_nightly_run_reads_the_deployment_and_feeds_its_alarm(tmp_path: Path) -> None:
    """Without the environment it would read a log that the runner does not have."""
    [command] = [step["run"] for path in WORKFLOWS for step in steps(path) if "reconcile" in step.get("run", "")]
    shown = paste(command.replace("make ", "make -n ", 1), tmp_path, ENV="prod")
    assert "operations.reconcile --env prod --metrics" in shown


def test_its_parameters_exist() -> None:
    """Each name in code that looks like a parameter is one, of one of the two templates, or an output."""
    document, deployer = template(), yaml.safe_load(re.sub(r"!\w+", "", (ROOT / "deploy/deployer.yaml").read_text()))
    known = {*document["Parameters"], *document["Outputs"], *deployer["Parameters"]}
    named = set(re.findall(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)+)[`=]", PAGE)) - {"AllAtOnce"}
    assert named <= known
    assert set(re.findall(r"\b([A-Z]\w+)=", block("aws cloudformation deploy"))) <= set(deployer["Parameters"])
    kinds = document["Parameters"]["CanaryType"]["AllowedValues"]
    assert set(re.findall(r"CanaryType=(\w+)", PAGE)) <= set(kinds)


def test_its_links_within_the_page_lead_somewhere() -> None:
    """GitHub makes an anchor of each headline."""
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^## (.*)$", PAGE, re.M)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", PAGE)) <= anchors


def test_the_schema_and_the_role_are_made(server: Postgres, tmp_path: Path) -> None:
    """The test puts a database's URLs in place of the two with dots."""
    empty = EmptyDatabase(server)
    commands = block("export MIGRATION_DATABASE_URL")
    for name, url in (("MIGRATION_DATABASE_URL", empty.owner_url), ("DATABASE_URL", empty.app_url)):
        commands, count = re.subn(rf'\b{name}="[^"]*…[^"]*"', lambda _, text=f'{name}="{url}"': text, commands)
        assert count == 1
    assert "The schema is at" in paste(commands, tmp_path)


def test_each_password_is_another_and_strong_enough(tmp_path: Path) -> None:
    """Neon wants 60 bits, and a URL no escapes."""
    made = {paste(block("openssl"), tmp_path).strip() for _ in range(2)}
    assert len(made) == 2
    assert all(re.fullmatch(r"[0-9a-f]{48}", password) for password in made)


def test_the_folder_for_better_auth_serves(server: Postgres, tmp_path: Path) -> None:
    """A user signs up there and gets a token. npm installs from its cache, or from the network."""
    checkout, folder = tmp_path / "taskchat", tmp_path / "taskchat-auth"
    shutil.copytree(ROOT / "dev" / "better_auth", checkout / "dev" / "better_auth")
    installed = node.run(["bash", "-ec", block("mkdir -p ../taskchat-auth")], SECONDS * 2, cwd=checkout)
    assert installed.returncode == 0, installed.stderr
    [program] = re.findall(r"```js\n(.*?)```", PAGE, re.DOTALL)
    (folder / "server.mjs").write_text(program)
    port = processes.free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    known = {
        "PORT": str(port),
        "BETTER_AUTH_URL": url,
        "BETTER_AUTH_SECRET": secrets.token_hex(32),
        "BETTER_AUTH_DATABASE_URL": EmptyDatabase(server).owner_url,
        "BETTER_AUTH_TELEMETRY": "0",
        "MCP_RESOURCE_URL": "https://api.example.com/mcp",
        "TASKCHAT_URL": "https://api.example.com",
    }
    assert set(re.findall(r"\b([A-Z_]+)=", block("export PORT"))) == set(known) - {"BETTER_AUTH_TELEMETRY"}
    with (tmp_path / "log").open("wb") as log:
        process = processes.spawn([node.program(), "server.mjs"], output=log, cwd=folder, env=os.environ | known)
    try:
        processes.wait_until_listening(process, "127.0.0.1", port)
        person = {"name": "Ada", "email": "ada@example.com", "password": secrets.token_hex(8)}
        signed_up = httpx2.post(f"{url}/api/auth/sign-up/email", json=person, timeout=SECONDS)
        session = {"Authorization": f"Bearer {signed_up.headers['set-auth-token']}"}
        assert httpx2.get(f"{url}/api/auth/token", headers=session, timeout=SECONDS).json()["token"].count(".") == 2
        assert httpx2.get(f"{url}/api/auth/jwks", timeout=SECONDS).json()["keys"]
    finally:
        processes.stop(process)


def test_make_builds_for_the_processor_of_samconfig(tmp_path: Path) -> None:
    """`make deploy` builds for the one that it deploys."""
    assert "Architecture=x86_64" in paste("make build --dry-run", tmp_path)
    assert "Architecture=arm64" in paste("make build --dry-run ARCHITECTURE=arm64", tmp_path)
    layer = subprocess.run(
        ["make", "--dry-run", "build-SharedLayer", "ARTIFACTS_DIR=none", "ARCHITECTURE=arm64"],  # noqa: S607  (as sam calls it)
        cwd=ROOT / "shared",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--python-platform aarch64-manylinux_2_28" in layer.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
class TestWorkflows:
    """The workflows run the commands of a person, with the least rights."""

    def test_each_action_is_pinned(self, path: Path) -> None:
        """A tag could move to other code."""
        uses = [step["uses"] for step in steps(path) if "uses" in step]
        assert uses
        assert all(re.fullmatch(r"[a-z-]+/[a-z-]+@[0-9a-f]{40}", each) for each in uses)

    def test_its_rights_are_the_least(self, path: Path) -> None:
        """No job may write to the repository."""
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {}
        allowed = {"contents": "read"} | ({"id-token": "write"} if path.name == "deploy.yml" else {})
        assert all(job["permissions"] == allowed for job in workflow["jobs"].values())

    def test_it_holds_no_key(self, path: Path) -> None:
        """GitHub's token for AWS is made anew for each job."""
        assert "secrets." not in path.read_text()


def test_the_schema_is_migrated_before_the_functions_are_deployed() -> None:
    """Migrations only add, so the functions that serve meanwhile run on the new schema."""
    commands = [step["run"] for step in steps(ROOT / ".github/workflows/deploy.yml") if "run" in step]
    assert (
        commands.index("make smoke ARCHITECTURE=x86_64")
        < commands.index("make migrate")
        < commands.index("make deploy")
    )
    assert commands.index("make deploy") < commands.index("make prune DELETE=1")
