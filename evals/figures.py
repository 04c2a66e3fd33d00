"""Work out the figures of a run: pass^k by category, wrong calls, claims, tokens, latency, and what changed."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from evals.budget import Prices
from evals.records import Result

ALL: Final = "all"
"""The name of the row over all categories."""


@dataclass(frozen=True)
class Row:
    """The figures of a category, or of all."""

    name: str
    cases: int
    attempts: int
    pass_1: float
    pass_k: float | None
    """None if no case has k attempts."""
    wrong_calls: int
    needless_calls: int
    claims: int
    errors: int
    tokens: int
    dollars: float | None
    p50: float
    p95: float


@dataclass(frozen=True)
class Comparison:
    """The cases whose share of passes changed since another run: name, share then, share now."""

    better: list[tuple[str, float, float]]
    worse: list[tuple[str, float, float]]
    in_common: int


def by_case(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Return the results of each case."""
    found: defaultdict[str, list[Result]] = defaultdict(list)
    for result in results:
        found[result.case].append(result)
    return dict(found)


def pass_hat(results: Iterable[Result], k: int) -> float | None:
    """Return the probability that k attempts at a case all pass, averaged over the cases with k attempts or more.

    Of n attempts of which c passed, that is the share of the choices of k attempts that hold only passes. Without bias.
    """
    shares = [
        math.comb(sum(result.passed for result in of_case), k) / math.comb(len(of_case), k)
        for of_case in by_case(results).values()
        if len(of_case) >= k
    ]
    return statistics.fmean(shares) if shares else None


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that this share of the values does not exceed. 0 if there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def rows(results: Sequence[Result], k: int, prices: Prices) -> list[Row]:
    """Return a row for each category, and one for all."""
    categories = sorted({result.category for result in results})
    chosen = [(name, [result for result in results if result.category == name]) for name in categories]
    return [_row(name, of_name, k, prices) for name, of_name in [*chosen, (ALL, list(results))]]


def _row(name: str, results: Sequence[Result], k: int, prices: Prices) -> Row:
    seconds = [turn.seconds for result in results for turn in result.turns]
    costs = [prices.dollars(result.tokens) for result in results]
    return Row(
        name=name,
        cases=len(by_case(results)),
        attempts=len(results),
        pass_1=pass_hat(results, 1) or 0.0,
        pass_k=pass_hat(results, k),
        wrong_calls=sum(result.wrong_calls for result in results),
        needless_calls=sum(result.needless_calls for result in results),
        claims=sum(result.claimed for result in results),
        errors=sum("answered" in result.problems for result in results),
        tokens=sum(result.tokens.total for result in results),
        dollars=None if None in costs else math.fsum(cost for cost in costs if cost),
        p50=percentile(seconds, 0.5),
        p95=percentile(seconds, 0.95),
    )


def compare(then: Iterable[Result], now: Iterable[Result]) -> Comparison:
    """Return the cases that pass more often or less often than before."""
    before, after = _shares(then), _shares(now)
    common = sorted(before.keys() & after.keys())
    changes = [(name, before[name], after[name]) for name in common]
    better = [change for change in changes if change[2] > change[1]]
    return Comparison(better, [change for change in changes if change[2] < change[1]], len(common))


def _shares(results: Iterable[Result]) -> dict[str, float]:
    return {name: statistics.fmean(each.passed for each in of_case) for name, of_case in by_case(results).items()}


def shortfalls(found: Iterable[Row], minimum: dict[str, float]) -> list[str]:
    """Return a sentence for each category whose pass^1 is below its minimum, or that has none."""
    return [
        f"{row.name}: pass^1 is {row.pass_1:.3f}, and the minimum {minimum.get(row.name, 'is missing')}"
        for row in found
        if row.pass_1 < minimum.get(row.name, math.inf)
    ]
