"""Write docs/performance.md: the measured figures beside their targets, in text, tables and pictures."""

import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Final

import psycopg

from bench import pictures, reading, streams, tasks, turn
from bench.cold import Cold
from bench.figures import Figure, table
from bench.growth import Growth
from bench.parts import Parts
from bench.prompt import Prompt
from bench.reading import Reading
from bench.roundtrips import Roundtrips
from bench.scaling import THINKING, Scaling
from bench.streams import Streams
from bench.throughput import PROCESSES, server
from bench.turn import HISTORIES, SUBJECTS, Costs
from bench.waterfall import Span
from dev.artifact import LIMIT_MB
from dev.proof import CHAT, MCP_TOOLS
from testing import naive

PAGE: Final = Path(__file__).with_name("page.md")
LIBRARIES: Final = ("openai-agents", "openai", "fastmcp", "fastapi", "mangum", "pydantic", "sqlalchemy", "pg8000")

BEYOND_THE_FLOOR: Final = (
    "The floor has most of it too: the SDK, its HTTP client, FastAPI. The difference is mainly SQLAlchemy and pg8000,"
    " with 22 statements in place of 3, and the audited tool call."
)
PER_MESSAGE: Final = (
    "As for a new conversation. The turn also reads each message, and writes it as JSON for each of two model calls."
)
AWAY: Final = (
    "Five roundtrips take 12 ms. The rest is the CPU above, and waits for the pooler, Postgres and the model, which"
    " share two cores with everything else."
)
ONE_BY_ONE: Final = (
    "A process does nothing else while it waits for the database"
    " ([decision 3](decisions/0003-synchronous-database-inside-the-loop.md)), so the CPU and the six waits of each turn"
    " add up. The clients, the pooler, Postgres and the model share the other core."
)


@dataclass(frozen=True)
class Circumstances:
    """The date, the machine and the versions of a measurement."""

    date: str
    machine: str
    load: str
    versions: str

    @classmethod
    def now(cls, running: Parts) -> "Circumstances":
        """Return the circumstances of this moment."""
        with psycopg.connect(running.environment["SUPERUSER_URL"]) as database:
            postgres = f"Postgres {database.info.server_version // 10_000}.{database.info.server_version % 10_000}"
        [pooler] = running.pooler.show("version")
        parts = [_python(), postgres, str(pooler["version"])]
        return cls(
            f"{datetime.now(UTC):%Y-%m-%d}",
            _machine(),
            " ".join(f"{load:.1f}" for load in os.getloadavg()),
            ", ".join(parts + [f"{library} {version(library)}" for library in LIBRARIES]),
        )


def _python() -> str:
    """Return Python's version and its kind of build. Lambda's has profile-guided optimisation, which is faster."""
    is_optimised = "--enable-optimizations" in str(sysconfig.get_config_var("CONFIG_ARGS"))
    build = "with" if is_optimised else "without"
    return f"Python {platform.python_version()} (built {build} profile-guided optimisation, which Lambda's has)"


def _machine() -> str:
    """Return the processor, its cores and the memory (Linux)."""
    processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {processor.split(':')[1].strip()} with {gigabytes:.0f} GB, {platform.system()}"


@dataclass(frozen=True)
class Found:
    """All measured figures."""

    cold: Cold
    peaks: dict[str, float]
    """Megabytes of memory in the emulator, by function."""
    weights: dict[str, float]
    """Megabytes unzipped with the layer, by function."""
    costs: Costs
    away: Costs
    warm: dict[str, list[Span]]
    roundtrips: Roundtrips
    throughput: dict[str, dict[int, float]]
    prompt: Prompt
    reading: Reading
    streams: Streams
    growth: Growth | None
    """None in a short run, as `scaling`."""
    scaling: Scaling | None


def figures(found: Found) -> Iterator[Figure]:
    """Yield every figure, with its target if it has one."""
    yield from _cold(found)
    yield from _costs(found)
    yield from _roundtrips(found.roundtrips)
    yield from _reads(found.reading)
    yield from streams.figures(found.streams)
    yield Figure("repeated input tokens", 100 * found.prompt.cached, "%", 90, is_least=True)
    yield Figure("tokens of instructions and tools", found.prompt.fixed_tokens, "", 1_049)
    if found.growth:
        yield _none("plans without their index, at either size", found.growth.faults)
        yield _none("statements slower with 5 million messages", found.growth.slower)
        yield _none(f"pages of 10,000 {tasks.THINGS} slower than the first", found.growth.uneven)


def _none(name: str, unwanted: list[str]) -> Figure:
    return Figure(name, len(unwanted), "", 0, why=f"{', '.join(unwanted)}.")


def _cold(found: Found) -> Iterator[Figure]:
    yield Figure("import, to that of the dependencies", found.cold.import_ratio, "", 0.75)
    yield Figure("import, to that without bytecode", found.cold.import_ratio_without_bytecode, "", 0.3)
    yield Figure("first turn after init, to a warm one", found.cold.first_turn_ratio, "", 1.5)
    for name in (CHAT, MCP_TOOLS):
        yield Figure(f"peak memory, {name}", found.peaks[name], "MB", 180)
        yield Figure(f"unzipped with the layer, {name}", found.weights[name], "MB", 200)


