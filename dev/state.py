"""Name the directory that keeps development's data, and the file in which a running server leaves its URL."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def directory() -> Path:
    """Return `.dev` in the checkout, or the directory that TASKCHAT_DEV_DIR names (each test has its own)."""
    return Path(os.environ.get("TASKCHAT_DEV_DIR") or ROOT / ".dev").resolve()


def shown(path: Path) -> str:
    """Return the path as a developer types it in the checkout."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def server_url() -> str | None:
    """Return the URL that the last `make dev` left. That server may have been killed since."""
    with contextlib.suppress(FileNotFoundError):
        url: str = json.loads(_url_file().read_text())["url"]
        return url
    return None


@contextlib.contextmanager
def announced(url: str) -> Iterator[None]:
    """Keep the URL in a file while the block runs, so that `make chat` finds the server."""
    _url_file().write_text(json.dumps({"url": url}))
    try:
        yield
    finally:
        _url_file().unlink(missing_ok=True)


def _url_file() -> Path:
    return directory() / "server.json"
