"""Count what a run costs, and say when its budget is spent."""

from dataclasses import dataclass

from evals.person import Tokens


@dataclass(frozen=True)
class Prices:
    """Dollars for a million tokens. None: the price is not known."""

    input: float | None = None
    output: float | None = None
    cached: float | None = None
    """By default that of other input."""

    def dollars(self, tokens: Tokens) -> float | None:
        """Return the price, or None. A token of unknown kind counts as output, which is the dearest."""
        if self.input is None or self.output is None:
            return None
        cached = self.input if self.cached is None else self.cached
        fresh = (tokens.input - tokens.cached) * self.input
        return (fresh + tokens.cached * cached + (tokens.output + tokens.other) * self.output) / 1e6


@dataclass
class Budget:
    """Limits of a whole run, and what it has spent."""

    prices: Prices
    tokens: int | None = None
    dollars: float | None = None
    spent: int = 0
    spent_dollars: float = 0.0

    def add(self, tokens: Tokens) -> None:
        """Count the tokens of an attempt."""
        self.spent += tokens.total
        self.spent_dollars += self.prices.dollars(tokens) or 0.0

    @property
    def is_spent(self) -> bool:
        """Return whether no further attempt may begin."""
        out_of_tokens = self.tokens is not None and self.spent >= self.tokens
        return out_of_tokens or (self.dollars is not None and self.spent_dollars >= self.dollars)
