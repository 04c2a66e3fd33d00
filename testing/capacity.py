"""Calculate the tables of docs/scaling.md from stated numbers: the needs of each load, quotas, and the cost of turns.

`python -m testing.capacity` prints the tables, and with `--write` puts them into the page. Change the numbers here to
try your own.
"""

import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LOADS: Final = (10, 1_000, 100_000)
"""Turns per minute."""


@dataclass(frozen=True)
class Turn:
    """The load of one turn with one tool call."""

    seconds: float = 5.0
    """The average duration, nearly all of it the model's time. A slow turn takes 12."""
    transactions: int = 3
    """Begin, tool call, finish."""
    holding_ms: float = 12.0
    """Time for which the transactions hold a server connection: 8 ms, and one network roundtrip in each."""
    database_cpu_ms: float = 3.0
    """CPU time of Postgres."""
    database_bytes: int = 1_300
    """Two messages and a tool call, with their share of the indexes."""
    log_bytes: int = 6_000
    """The log lines, the metrics, and the platform's lines."""
    input_tokens: int = 3_000
    """Input of two model calls: instructions, tools and a short history, twice."""
    cached_tokens: int = 1_500
    """Input that the provider has cached. Providers cache nothing shorter than about a thousand tokens."""
    output_tokens: int = 300
    """A tool call, an answer, and a little reasoning."""


@dataclass(frozen=True)
class Prices:
    """Prices in US dollars, in us-east-1, without free tiers or discounts."""

    gb_second: float = 0.0000166667
    million_invocations: float = 0.20
    million_requests: float = 1.00
    log_gb: float = 0.50
    compute_hour: float = 0.106
    """One Neon compute unit (CU) in the Launch plan."""
    storage_gb_month: float = 0.35
    million_input_tokens: float = 0.125
    million_cached_tokens: float = 0.01
    million_output_tokens: float = 0.50


MEMORY_GB: Final = 1.0
"""The template's MemorySize. Lambda bills all of it while a function waits for the model."""

UTILISATION: Final = 0.3
"""Average share of the paid database CPU that is in use over a day. The rest is for peaks."""

CONNECTIONS_OF_CU: Final = {0.25: 104, 1: 419, 2: 839, 4: 1_678, 8: 3_357, 9: 4_000}
"""max_connections for each of Neon's compute sizes. Larger sizes have as many as the largest here."""

POOL_SHARE: Final = 0.9
"""Share of max_connections that the pool of one role and database may use."""

CLIENT_CONNECTIONS: Final = 10_000
"""Client connections that Neon's pooler accepts for one compute."""

ENVIRONMENTS: Final = 1_000
"""Environments that an account may run at once in one region, for all functions, without a quota increase."""

ENVIRONMENTS_PER_SECOND: Final = 100
"""Environments that Lambda adds to one function: a thousand in ten seconds."""

LARGE: Final = 10_000
"""Turns per second of the table of quotas."""

GATEWAY_REQUESTS: Final = 10_000
"""Requests per second of all APIs of an account in one region."""

SECRET_READS: Final = 10_000
"""Reads per second of Secrets Manager in one account and region."""

LOG_REQUESTS: Final = 5_000
"""PutLogEvents per second of an account in one region. Lambda sends one for each invocation at most."""

STACK_ENVIRONMENTS: Final = 4_900
"""Environments of one function of one stack: both functions' fit into CLIENT_CONNECTIONS."""

THROTTLE: Final = 20
"""The template's ThrottlingRate: requests per second."""

TOKENS_PER_MINUTE: Final = 2_000_000
"""Limit of the vendor's second tier for a small model. The first tier has 500,000, the last 180 million."""


def per_second(per_minute: float) -> float:
    """Convert turns per minute to turns per second."""
    return per_minute / 60


def busy(rate: float, seconds: float) -> float:
    """Return the average number in service when `rate` arrive per second, each for `seconds` (Little's law)."""
    return rate * seconds


def peak(average: float) -> int:
    """Return a number that is rarely exceeded when users arrive independently: three standard deviations more."""
    return math.ceil(average + 3 * math.sqrt(average))


def pool(max_connections: int) -> int:
    """Return the pooler's server connections for one role and database."""
    return int(POOL_SHARE * max_connections)


