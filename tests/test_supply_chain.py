"""What `make audit` and `make check` look for, they find: secrets, insecure calls, vulnerable and unpinned packages."""

import hashlib
import re
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import jwt
import pytest

from dev.supply_chain import advisories, secrets
from dev.supply_chain.advisories import LOCKS, Accepted, Finding
from tests.conftest import ROOT

TODAY = date(2026, 11, 21)
FOUND = Finding("requirements.txt", "jinja2 2.10", "PYSEC-2019-217")

# Put together here, or the audit would find them in this file.
RANDOM = hashlib.sha256(b"planted").hexdigest()
PLANTED = {
    "an AWS key": "key_id: AKIA" + RANDOM[:16].upper(),
    "a GitHub token": "ghp_" + RANDOM[:36],
    "an OpenAI key": f"sk-{RANDOM[:20]}T3BlbkFJ{RANDOM[:20]}",
    "a private key": "-----BEGIN " + "PRIVATE KEY-----",
    "a token": jwt.encode({"sub": "alice"}, RANDOM),
    "a database URL": f"postgresql://owner:npg_{RANDOM[:6]}@ep-cool.neon.tech/neondb",
    "a password by its name": "db_pass" + f'word = "{RANDOM[:9]}"',
    "something random": f"value: '{RANDOM[:32]}'",
}
"""One of each kind that somebody could commit here."""

INSECURE = {
    "a shell": "import subprocess\n\n\ndef run(name: str) -> None:\n    subprocess.run(f'ls {name}', shell=True)\n",
    "eval": "def value(text: str) -> object:\n    return eval(text)\n",
    "a query from text": "def query(name: str) -> str:\n    return f\"select * from task where title = '{name}'\"\n",
    "an unverified certificate": "import ssl\n\ncontext = ssl._create_unverified_context()\n",
    "pickle": "import pickle\n\n\ndef load(data: bytes) -> object:\n    return pickle.loads(data)\n",
    "a weak hash": "import hashlib\n\ndigest = hashlib.md5(b'x')\n",
    "a credential": "pass" + "word = 'correct horse'\n",
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_secret_is_found(kind: str) -> None:
    """Whatever file it is in, and each by itself."""
    assert secrets.find([("functions/chat/app.py", PLANTED[kind])])


def test_a_secret_that_was_removed_is_found_in_the_history(tmp_path: Path) -> None:
    """The tree is clean again; whoever clones the repository still has it."""
    file = tmp_path / "settings.py"
    for number, content in enumerate((PLANTED["an AWS key"], "nothing")):
        file.write_text(content)
        for command in (
            ["init", "-q"],
            ["add", "."],
            ["-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "-q", "-m", str(number)],
        ):
            subprocess.run(["git", *command], cwd=tmp_path, check=True)  # noqa: S603, S607
    assert not secrets.find(secrets.tree(tmp_path))
    assert list(secrets.find(secrets.history(tmp_path)).values()) == [{"settings.py"}]


def test_the_audit_of_the_tree_says_where_and_not_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A log of CI is read by more people than may know the secret."""
    from dev.supply_chain import __main__ as program

    (tmp_path / "notes.txt").write_text(PLANTED["an AWS key"])
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)  # noqa: S607
    found = program.unexpected(secrets.tree(tmp_path), known={"secret": []})
    assert found == ["notes.txt holds what looks like a secret: AKI…"]
    assert PLANTED["an AWS key"] not in str(capsys.readouterr())


@pytest.mark.parametrize("place", ["functions/chat", "shared/taskchat", "migrations"])
@pytest.mark.parametrize("kind", INSECURE)
def test_an_insecure_call_is_found(kind: str, place: str) -> None:
    """By the linter's security rules, in every directory of which something runs in production."""
    command = [sys.executable, "-m", "ruff", "check", "--select", "S", "--stdin-filename", f"{place}/planted.py", "-"]
    done = subprocess.run(command, cwd=ROOT, input=INSECURE[kind], text=True, capture_output=True, check=False)  # noqa: S603
    assert re.search(r"^S\d{3} ", done.stdout, re.MULTILINE), done.stdout


def test_no_security_rule_is_silenced_in_what_ships() -> None:
    """Neither in a line nor for a file."""
    shipped = [*ROOT.glob("functions/**/*.py"), *ROOT.glob("shared/taskchat/**/*.py"), *ROOT.glob("migrations/**/*.py")]
    silenced = [str(path) for path in shipped if re.search(r"noqa(: *S\d|\s*$)", path.read_text(), re.MULTILINE)]
    assert silenced == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_one_version_of_everything_by_hash(lock: str) -> None:
    """Nothing in it may come from elsewhere, or be another file tomorrow."""
    text = re.sub(r" *#.*", "", (ROOT / lock).read_text()).replace("\\\n", " ")
    requirements = [line for line in text.splitlines() if line.strip()]
    assert requirements
    for line in requirements:
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==[\w.!+]+ .*--hash=sha256:[0-9a-f]{64}", line), line


def test_an_advisory_fails_the_audit() -> None:
    """In pip-audit's own words for one package that has one, one that has none, and one that nobody knows."""
    packages = [
        {"name": "jinja2", "version": "2.10", "vulns": [{"id": FOUND.advisory, "fix_versions": ["2.10.1"]}]},
        {"name": "idna", "version": "3.20", "vulns": []},
        {"name": "ours", "skip_reason": "Dependency not found"},
    ]
    report = advisories._report("requirements.txt", packages)
    assert (report.known, report.unknown, report.findings) == (2, ("ours",), (FOUND,))
    assert advisories.unaccepted(report.findings, [], TODAY) == [FOUND]


def test_an_advisory_is_accepted_for_a_time() -> None:
    """To its last day and no longer, and no other with it."""
    accepted = [Accepted(FOUND.advisory, "the sandbox is not used", TODAY)]
    assert advisories.unaccepted((FOUND,), accepted, TODAY) == []
    assert advisories.unaccepted((FOUND,), accepted, TODAY + timedelta(days=1)) == [FOUND]
    assert advisories.unaccepted((FOUND,), [Accepted("another", "", TODAY)], TODAY) == [FOUND]
