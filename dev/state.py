"""Where development keeps what should survive a restart, and the note by which other commands find a running server."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def directory() -> Path:
    """`.dev` in the checkout, or the directory named by TASKCHAT_DEV_DIR (tests have one each)."""
    return Path(os.environ.get("TASKCHAT_DEV_DIR") or ROOT / ".dev").resolve()


def shown(path: Path) -> str:
    """The path as a person in the checkout would type it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def server_url() -> str | None:
    """Where the development server said it is. It may have been killed since."""
    with contextlib.suppress(FileNotFoundError):
        url: str = json.loads(_note().read_text())["url"]
        return url
    return None


@contextlib.contextmanager
def announced(url: str) -> Iterator[None]:
    """Leave the note for as long as the server runs."""
    _note().write_text(json.dumps({"url": url}))
    try:
        yield
    finally:
        _note().unlink(missing_ok=True)


def _note() -> Path:
    return directory() / "server.json"
