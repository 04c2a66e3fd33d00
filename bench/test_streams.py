"""Check how the bench reads a stream, and what it makes of the figures."""

import time

from bench.streams import First, Streams, Taken, Together, figures, read_events, report

STREAM = b"""event: accepted
id: 0
data: {"replayed":false}

: a comment

event: text
id: 1
data: {"message":0,"text":"a: b"}

event: failed
id: 2
retry: 2000
data: {"status":502}

event: text
data: {"text":"cut off"}"""


def test_events_are_read_with_their_data() -> None:
    """Comments are no events, and neither is a part of one."""
    events = list(read_events(STREAM.splitlines(keepends=True)))
    assert [event.name for event in events] == ["accepted", "text", "failed"]
    assert [event.data for event in events] == [{"replayed": False}, {"message": 0, "text": "a: b"}, {"status": 502}]


def test_an_event_has_the_time_of_its_last_line() -> None:
    """It is read before the next one is there."""
    lines = iter(STREAM.splitlines(keepends=True))
    before = time.monotonic()
    first = next(read_events(lines))
    assert before <= first.at <= time.monotonic()
    assert next(lines) == b": a comment\n"


def test_a_stream_s_times_are_those_of_its_events() -> None:
    """They begin with the request."""
    began = time.monotonic()
    taken = Taken(began, list(read_events(STREAM.splitlines(keepends=True))))
    assert 0 < taken.accepted_ms < taken.seconds * 1000
    assert began < taken.first_text < began + taken.seconds


def test_the_figures_have_the_targets_of_the_page() -> None:
    """Each value is in its place."""
    first, together = First(4.0, 5.0, 2.0), Together(9.0, 8.8, 8.0, 30.0, 200.0, 15.0)
    found = Streams(first, First(8.0, 12.0, 2.0), 500.0, together, 2_000, {200: 100.0, 2_000: 101.0})
    assert [(figure.ours, figure.holds) for figure in figures(found)] == [
        (1.25, True),
        (1.5, False),
        (2.0, True),
        (500.0, None),
        (1.1, True),
        (200.0, True),
        (1.01, True),
    ]
    assert len({len(line) for line in report(found)}) == 1
