"""docs/scaling.md has the figures that the code computes, and its instructions to an operator work."""

import itertools
import random
import re
from math import isclose
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from taskchat.conversations.history import MAX_HISTORY_TURNS
from taskchat.settings import Settings
from testing import capacity, stacks
from testing.capacity import Prices, Turn
from tests.conftest import ROOT, Person
from tests.domain import example

PAGE = (ROOT / "docs/scaling.md").read_text()
Rows = psycopg.Connection[dict[str, Any]]


@pytest.mark.parametrize("name", capacity.tables())
def test_the_tables_are_the_computed_ones(name: str) -> None:
    """`python -m testing.capacity` prints them."""
    assert capacity.tables()[name] in PAGE


def test_the_stated_assumptions_are_the_codes() -> None:
    """They have the order of the page's first table."""
    turn = Turn()
    (table,) = re.findall(r"\| Assumed of .*?\n\n", PAGE, re.DOTALL)
    stated = [
        float(n.replace(",", ""))
        for row in table.splitlines()[2:-1]
        for n in re.findall(r"[\d,.]*\d", row.split("|")[2])
    ]
    assert stated == [
        turn.seconds,
        turn.transactions,
        turn.holding_ms,
        turn.database_cpu_ms,
        turn.database_bytes,
        turn.log_bytes,
        turn.input_tokens,
        turn.cached_tokens,
        turn.output_tokens,
    ]


def test_the_formulas_have_the_tables_prices() -> None:
    """A reader who puts in other numbers starts from the same ones."""
    (formulas,) = re.findall(r"    Lambda .*?\n\n", PAGE, re.DOTALL)
    prices = Prices()
    per_token = (prices.million_input_tokens, prices.million_cached_tokens, prices.million_output_tokens)
    for price in (prices.gb_second, prices.million_invocations / 1e6, prices.compute_hour, prices.log_gb, *per_token):
        assert any(isclose(float(number), price) for number in re.findall(r"\d+\.\d+", formulas)), price


def test_the_stated_defaults_are_the_products() -> None:
    """These are the throttle, the memory, a user's limits, and the lengths that bound a turn's reads."""

    class Loader(yaml.SafeLoader):
        """Read the template and ignore its intrinsic functions."""

    Loader.add_multi_constructor("!", lambda *_: None)
    parameters = yaml.load((ROOT / "template.yaml").read_text(), Loader)["Parameters"]  # noqa: S506 - a SafeLoader
    assert parameters["ThrottlingRate"]["Default"] == capacity.THROTTLE
    assert parameters["MemorySize"]["Default"] == capacity.MEMORY_GB * 1024
    settings = Settings(DATABASE_URL="postgresql://a@b/c")
    allowed = (settings.turn_burst, settings.turns_per_minute, settings.daily_model_tokens)
    assert allowed == (20, 20, 1_000_000)
    assert f"{allowed[0]} turns at once, {allowed[1]} a minute after that, and a million model\ntokens a day" in PAGE
    assert MAX_HISTORY_TURNS == 50


def test_the_figures_in_the_text_follow_from_the_tables() -> None:
    """The text's ceiling, quiet database, and pooler of both functions are right."""
    dollars = sum(dollars for _, dollars, _ in capacity._costs(Turn(), Prices()))
    assert 30 < 3600 * capacity.THROTTLE / 1e6 * dollars < 34  # about 32 dollars an hour
    quiet = 0.25 * 730 * Prices().compute_hour
    assert round(quiet) == 19
    assert 1_500 / 60 * Turn().database_cpu_ms / 1000 / capacity.UTILISATION <= 0.25 + 1e-9
    reserved = int(re.findall(r"`ReservedConcurrency=(\d+)`", PAGE)[0])
    assert 2 * reserved <= capacity.CLIENT_CONNECTIONS
    assert 55_000 < 60 * reserved / Turn().seconds < 60_000


