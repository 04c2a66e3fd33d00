"""The answer comes as a list of events, as they happen: over real HTTP, from the app that ships."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from dev.standin_model.client import StandIn
from tests.conftest import Person
from tests.domain import example

Json = dict[str, Any]


def read_events(body: str) -> list[tuple[str, Any]]:
    """Return the name and the data of each event of a stream."""
    frames = [dict(line.split(": ", 1) for line in frame.splitlines()) for frame in body.split("\n\n") if frame.strip(": \n")]
    assert [frame["id"] for frame in frames] == [str(number) for number in range(len(frames))]
    return [(frame["event"], json.loads(frame["data"])) for frame in frames]


def test_a_turn_is_a_list_of_events(alice: Person, standin: StandIn) -> None:
    body = alice.say(example.add("buy milk"), accept="text/event-stream")
    print(body.status, body.headers, body.body)
    assert 0
