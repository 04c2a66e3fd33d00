"""The protocols' own clients read any turn. `make clients` holds conversations with them."""

import json
import shutil
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings

from chat.stream.ag_ui import AgUiEncoder
from chat.stream.ai_sdk import AiSdkEncoder
from chat.stream.encoding import Encoder
from chat.stream.events import Event, Failed
from dev import clients, node
from tests.stream_rules import turns

HERE = Path(clients.__file__).parent
TURNS = 1_000
SECONDS = 240


def write(encoder: Encoder, events: list[Event]) -> str:
    """Return the body of the stream."""
    return b"".join(line for event in events for line in encoder.encode(event)).decode()


def random_turns() -> list[list[Event]]:
    """Return turns that finish or fail anywhere."""
    found: list[list[Event]] = []

    @given(turns())
    @settings(
        max_examples=TURNS,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    def draw(events: list[Event]) -> None:
        found.append(events)

    draw()
    return found


def test_every_client_reads_every_turn(tmp_path: Path) -> None:
    """AG-UI's verifier, and chunk schemas and readers of two versions of the AI SDK, find no event out of order."""
    streams = [
        {
            "agUi": write(AgUiEncoder("thread", "run"), events),
            "aiSdk": write(AiSdkEncoder(), events),
            "fails": isinstance(events[-1], Failed),
        }
        for events in random_turns()
    ]
    (tmp_path / "streams.json").write_text(json.dumps(streams))
    script = node.install(HERE) / "read.mjs"
    shutil.copyfile(HERE / "read.mjs", script)
    done = node.run([node.program(), script, tmp_path / "streams.json"], SECONDS)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert int(done.stdout) == len(streams) >= TURNS // 2
