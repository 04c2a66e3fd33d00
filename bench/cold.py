"""`python -m bench.cold`: measure a cold start of the built artifact with Lambda's version of Python.

Imports run in fresh processes, in alternation, and are measured in CPU time, which a busy machine disturbs least. The
result is the ratio of their medians. These processes see no package of the developer's machine.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench import parts, tasks
from bench.figures import Figure, table
from bench.parts import Parts
from bench.waterfall import Span
from dev import artifact
from dev.artifact import Function
from dev.tokens import Issuer
from testing import naive
from testing.callers import Caller, identity

IMPORTS: Final = {"naive": naive.IMPORTS, "chat": "chat.app", "mcp_tools": "mcp_tools.app"}

TURNS: Final = 40
"""Turns after the first, each of a new user. Their median is the time of a warm turn."""

_IMPORT: Final = """
import time
began = time.process_time()
import {names}
print(1000 * (time.process_time() - began), flush=True)
import os
os._exit(0)
"""

_START: Final = Path(__file__).with_name("cold_start.py")


@dataclass(frozen=True)
class Cold:
    """Measured times in milliseconds, each a median."""

    naive: float
    """CPU time to import the dependencies."""
    naive_without_bytecode: float
    chat: float
    mcp_tools: float
    first_turn: float
    """Wall time of the first request after initialisation."""
    warm_turn: float
    spans: list[Span]
    """The parts of one cold start, in sequence, from the start of the process to the first answer."""

    @property
    def import_ratio(self) -> float:
        """Return the time of our import, divided by that of the dependencies alone."""
        return self.chat / self.naive

    @property
    def import_ratio_without_bytecode(self) -> float:
        """Return the time of our import, divided by that of the dependencies without bytecode."""
        return self.chat / self.naive_without_bytecode

    @property
    def first_turn_ratio(self) -> float:
        """Return the time of the first turn, divided by that of a warm one."""
        return self.first_turn / self.warm_turn


def measure(running: Parts, python: Path, rounds: int = 9) -> Cold:
    """Start `rounds` processes of each kind on the built artifact. Raises ArtifactError."""
    functions = artifact.functions()
    imported = _imports(functions, python, rounds)
    started = [_start(functions["ChatFunction"], python, running) for _ in range(max(3, rounds // 2))]
    return Cold(
        naive=imported["naive"],
        naive_without_bytecode=imported["without bytecode"],
        chat=imported["chat"],
        mcp_tools=imported["mcp_tools"],
        first_turn=median(one["turns"][0] for one in started),
        warm_turn=median(turn for one in started for turn in one["turns"][1:]),
        spans=[*_spans([one["spans"] for one in started])],
    )


def _imports(functions: dict[str, Function], python: Path, rounds: int) -> dict[str, float]:
    """Return the CPU milliseconds of each import. A round imports each once."""
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as nothing:
        for _ in range(rounds):
            for name, names in IMPORTS.items():
                times.setdefault(name, []).append(_import(names, functions, python))
            prefix = {"PYTHONPYCACHEPREFIX": nothing}  # Python looks for bytecode here and finds none
            times.setdefault("without bytecode", []).append(_import(naive.IMPORTS, functions, python, **prefix))
    return {name: median(found) for name, found in times.items()}


def _import(names: str, functions: dict[str, Function], python: Path, **variables: str) -> float:
    environment = _environment(functions.values()) | variables
    command = [str(python), "-S", "-c", _IMPORT.format(names=names)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def _environment(functions: Any) -> dict[str, str]:
    roots = [path for function in functions for path in (function.directory, *(x / "python" for x in function.layers))]
    return {
        "PATH": os.defpath,
        "PYTHONPATH": os.pathsep.join(map(str, dict.fromkeys(roots))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "POWERTOOLS_SERVICE_NAME": "taskchat",
        "POWERTOOLS_METRICS_NAMESPACE": "taskchat",
    }


def _start(function: Function, python: Path, running: Parts) -> dict[str, Any]:
    """Run one cold start and its turns with bench/cold_start.py, and return its report."""
    issuer = Issuer.new()
    environment = _environment([function]) | running.environment
    environment |= identity(issuer) | {"AWS_LAMBDA_RUNTIME_API": "localhost"}
    requests = [Caller(f"person{number}", issuer).request({"message": tasks.ADD}) for number in range(TURNS + 1)]
    done = subprocess.run(
        [str(python), "-S", str(_START)],
        env=environment,
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        check=True,
    )
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def _spans(runs: list[dict[str, float]]) -> Iterator[Span]:
    """Yield the parts in sequence, each with its median duration."""
    begun = 0.0
    for name in runs[0]:
        lasted = median(run[name] for run in runs)
        yield Span(name, begun, begun + lasted)
        begun += lasted


def figures(cold: Cold) -> list[Figure]:
    """Return the figures and their targets."""
    return [
        Figure("import of chat, to that of its dependencies", cold.import_ratio, target=0.75),
        Figure("the same, to theirs without bytecode", cold.import_ratio_without_bytecode, target=0.3),
        Figure("import of mcp_tools, to that of the same", cold.mcp_tools / cold.naive),
        Figure("first turn, to a warm one", cold.first_turn_ratio, target=1.5),
        Figure("import of chat, CPU", cold.chat, "ms"),
        Figure("first turn", cold.first_turn, "ms"),
        Figure("from the process to the first answer", cold.spans[-1].end, "ms"),
    ]


def main() -> int:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, required=True, help="a Python 3.13 without installed packages")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with parts.running() as running:
        cold = measure(running, options.python, options.rounds)
    print(*table(figure.cells for figure in figures(cold)), sep="\n")
    for span in cold.spans:
        print(f"{span.name:<28}{span.start:8.0f} to {span.end:.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
