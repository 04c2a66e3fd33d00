"""Attempt a case once: prepare its tasks for a new person, say its messages, and read the tasks afterwards."""

from dataclasses import dataclass
from typing import Final

from evals import domain
from evals.case_files import Case
from evals.dates import Clock, render
from evals.person import Backend, Tokens, Turn

OK: Final = 200


@dataclass(frozen=True)
class Attempt:
    """One of several attempts at a case."""

    case: Case
    number: int

    @property
    def id(self) -> str:
        """Return the name that is unique in a run."""
        return f"{self.case.id} #{self.number}"


@dataclass(frozen=True)
class Outcome:
    """What an attempt left behind."""

    turns: list[Turn]
    before: domain.State
    """The things before the first turn."""
    before_last: domain.State
    after: domain.State
    clocks: list[Clock]
    """The clock at the begin and at the end. Midnight may lie between them."""
    tokens: Tokens

    @property
    def last(self) -> Turn:
        """Return the last turn."""
        return self.turns[-1]

    def differences(self, effects: domain.Effects, state: domain.State) -> list[domain.Difference]:
        """Return how a state differs from the effects, on the day of the begin or of the end."""
        return min((domain.differences(effects, self.before, state, clock) for clock in self.clocks), key=len)


async def run(attempt: Attempt, backend: Backend) -> Outcome:
    """Take the turns of a case. Raises BackendError. After a turn that fails, the later ones are not said."""
    case, person = attempt.case, backend.new_person()
    began = Clock.read(case.timezone)
    await domain.prepare(person, case.before, began)
    before = state = await domain.read(person)
    turns: list[Turn] = []
    conversation: str | None = None
    for message in case.say:
        state = await domain.read(person)
        turn, conversation = await person.say(render(message, began), conversation, case.timezone)
        turns.append(turn)
        if turn.status != OK:
            break
    after = await domain.read(person)
    clocks = [began, Clock.read(case.timezone)]
    return Outcome(turns, before, state, after, clocks, await person.tokens())
