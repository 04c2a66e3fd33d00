"""Secrets in the working tree and in every commit: what was once committed stays readable after it is removed."""

import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from detect_secrets.core.plugins import initialize
from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

LOCKED: Final = re.compile(r"--hash=sha256:[0-9a-f]{64}")
"""What a lock is made of. It looks like a key, and is no secret."""

_OTHER_INTEREST: Final = "IPPublicDetector"
"""The only detector that looks for something else."""

Line = tuple[str, str]
"""Where it stands, and what it says."""


def tree(root: Path) -> Iterator[Line]:
    """Every line of every text file that git knows, as it is now. Raises CalledProcessError outside a repository."""
    for name in _git(root, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0"):
        path = root / name
        if name and path.is_file() and b"\0" not in (content := path.read_bytes()):
            yield from ((name, line) for line in content.decode(errors="replace").splitlines())


def history(root: Path) -> Iterator[Line]:
    """Every line that some commit has added, on any branch. Raises CalledProcessError outside a repository."""
    where = ""
    for line in _git(root, "log", "--all", "--patch", "--unified=0", "--no-renames", "--format=").splitlines():
        if line.startswith("+++ b/"):
            where = line.removeprefix("+++ b/")
        elif line.startswith("+"):
            yield where, line[1:]


def find(lines: Iterable[Line]) -> dict[str, set[str]]:
    """What looks like a secret, by form, by the name it is given or by how random it is; with the files it is in."""
    classes: Iterable[type] = get_mapping_from_secret_type_to_class().values()
    plugins: list[Any] = [
        initialize.from_plugin_classname(each.__name__) for each in classes if each.__name__ != _OTHER_INTEREST
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