def throughput(clients: int, thinking: float, holding: float, servers: int) -> float:
    """Return turns per second of `clients` that each think, then hold a server. The servers bound it."""
    return min(clients / (thinking + holding), servers / holding)


def waiting(clients: int, thinking: float, holding: float, servers: int) -> float:
    """Return the average number of clients that wait for a server."""
    return max(0.0, clients - throughput(clients, thinking, holding, servers) * (thinking + holding))


def load_table(turn: Turn) -> Iterator[str]:
    """Yield the needs of each load beside the default limit. A need above the limit is bold."""
    yield "| Turns per minute | " + " | ".join(f"{load:,}" for load in LOADS) + " | default limit |"
    yield "|---|" + "---:|" * len(LOADS) + "---|"
    for name, need, limit, unit in _NEEDS:
        cells = [_cell(need(per_second(load), turn), limit) for load in LOADS]
        yield f"| {name} | {' | '.join(cells)} | {f'{limit:,} {unit}'.strip() if limit else unit} |"


Need = Callable[[float, Turn], float]
_NEEDS: Final[tuple[tuple[str, Need, float, str], ...]] = (
    ("requests per second", lambda rate, _: rate, THROTTLE, "(`ThrottlingRate`)"),
    ("environments busy, on average", lambda rate, turn: busy(rate, turn.seconds), ENVIRONMENTS, "in an account"),
    ("environments at a peak", lambda rate, turn: peak(busy(rate, turn.seconds)), ENVIRONMENTS, "in an account"),
    (
        "client connections at the pooler",
        lambda rate, turn: peak(busy(rate, turn.seconds)),
        CLIENT_CONNECTIONS,
        "for a compute",
    ),
    (
        "server connections busy, on average",
        lambda rate, turn: busy(rate, turn.holding_ms / 1000),
        pool(CONNECTIONS_OF_CU[0.25]),
        "with 0.25 CU",
    ),
    (
        "server connections at a peak",
        lambda rate, turn: peak(busy(rate, turn.holding_ms / 1000)),
        pool(CONNECTIONS_OF_CU[0.25]),
        "with 0.25 CU",
    ),
    ("CPUs of Postgres busy", lambda rate, turn: busy(rate, turn.database_cpu_ms / 1000), 0, "one for each CU"),
    (
        "model tokens per minute",
        lambda rate, turn: 60 * rate * (turn.input_tokens + turn.output_tokens),
        TOKENS_PER_MINUTE,
        "in the second tier",
    ),
    (
        "dollars an hour, in total",
        lambda rate, turn: 3600 * rate / 1e6 * sum(dollars for _, dollars, _ in _costs(turn, Prices())),
        0,
        "see below",
    ),
    ("new rows, GB a day", lambda rate, turn: 86_400 * rate * turn.database_bytes / 1e9, 0, "your retention"),
    ("logs, GB a day", lambda rate, turn: 86_400 * rate * turn.log_bytes / 1e9, 0, "`LogRetentionDays`"),
)


def _cell(value: float, limit: float) -> str:
    text = f"{value:,.0f}" if value >= 9.95 or value == int(value) else f"{value:.2g}"
    return f"**{text}**" if limit and value > limit else text


def stacks(turn: Turn) -> int:
    """Return the stacks, each with a database, that LARGE needs."""
    return math.ceil(peak(busy(LARGE, turn.seconds)) / STACK_ENVIRONMENTS)


def quota_table(turn: Turn) -> Iterator[str]:
    """Yield what LARGE needs of each quota, beside the default, and the share of one stack."""
    number = stacks(turn)
    yield f"| At {LARGE:,} turns a second | in total | default | in each of {number} stacks |"
    yield "|---|---:|---:|---:|"
    for name, need, default in _quotas(turn):
        cells = [f"{need:,}", f"{default:,}" if default else "", f"{math.ceil(need / number):,}"]
        yield f"| {name} | {' | '.join(cells)} |"