@pytest.mark.parametrize("holding", [0.005, 0.05, 0.5])
def test_each_client_thinks_is_served_or_waits(holding: float) -> None:
    """No more servers are busy than there are."""
    rate = capacity.throughput(1_000, 5.0, holding, 20)
    waiting = capacity.waiting(1_000, 5.0, holding, 20)
    assert isclose(rate * (5.0 + holding) + waiting, 1_000)
    assert capacity.busy(rate, holding) <= 20 + 1e-9


@pytest.fixture
def database_url(server: Postgres, pooler: PgBouncer) -> str:
    """Give the pooler's URL, because the pooler counts transactions."""
    return pooler.url(server.app_url)


def test_a_turn_with_one_tool_call_is_three_transactions(alice: Person, pooler: PgBouncer) -> None:
    """The pooler counts them on an open connection."""
    alice.say(example.add("buy milk"))

    def transactions() -> int:
        return sum(int(row["total_xact_count"]) for row in pooler.show("stats") if row["database"] == "taskchat")

    before = transactions()
    assert alice.say(example.add("buy bread")).json["tool_calls"][0]["outcome"] == "ok"
    assert transactions() - before == Turn().transactions


def test_every_statement_in_a_document_is_tested() -> None:
    """The test file of each of these pages runs its statements."""
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    with_statements = {path.name for path in documents if "```sql" in path.read_text()}
    assert with_statements == {"limits.md", "neon.md", "rotation.md", "runbook.md"}


def test_the_tables_are_written_into_the_page(tmp_path: Path) -> None:
    """After a change of a number, `python -m testing.capacity --write` brings the page up to date."""
    page = tmp_path / "scaling.md"
    page.write_text(PAGE.replace("4,607", "7").replace("8,333 |", "7 |").replace("187.50", "7"))
    capacity.write(page)
    written = page.read_text()
    assert all(table in written for table in capacity.tables().values())
    assert len(written.splitlines()) == len(PAGE.splitlines())


class TestStacks:
    """The directory of people to stacks, simulated."""

    def test_the_table_of_stacks_is_the_simulated_one(self) -> None:
        """`python -m testing.stacks` prints it."""
        assert stacks.table() in PAGE

    def test_the_counted_environments_are_those_of_the_page(self) -> None:
        """The most that exist at once is near the calculated peak."""
        busy, exist = stacks.environments(1_000 / 60, 5.0)
        assert f"{busy:.0f} busy environments on average and {exist}\n  that exist" in PAGE
        assert abs(exist - capacity.peak(capacity.busy(1_000 / 60, 5.0))) <= 6

    @pytest.mark.parametrize("last_step", range(5))
    @pytest.mark.parametrize("seed", range(20))
    def test_a_move_that_ends_after_any_step_serves_nobody_twice(self, last_step: int, seed: int) -> None:
        """Turns come between the steps, through routers that remember old stacks. None is lost or taken twice."""
        draw = random.Random(seed)  # noqa: S311  (a simulation)
        directory = stacks.Directory([stacks.Stack() for _ in range(4)])
        directory.add("ann")
        source = directory.home["ann"]
        routers, taken = [stacks.Router(directory) for _ in range(3)], 0

        def send() -> None:
            nonlocal taken
            for _ in range(draw.randrange(4)):
                taken += draw.choice(routers).send("ann")

        send()
        for _step in itertools.islice(directory.move("ann", (source + 1) % 4), last_step):
            send()
        assert sum("ann" in stack.served for stack in directory.stacks) <= 1
        assert directory.stacks[directory.home["ann"]].effects["ann"] == taken

    def test_a_finished_move_is_found_by_every_router(self) -> None:
        """A router that remembers the old stack is refused there, and reads the directory again."""
        directory = stacks.Directory([stacks.Stack() for _ in range(4)])
        directory.add("ann")
        router = stacks.Router(directory)
        assert router.send("ann")
        target = (directory.home["ann"] + 1) % 4
        assert len(list(directory.move("ann", target))) == 4
        assert router.send("ann")
        assert [stack.effects["ann"] for stack in directory.stacks].count(0) == 3
        assert directory.stacks[target].effects["ann"] == 2
