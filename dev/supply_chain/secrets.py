"""Find secrets in the working tree and in every commit, where a line stays readable after its removal."""

import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from detect_secrets.core.plugins import initialize
from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

LOCKED: Final = re.compile(r'--hash=sha256:[0-9a-f]{64}|"integrity": "sha512-[A-Za-z0-9+/]{86}=="')
"""A hash in a lock. It looks like a key, and is no secret."""

_NOT_SECRETS: Final = "IPPublicDetector"
"""The only detector that does not look for secrets."""

Line = tuple[str, str]
"""A file's name, and one line of its text."""


def tree(root: Path) -> Iterator[Line]:
    """Yield every line of the text files that git knows, as they are now. Raises CalledProcessError outside git."""
    for name in _git(root, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0"):
        path = root / name
        if name and path.is_file() and b"\0" not in (content := path.read_bytes()):
            yield from ((name, line) for line in content.decode(errors="replace").splitlines())


def history(root: Path) -> Iterator[Line]:
    """Yield every line that a commit on any branch has added. Raises CalledProcessError outside git."""
    where = ""
    for line in _git(root, "log", "--all", "--patch", "--unified=0", "--no-renames", "--format=").splitlines():
        if line.startswith("+++ b/"):
            where = line.removeprefix("+++ b/")
        elif line.startswith("+"):
            yield where, line[1:]


def find(lines: Iterable[Line]) -> dict[str, set[str]]:
    """Return the files of each text that looks like a secret by its form, its name or its randomness."""
    classes: Iterable[type] = get_mapping_from_secret_type_to_class().values()
    plugins: list[Any] = [
        initialize.from_plugin_classname(each.__name__) for each in classes if each.__name__ != _NOT_SECRETS
    ]
    found = defaultdict(set)
    for name, line in set(lines):
        for plugin in plugins:
            for secret in plugin.analyze_line(filename=name, line=LOCKED.sub("", line), line_number=0):
                found[str(secret.secret_value)].add(name)
    return found


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-c", "core.quotePath=off", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, check=True)
    return done.stdout.decode(errors="replace")