def _quotas(turn: Turn) -> Iterator[tuple[str, int, int]]:
    """Yield name, need and default. A rate has its peak, because a quota counts each second."""
    environments = peak(busy(LARGE, turn.seconds))
    yield "API Gateway, requests per second", peak(LARGE), GATEWAY_REQUESTS
    yield "Lambda, environments at once", environments, ENVIRONMENTS
    yield "Lambda, seconds to grow from zero", math.ceil(environments / ENVIRONMENTS_PER_SECOND), 0
    yield "pooler, clients", environments, CLIENT_CONNECTIONS
    yield "pooler, clients during a deployment", 2 * environments, CLIENT_CONNECTIONS
    yield "Secrets Manager, reads per second", ENVIRONMENTS_PER_SECOND * stacks(turn), SECRET_READS
    yield "CloudWatch Logs, requests per second", peak(LARGE), LOG_REQUESTS
    yield "CloudWatch Logs, MB per second", math.ceil(LARGE * turn.log_bytes / 1e6), 0
    yield "Postgres, server connections", peak(busy(LARGE, turn.holding_ms / 1000)), pool(CONNECTIONS_OF_CU[0.25])
    yield "Postgres, CPUs busy", math.ceil(busy(LARGE, turn.database_cpu_ms / 1000)), 0
    yield "Postgres, new GB a day", math.ceil(86_400 * LARGE * turn.database_bytes / 1e9), 0
    yield "model, million tokens a minute", round(60 * LARGE * (turn.input_tokens + turn.output_tokens) / 1e6), 180


def cost_table(turn: Turn, prices: Prices) -> Iterator[str]:
    """Yield the cost of a million turns, part by part."""
    yield "| A million turns | dollars | basis |"
    yield "|---|---:|---|"
    costs = list(_costs(turn, prices))
    for name, dollars, reason in [*costs, ("**total**", sum(dollars for _, dollars, _ in costs), "")]:
        yield f"| {name} | {dollars:,.2f} | {reason} |"


def _costs(turn: Turn, prices: Prices) -> Iterator[tuple[str, float, str]]:
    fresh = turn.input_tokens - turn.cached_tokens
    yield "model, input", fresh * prices.million_input_tokens, f"{fresh:,} tokens that are not cached"
    yield "model, cached input", turn.cached_tokens * prices.million_cached_tokens, f"{turn.cached_tokens:,} tokens"
    yield "model, output", turn.output_tokens * prices.million_output_tokens, f"{turn.output_tokens:,} tokens"
    billed = 1e6 * turn.seconds * MEMORY_GB
    yield "Lambda, duration", billed * prices.gb_second, f"{turn.seconds:g} s at {MEMORY_GB:g} GB, waiting or not"
    yield "Lambda, invocations", prices.million_invocations, "one each"
    yield "API Gateway", prices.million_requests, "one request each"
    yield "CloudWatch Logs", turn.log_bytes / 1e3 * prices.log_gb, f"{turn.log_bytes:,} bytes each"
    hours = 1e6 * turn.database_cpu_ms / 1000 / 3600 / UTILISATION
    yield "Neon, compute", hours * prices.compute_hour, f"{turn.database_cpu_ms:g} ms of CPU at {UTILISATION:.0%} use"
    yield (
        "Neon, storage for a year",
        turn.database_bytes / 1e3 * 12 * prices.storage_gb_month,
        (f"{turn.database_bytes:,} bytes each"),
    )


def tables() -> dict[str, str]:
    """Return the tables of docs/scaling.md, word for word."""
    made = {"load": load_table(Turn()), "quotas": quota_table(Turn()), "cost": cost_table(Turn(), Prices())}
    return {name: "\n".join(lines) for name, lines in made.items()}


def write(page: Path) -> None:
    """Put the tables into the page, in place of those whose header begins with the same two cells."""
    text = page.read_text()
    for table in tables().values():
        first = re.escape("|".join(table.split("|")[:3]))
        text = re.sub(rf"^{first}.*?(?=\n\n)", lambda _, new=table: new, text, flags=re.DOTALL | re.MULTILINE)  # type: ignore[misc]
    page.write_text(text)


def main() -> None:
    """Print the tables, or write them."""
    if "--write" in sys.argv:
        write(Path(__file__).parents[1] / "docs/scaling.md")
    else:
        sys.stdout.write("\n\n".join(tables().values()) + "\n")


if __name__ == "__main__":
    main()
