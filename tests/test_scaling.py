"""What docs/scaling.md reckons is what the code reckons, and what it tells an operator to do does it."""

import re
from math import isclose
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import yaml

from dev.pgbouncer import PgBouncer
from dev.postgres import Postgres
from taskchat.conversations.history import MAX_HISTORY_TURNS
from taskchat.settings import Settings
from taskchat.tasks.queries import PAGE_SIZE
from testing import capacity
from testing.capacity import Prices, Turn
from tests.conftest import ROOT, Person

PAGE = (ROOT / "docs/scaling.md").read_text()
Rows = psycopg.Connection[dict[str, Any]]


@pytest.mark.parametrize("name", capacity.tables())
def test_the_tables_are_as_they_are_reckoned(name: str) -> None:
    """Word for word: `python -m bench.capacity` prints them."""
    assert capacity.tables()[name] in PAGE


def test_the_assumptions_are_those_that_are_reckoned_with() -> None:
    """In the order of the page's first table."""
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


def test_the_prices_in_the_formulas_are_those_of_the_table() -> None:
    """Somebody who puts their own numbers in starts from the same."""
    (formulas,) = re.findall(r"    Lambda .*?\n\n", PAGE, re.DOTALL)
    prices = Prices()
    per_token = (prices.million_input_tokens, prices.million_cached_tokens, prices.million_output_tokens)
    for price in (prices.gb_second, prices.million_invocations / 1e6, prices.compute_hour, prices.log_gb, *per_token):
        assert any(isclose(float(number), price) for number in re.findall(r"\d+\.\d+", formulas)), price


def test_the_defaults_are_those_of_the_product() -> None:
    """The throttle, the memory, the limits of a person, and the lengths that bound what a turn reads."""

    class Loader(yaml.SafeLoader):
        """Reads the template, whose intrinsic functions matter to nobody here."""

    Loader.add_multi_constructor("!", lambda *_: None)
    parameters = yaml.load((ROOT / "template.yaml").read_text(), Loader)["Parameters"]  # noqa: S506 - a SafeLoader
    assert parameters["ThrottlingRate"]["Default"] == capacity.THROTTLE
    assert parameters["MemorySize"]["Default"] == capacity.MEMORY_GB * 1024
    settings = Settings(DATABASE_URL="postgresql://a@b/c")
    allowed = (settings.turn_burst, settings.turns_per_minute, settings.daily_model_tokens)
    assert allowed == (20, 20, 1_000_000)
    assert f"{allowed[0]} turns at once, {allowed[1]} a minute after that, and a million model\ntokens a day" in PAGE
    assert (MAX_HISTORY_TURNS, PAGE_SIZE) == (50, 50)


def test_the_figures_in_the_text_follow_from_the_tables() -> None:
    """What the prose says of the ceiling, the quiet database, and both functions at one pooler."""
    dollars = sum(dollars for _, dollars, _ in capacity._costs(Turn(), Prices()))
    assert 30 < 3600 * capacity.THROTTLE / 1e6 * dollars < 34  # about 32 dollars an hour
    quiet = 0.25 * 730 * Prices().compute_hour
    assert round(quiet) == 19
    assert 1_500 / 60 * Turn().database_cpu_ms / 1000 / capacity.UTILISATION <= 0.25 + 1e-9
    reserved = int(re.findall(r"`ReservedConcurrency=(\d+)`", PAGE)[0])
    assert 2 * reserved <= capacity.CLIENT_CONNECTIONS
    assert 55_000 < 60 * reserved / Turn().seconds < 60_000


@pytest.mark.parametrize("holding", [0.005, 0.05, 0.5])
def test_no_client_is_lost_in_the_arithmetic(holding: float) -> None:
    """Each thinks, is served or waits; and no more servers are busy than there are."""
    rate = capacity.throughput(1_000, 5.0, holding, 20)
    waiting = capacity.waiting(1_000, 5.0, holding, 20)
    assert isclose(rate * (5.0 + holding) + waiting, 1_000)
    assert capacity.busy(rate, holding) <= 20 + 1e-9


@pytest.fixture
def database_url(server: Postgres, pooler: PgBouncer) -> str:
    """Through the pooler, which counts."""
    return pooler.url(server.app_url)


def test_a_turn_with_one_tool_call_is_three_transactions(alice: Person, pooler: PgBouncer) -> None:
    """As the pooler sees it, on a connection that is there already."""
    alice.say("Add buy milk")

    def transactions() -> int:
        return sum(int(row["total_xact_count"]) for row in pooler.show("stats") if row["database"] == "taskchat")

    before = transactions()
    assert alice.say("Add buy bread").json["tool_calls"][0]["outcome"] == "ok"
    assert transactions() - before == Turn().transactions


@pytest.fixture
def old(alice: Person, rows: Rows) -> str:
    """Somebody who was away for two years, and has begun another conversation now."""
    alice.say("Add buy milk")
    rows.execute("update conversation set updated_at = now() - interval '2 years' where user_id = %s", [alice.id])
    rows.execute(
        "insert into tool_call (user_id, turn_id, call_id, position, door, tool, arguments, outcome, result,"
        " duration_ms, created_at) values"
        " (%s, %s, 'c', 0, 'mcp', 'list_tasks', '{}', 'ok', '{}', 1, now() - interval '2 years')",
        [alice.id, uuid4()],
    )
    unused = "insert into allowance values (%s, 'mcp', now() - interval '9 days', current_date - 9, 0)"
    rows.execute(unused, [alice.id])
    alice.say("Add buy bread")
    return alice.id


def count(rows: Rows, user_id: str) -> dict[str, int]:
    """What is stored of a person."""
    tables = ("conversation", "message", "tool_call", "allowance", "task")
    query = "select count(*) as n from {} where user_id = %s"
    return {table: rows.execute(query.format(table).encode(), [user_id]).fetchall()[0]["n"] for table in tables}


def test_what_is_too_old_can_be_deleted(old: str, bob: Person, rows: Rows, server: Postgres, console_url: str) -> None:
    """By a role that row-level security does not bind, as the page says: another is told that it would not do."""
    (statements,) = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    bob.say("Add buy bread")
    before = count(rows, old), count(rows, bob.id)
    with (
        psycopg.connect(server.owner_url, autocommit=True) as owner,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"),
    ):
        owner.execute(statements.encode())
    assert (count(rows, old), count(rows, bob.id)) == before
    assert before[0] == {"conversation": 2, "message": 4, "tool_call": 3, "allowance": 2, "task": 2}
    with psycopg.connect(console_url, autocommit=True) as console:
        console.execute(statements.encode())
    assert count(rows, old) == {"conversation": 1, "message": 2, "tool_call": 1, "allowance": 1, "task": 2}
    assert count(rows, bob.id) == before[1]


def test_no_document_gives_a_statement_that_is_not_tried() -> None:
    """Those of this page are tried here, those of docs/limits.md in tests/test_limits.py."""
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    assert {path.name for path in documents if "```sql" in path.read_text()} == {"scaling.md", "limits.md"}
