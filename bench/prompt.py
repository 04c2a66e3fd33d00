"""`python -m bench.prompt`: measure the input tokens that repeat the beginning of an earlier request.

The conversation has sixty turns, and a history so short that it is cut several times. The stand-in model, like a
provider, reports how many tokens repeat the beginning of an earlier request. It counts four characters as a token.
"""

import json
import os
import sys
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from bench import parts, tasks
from bench.parts import Parts, Worker
from bench.turn import prepare
from dev.standin_model.client import StandIn
from dev.standin_model.prompt_cache import count
from dev.tokens import Issuer
from testing.callers import Caller
from testing.gateway import invoke

TURNS: Final = 60
HISTORY_TOKENS: Final = 2_000
"""A sixth of the default. With the default, sixty turns would hardly be cut."""


@dataclass(frozen=True)
class Prompt:
    """The model's input in one conversation."""

    turns: int
    cuts: int
    """Number of times that the history lost its older half."""
    cached: float
    """Share of all input tokens that repeat the beginning of an earlier request."""
    fixed_tokens: int
    """Tokens of instructions and tools together, which begin every request."""


def measure(running: Parts) -> Prompt:
    """Run the conversation. Raises ValueError if the requests do not all begin with the same bytes."""
    standin = StandIn(running.model_url)
    standin.reset()
    environment = os.environ | running.environment | {"HISTORY_TOKENS": str(HISTORY_TOKENS)}
    worker = Worker("bench.prompt", "--worker", environment=environment)
    user_id, oldest = worker.ask(TURNS)
    worker.stop()
    with psycopg.connect(running.environment["SUPERUSER_URL"]) as database:
        (used,) = database.execute(
            "select count(*), sum((usage->>'cached_tokens')::int)::float / sum((usage->>'input_tokens')::int)"
            " from message where user_id = %s and role = 'assistant'",
            [user_id],
        ).fetchall()
    (fixed,) = {_fixed(request["body"]) for request in standin.requests()}
    return Prompt(used[0], oldest - 1, used[1], count(fixed))


def _fixed(body: dict[str, Any]) -> str:
    return json.dumps(body["tools"], ensure_ascii=False, separators=(",", ":")) + str(body["instructions"])


def _work() -> None:
    """Serve as the measured process: read a number of turns; print the user and the number of history beginnings."""
    handler, issuer, answers = prepare("ours")
    standin = StandIn(os.environ["OPENAI_BASE_URL"])
    for line in sys.stdin:
        talk, oldest = _Talk(handler, issuer), set()
        for number in range(json.loads(line)):
            talk.say(tasks.ERRANDS[number % len(tasks.ERRANDS)])
            oldest.add(json.dumps(standin.requests()[-1]["body"]["input"][0]))
        print(json.dumps([talk.user_id, len(oldest)]), file=answers, flush=True)


class _Talk:
    """One conversation."""

    def __init__(self, handler: Any, issuer: Issuer) -> None:
        self._handler, self.user_id, self._conversation, self._row = handler, "user", None, 0
        self._caller = Caller(self.user_id, issuer)

    def say(self, message: str) -> None:
        """Run one turn with one tool call."""
        body = {"message": message.format(self._row), "conversation_id": self._conversation}
        response = invoke(self._handler, self._caller.request(body))
        assert response.status == 200, response.body
        [call] = response.json["tool_calls"]
        self._conversation, self._row = response.json["conversation_id"], call["result"].get("id")


def main() -> None:
    """Measure and print the figures. With --worker, serve as the measured process."""
    if sys.argv[1:] == ["--worker"]:
        return _work()
    with parts.running() as running:
        found = measure(running)
    print(f"{found.turns} turns with {found.cuts} cuts of the history: {found.cached:.1%} of the input was cached")
    print(f"instructions and tools: {found.fixed_tokens} tokens")
    return None


if __name__ == "__main__":
    main()
