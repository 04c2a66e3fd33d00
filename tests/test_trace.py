"""`make trace` draws a turn's waterfall from the logs of one or more processes."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from operations import options, trace
from operations.log_source import FileLog, OperatorError
from operations.trace import Pen
from tests.audited import Line, audit_line, timestamp
from tests.conftest import ROOT, Logs, Person
from tests.domain import example

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
TURN, CONVERSATION = str(uuid4()), str(uuid4())
PLAIN = Pen(20, "#", ".")


def at(ms: float) -> datetime:
    """Return the time so many milliseconds after noon."""
    return NOON + timedelta(milliseconds=ms)


def line(schema: str, message: str, end: float, duration: float, request: str, **fields: Any) -> Line:
    """Return a log line of the turn."""
    ids = {"turn_id": TURN, "conversation_id": CONVERSATION, "actor": "ann"} if schema != "taskchat.request/1" else {}
    known = {"timestamp": timestamp(at(end)), "correlation_id": request, "duration_ms": float(duration), **ids}
    return {"level": "INFO", "message": message, "schema": schema, "cold_start": request == "one", **known, **fields}


def model_call(end: float, duration: float, request: str, attempt: int = 1, **fields: Any) -> Line:
    """Return the line of a model call."""
    usage = {"input_tokens": 1024, "cache_read.input_tokens": 768, "output_tokens": 32}
    tokens = {f"gen_ai.usage.{name}": count for name, count in usage.items()} | {"gen_ai.request.model": "luna"}
    said = {"attempt": attempt, "outcome": "ok", "first_token_ms": None}
    return line("taskchat.model/1", "model call", end, duration, request, **{**said, **tokens, **fields})


def tool_call(end: float, duration: float, request: str) -> Line:
    """Return an audit line."""
    ids = {"turn_id": TURN, "conversation_id": CONVERSATION, "correlation_id": request}
    return audit_line(at(end), duration_ms=float(duration), **ids)


FIRST = [model_call(400, 300, "one", first_token_ms=250.0), tool_call(500, 100, "one")]
"""A process that was killed after its first call."""
SECOND = [
    model_call(10_700, 500, "two", outcome="failed", **{"error.type": "timeout"}),
    model_call(10_900, 150, "two", 2),
    line(
        "taskchat.usage/1",
        "turn finished",
        11_000,
        1_000,
        "two",
        outcome="finished",
        resumed=1,
        begin_ms=50.0,
        finish_ms=40.0,
        first_event_ms=60.0,
        database_ms=120.0,
    ),
    line("taskchat.request/1", "request", 11_020, 1_020, "two", method="POST", route="/api/{user_id}/chat", status=200),
]


def drawn(tmp_path: Path, lines: list[Line], pen: Pen = PLAIN) -> list[str]:
    """Return the waterfall of the lines."""
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in lines))
    parser = options.parser("", since="7d")
    common = options.Options(parser.parse_args([]), now=NOON + timedelta(hours=1))
    return list(trace.draw(trace.read_attempts(FileLog(str(file)), TURN, common.since, common.until), pen, common))


def test_the_attempts_of_all_processes_are_drawn(tmp_path: Path) -> None:
    """The killed attempt has no last line; the second goes on from its call. Lines of other turns are left out."""
    other = audit_line(at(450))
    assert drawn(tmp_path, [*FIRST, other, *SECOND]) == [
        f"turn {TURN}  conversation {CONVERSATION}  person ann",
        "",
        "attempt 1: no last line: the process was killed, or is still at work, 400 ms, cold start",
        "  2026-03-10 12:00:00.100+00:00  request one",
        "  model                   ###############.....    300 ms  ok, luna, first word after 250 ms,"
        " 1,024 tokens in (768 cached), 32 out",
        "  delete_task             ...............#####    100 ms  ok",
        "  unaccounted                                       0 ms  0% of the time",
        "  9.5 s without a request",
        "",
        "attempt 2: finished, 1,020 ms, status 200, goes on after 1 recorded calls, first event after 60 ms,"
        " database 120 ms",
        "  2026-03-10 12:00:10.000+00:00  request two",
        "  begin                   ..##................     50 ms",
        "  model                   ...###########......    500 ms  failed, luna,"
        " 1,024 tokens in (768 cached), 32 out, timeout",
        "  pause                   .............##.....     50 ms",
        "  model, try 2            ..............####..    150 ms  ok, luna, 1,024 tokens in (768 cached), 32 out",
        "  finish                  ..................##     40 ms",
        "  unaccounted                                     230 ms  23% of the time",
    ]


def test_a_terminal_gets_solid_bars(tmp_path: Path) -> None:
    """A file or a pipe gets plain characters."""
    assert any("█" in each for each in drawn(tmp_path, FIRST, Pen(20, "█", "·")))
    assert all(each.isascii() for each in drawn(tmp_path, FIRST))


@pytest.mark.parametrize(("columns", "width"), [("60", 10), ("100", 37), ("300", 60)])
def test_the_bars_fit_the_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, columns: str, width: int) -> None:
    """They are neither wider than a person reads, nor too narrow to show anything."""
    monkeypatch.setenv("COLUMNS", columns)
    with (tmp_path / "out").open("w") as stream:
        assert Pen.for_stream(stream) == Pen(width, "#", ".")


def test_an_unknown_turn_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how to look further back."""
    (tmp_path / "log.jsonl").touch()
    monkeypatch.setenv("TASKCHAT_DEV_DIR", str(tmp_path))
    assert trace.main(["--turn", TURN]) == 2
    assert capsys.readouterr().err == (
        f"error: The log has no line of the turn {TURN} in this time. A wider one: --since 30d\n"
    )


def test_two_attempts_at_once_are_shown_as_such(tmp_path: Path) -> None:
    """A client that repeats its message does not wait for the first answer."""
    late = tool_call(10_500, 10, "one")
    assert "  while the attempt before still ran" in drawn(tmp_path, [*FIRST, late, *SECOND])


@pytest.mark.parametrize("database_url", ["direct"], indirect=True)
def test_a_real_turn_can_be_drawn(alice: Person, logs: Logs, tmp_path: Path) -> None:
    """Each step is there in its order, and nothing that the person wrote."""
    turn = alice.say(example.add("xylophone")).json
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in logs()))
    common = options.Options(options.parser("", since="7d").parse_args([]))
    attempts = trace.read_attempts(FileLog(str(file)), turn["turn_id"], common.since, datetime.now(UTC))
    (attempt,) = attempts
    shown = "\n".join(trace.draw(attempts, PLAIN, common))
    assert [span.name for span in attempt.spans] == ["begin", "model", example.add_tool, "model", "finish"]
    assert (attempt.usage["outcome"], attempt.request and attempt.request["status"]) == ("finished", 200)
    assert 0 < attempt.unaccounted_ms < attempt.usage["duration_ms"]
    assert "xylophone" not in shown


def test_lines_far_out_of_order_are_refused(tmp_path: Path) -> None:
    """A log that is not sorted by time would give a wrong picture."""
    with pytest.raises(OperatorError, match="not in order of time"):
        drawn(tmp_path, [model_call(1_000_000, 1, "two"), *FIRST])


def test_one_module_knows_the_names_of_opentelemetry() -> None:
    """They are not stable yet."""
    modules = [path for folder in ("functions", "shared", "operations") for path in (ROOT / folder).rglob("*.py")]
    named = [path.name for path in modules if re.search(r"gen_ai\.|error\.type", path.read_text())]
    assert named == ["genai.py"]
