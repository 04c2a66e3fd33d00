"""`make bench`: measure everything on the built artifact, print one table, and write docs/performance.md.

It reports each missed target, and fails only if it cannot measure or draw something.
"""

import argparse
import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench import (
    cold,
    distance,
    growth,
    parts,
    prompt,
    reading,
    report,
    roundtrips,
    scaling,
    streams,
    throughput,
    turn,
    waterfall,
)
from bench.figures import table
from bench.report import Circumstances, Found
from dev import artifact, smoke, state
from dev.artifact import ArtifactError
from dev.client import UnreachableError
from dev.processes import StartupError
from dev.proof import ProofError
from dev.smoke import Tools
from testing.drawing import LayoutError

DOCS: Final = state.ROOT / "docs"
DRAFT: Final = state.directory() / "bench"
"""Directory for the page of a short run."""


def main() -> int:
    """Measure and write. Return 1 if something cannot be measured or drawn, and 0 even if a target is missed."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few turns, no large tables, and a draft in .dev/bench")
    options, for_emulator = parser.parse_known_args()
    began, directory = time.perf_counter(), DRAFT if options.quick else DOCS
    try:
        _use_artifact()
        found, around = _measure(smoke.tools(for_emulator), quick=options.quick)
        command = f"make bench{' QUICK=1' if options.quick else ''}"
        _write(directory, found, report.page(found, around, command, time.perf_counter() - began))
    except (ArtifactError, LayoutError, ProofError, StartupError, UnreachableError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    return 0


def _use_artifact() -> None:
    """Make every measured process import the built artifact. Raises ArtifactError."""
    roots = [path for function in artifact.functions().values() for path in (function.directory, *function.layers)]
    places = [path / "python" if (path / "python").is_dir() else path for path in roots]
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, dict.fromkeys(places)))


def _measure(tools: Tools, *, quick: bool) -> tuple[Found, Circumstances]:
    turns, rounds = (12, 1) if quick else (120, 3)
    with parts.running() as running:
        around = Circumstances.now(running)
        with _step("cold starts"):
            started = cold.measure(running, tools.python, *((3,) if quick else ()))
        with _step("turns with histories of each length"):
            costs = turn.measure(running, turns, rounds)
        with _step("turns with the database a roundtrip away"):
            away = turn.measure(running, turns, rounds, [turn.NEW], is_away=True)
        with _step("parts of a warm turn"):
            warm = {
                "the database on this machine": waterfall.measure(running, turns),
                f"the database {distance.ROUNDTRIP * 1000:g} ms away": waterfall.measure(running, turns, is_away=True),
            }
        with _step("turns per second with concurrent clients"):
            served = throughput.measure(running, *((16, 1) if quick else ()))
        with _step("roundtrips"):
            waits = roundtrips.measure(running)
        with _step("repeated input of the model"):
            repeated = prompt.measure(running)
        with _step("a person's own data"):
            own = reading.measure(running, *((5,) if quick else ()))
        with _step("streams"):
            streamed = streams.measure(running, is_quick=quick)
    with _step("memory in the emulator"), contextlib.redirect_stdout(io.StringIO()):
        peaks = smoke.smoke(tools)
    weights = {name: sum(function.megabytes.values()) for name, function in artifact.functions().items()}
    grown, pooled = (None, None) if quick else _grow()
    return Found(
        started, peaks, weights, costs, away, warm, waits, served, repeated, own, streamed, grown, pooled
    ), around


def _grow() -> tuple[growth.Growth, scaling.Scaling]:
    with _step("tables with five million messages"):
        grown = growth.measure()
    with _step("a thousand environments at the pooler"):
        return grown, scaling.measure()


@contextlib.contextmanager
def _step(name: str) -> Iterator[None]:
    """Print the step that runs, and its duration at its end."""
    if sys.stderr.isatty():
        print(f"\r{name:60}", end="", file=sys.stderr, flush=True)
    began = time.perf_counter()
    yield
    print(f"\r{name:60}{time.perf_counter() - began:6.1f} s", file=sys.stderr, flush=True)


def _write(directory: Path, found: Found, page: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "performance.md").write_text(page)
    print(*table(figure.cells for figure in report.figures(found)), sep="\n")
    print(f"Written: {state.shown(directory / 'performance.md')}")
    report.draw(found, directory / "performance")


if __name__ == "__main__":
    sys.exit(main())