def _costs(found: Found) -> Iterator[Figure]:
    ours, floor = ({h: found.costs[h, name] for h in HISTORIES if name in h.subjects} for name in SUBJECTS)
    for history, target, why in ((turn.NEW, 9, BEYOND_THE_FLOOR), (turn.LONG, 12, PER_MESSAGE)):
        yield Figure(f"CPU of a turn, {history.name}", ours[history].cpu, "ms", target, floor[history].cpu, why=why)
    yield Figure(f"CPU of a turn, {turn.WITH_CALLS.name}", ours[turn.WITH_CALLS].cpu, "ms")
    growth = [of[turn.ENDLESS].cpu / of[turn.LONG].cpu for of in (ours, floor)]
    yield Figure("CPU with 10,000 messages, to that with 100", growth[0], "", 1.2, growth[1])
    yield Figure("wall time of a turn", ours[turn.NEW].wall, "ms", None, floor[turn.NEW].wall)
    away = [found.away[turn.NEW, name].wall for name in SUBJECTS]
    yield Figure("wall time, the database a roundtrip away", away[0], "ms", 30, away[1], why=AWAY)
    for processes, in_words in PROCESSES.items():
        eight = [found.throughput[server(name, processes)][8] for name in SUBJECTS]
        name = f"turns per second for 8 clients, {in_words}"
        yield Figure(name, eight[0], "", 110, eight[1], is_least=True, why=ONE_BY_ONE)


def _roundtrips(found: Roundtrips) -> Iterator[Figure]:
    ours, floor = found.turns["ours"], found.turns["floor"]
    yield Figure("roundtrips of a turn", ours.roundtrips, "", 6, floor.roundtrips)
    yield Figure("statements of a turn", ours.statements, "", None, floor.statements)
    yield Figure("roundtrips to connect, beyond TCP", found.connecting, "", 6)
    yield Figure("roundtrips to take a live connection", found.checking_out, "", 0)


def _reads(found: Reading) -> Iterator[Figure]:
    most = max(read.roundtrips for read in found.reads.values())
    yield Figure("roundtrips to read one's own data, at most", most, "", 3)
    yield Figure(f"peak memory after an export of {found.export.rows:,} rows", found.export.peak_mb, "MB", 256)


def missed(all_figures: list[Figure]) -> Iterator[str]:
    """Yield a line for each missed target: by how much, and why."""
    for figure in all_figures:
        if figure.holds is False:
            yield f"- **{figure.name}**: {figure.verdict.removeprefix('no, ')}. {figure.why}".strip()


def page(found: Found, around: Circumstances, command: str, seconds: float) -> str:
    """Return the whole page, as Markdown."""
    listed = list(figures(found))
    return Template(PAGE.read_text()).substitute(
        vars(around),
        command=command,
        minutes=round(seconds / 60),
        figures="\n".join(table(figure.cells for figure in listed)),
        missed="\n".join(["Missed targets:", "", *missed(listed)] if any(missed(listed)) else ["Every target holds."]),
        cuts=found.prompt.cuts,
        naive=naive.IMPORTS,
        things=tasks.THINGS,
        reading="\n".join(reading.report(found.reading)),
        streams="\n".join(streams.report(found.streams)),
        at_once=streams.STREAMS,
        most_megabytes=LIMIT_MB,
        growth=_growth(found.growth) if found.growth else "(Not measured in a short run.)",
        scaling=_scaling(found.scaling) if found.scaling else "(Not measured in a short run.)",
    )


def _growth(growth: Growth) -> str:
    small, large = growth.small, growth.large
    counts = [(name, f"{rows:,}", f"{large.rows[name]:,}") for name, rows in small.rows.items()]
    costs = [(name, cost, large.statements[name]) for name, cost in small.statements.items()]
    costs += [(f"page of {tasks.THINGS}: {name}", cost, large.lists[name]) for name, cost in small.lists.items()]
    rows = [
        (name, *(f"{of.milliseconds:.3f}" for of in pair), *(f"{of.pages:.0f}" for of in pair)) for name, *pair in costs
    ]
    return "\n".join(
        [
            *table(counts, ("rows", "few", "many")),
            "",
            *table(rows, ("statement", "ms, few", "ms, many", "pages, few", "pages, many")),
        ]
    )


def _scaling(scaling: Scaling) -> str:
    rows = [
        (f"{name}: {what.replace('_', ' ')}", f"{calculated:.1f}", f"{getattr(trial.measured, what):.1f}")
        for name, trial in (("spare connections", scaling.roomy), ("pool used up", scaling.exhausted))
        for what, calculated in vars(trial.calculated).items()
    ]
    listed = "\n".join(table(rows, ("", "calculated", "measured")))
    return (
        f"{scaling.clients:,} environments with one connection each share {scaling.servers} server connections, with"
        f" {THINKING:g} s of model time in a turn. The table compares the calculation of [scaling](scaling.md) with the"
        " pooler's own counters:"
        f"\n\n{listed}"
    )


def draw(found: Found, directory: Path) -> None:
    """Draw the pictures. Raises LayoutError."""
    pictures.waterfall(directory / "cold.svg", {"from the start of the process": found.cold.spans})
    pictures.waterfall(directory / "warm.svg", found.warm)
    costs = {
        f"{name}": {h.messages: found.costs[h, name].cpu for h in HISTORIES if not h.has_calls} for name in SUBJECTS
    }
    pictures.lines(
        directory / "history.svg", costs, ("messages in the conversation", "CPU of a turn, ms"), [(0, 9), (100, 12)]
    )
    pictures.lines(
        directory / "throughput.svg", found.throughput, ("concurrent clients", "turns per second"), [(8, 110)]
    )
