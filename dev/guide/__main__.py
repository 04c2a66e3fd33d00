"""`make guide`: follow the guide in a copy of the checkout, and see that the engine still holds there.

The copy has a `.venv` of its own: the import roots of the checkout's name the checkout.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dev import processes, state
from dev.guide.steps import File, GuideError, read

LIMIT_SECONDS: Final = 900
"""Of one command."""
START_SECONDS: Final = 120
SERVER: Final = "make dev"
"""The command that does not end by itself: what follows runs beside it."""
IDENTITY: Final = {
    f"GIT_{role}_{name}": value
    for role in ("AUTHOR", "COMMITTER")
    for name, value in (("NAME", "A reader"), ("EMAIL", "reader@example.com"))
}
FOREIGN: Final = frozenset(
    {"CI", "MAKELEVEL", "MAKEFLAGS", "MFLAGS", "OPENAI_API_KEY", "TASKCHAT_DEV_DIR", "VIRTUAL_ENV"}
)
"""Variables that a reader's shell does not have, or that would change what the commands do."""
ENGINE: Final = (
    ".venv/bin/pytest -q -n 2 --dist loadfile --no-loadscope-reorder "
    "tests/test_crash.py tests/test_limits.py tests/test_one_key.py tests/test_conversations.py "
    "tests/test_personal_data.py tests/test_page_deployment.py "
    '-k "test_limits or test_one_key or Zombie or (any_point and pooled-responses-statement) or test_conversations '
    'or (test_personal_data and (TestExport or TestSchema or TestErasure)) or TestBundle"'
)
"""The tests of the engine that the guide itself does not run. Of the crash points those of the usual run."""


def main() -> int:
    """Follow the guide. The exit code is 1 when a step fails, or the engine does not hold after it."""
    begun = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="taskchat-guide-") as name:
            _follow(_copy(Path(name)))
    except GuideError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    print(f"The guide holds: {time.monotonic() - begun:.0f} s")
    return 0


def _copy(directory: Path) -> Path:
    """Copy what git knows of the checkout, as it is now, into a repository of its own."""
    directory.chmod(0o755)  # Postgres, which is never root, has its programs in there
    copy = directory / "taskchat"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=state.ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (state.ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(state.ROOT / name, copy / name)
    _run(copy, "git init --quiet && git add --all && git commit --quiet --message 'Begin'")
    return copy


def _follow(copy: Path) -> None:
    """Do each step, and at the first that does not end by itself the tests before it."""
    with contextlib.ExitStack() as stack:
        for step in read():
            print(f"== {step}", flush=True)
            if isinstance(step, File):
                _write(copy, step)
            elif str(step) == SERVER:
                _run(copy, ENGINE)
                _try_curl(stack.enter_context(_serving(copy)), copy)
            else:
                _run(copy, step.text)


def _write(copy: Path, file: File) -> None:
    if not (copy / file.path).parent.is_dir():
        raise GuideError(f"{file.path}: its directory is not there")
    (copy / file.path).write_text(file.text)


def _environment(copy: Path) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    return {**known, **IDENTITY, "PWD": str(copy)}


def _run(copy: Path, command: str) -> None:
    """Run a command to its end. Raises GuideError when it fails or takes too long."""
    begun = time.monotonic()
    process = subprocess.Popen(["sh", "-euc", command], cwd=copy, env=_environment(copy), start_new_session=True)
    try:
        code = process.wait(LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        raise GuideError(f"{command}: not done after {LIMIT_SECONDS} s") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code:
        raise GuideError(f"{command}: exit code {code}")
    print(f"   {time.monotonic() - begun:.1f} s", flush=True)


@contextlib.contextmanager
def _serving(copy: Path) -> Iterator[str]:
    """Run `make dev` beside the block; gives the `curl` line that it prints."""
    log = copy.parent / "dev.log"
    environment = _environment(copy) | {"PORT": str(processes.free_port("127.0.0.1"))}
    with log.open("wb") as output:
        server = processes.spawn(shlex.split(SERVER), output=output, cwd=copy, env=environment)
    try:
        yield _printed_curl(server, log)
    finally:
        processes.stop(server, signal.SIGINT, timeout=30)


def _printed_curl(server: subprocess.Popen[bytes], log: Path) -> str:
    for _ in processes.attempts(START_SECONDS):
        lines = log.read_text(errors="replace").splitlines(keepends=True)
        if found := [line for line in lines if line.startswith("curl ") and line.endswith("\n")]:
            return found[0]
        if server.poll() is not None:
            break
    raise GuideError(f"{SERVER} printed no curl line: {log.read_text(errors='replace')}")


def _try_curl(line: str, copy: Path) -> None:
    """Paste the line: a turn that adds an expense and lists it. Raises GuideError."""
    done = subprocess.run(["sh", "-euc", line], cwd=copy, capture_output=True, text=True, timeout=60, check=False)
    print(done.stdout, flush=True)
    calls = json.loads(done.stdout or "{}").get("tool_calls", ())
    if [call["outcome"] for call in calls] != ["ok", "ok"]:
        raise GuideError(f"the turn failed: {done.stdout}{done.stderr}")
    added, listed = (call["result"] for call in calls)
    if added not in next(value for value in listed.values() if isinstance(value, list)):
        raise GuideError(f"what was added is not listed: {done.stdout}")


if __name__ == "__main__":
    sys.exit(main())
