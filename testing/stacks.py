"""Simulate several stacks behind a directory of people: the design of docs/scaling.md, which is not built.

A stack is one deployment of the template with one database. `python -m testing.stacks` prints the table of that page.
"""

import heapq
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from statistics import mean
from typing import Final

PEOPLE: Final = 100_000
STACKS: Final = 10
SEED: Final = 13
IDLE_SECONDS: Final = 420.0
"""Seconds for which Lambda keeps an environment without a request: observed, not promised."""

Place = Callable[[str, int], int]


def by_remainder(person: str, stacks: int) -> int:
    """Place a person by the remainder of a hash: simple, and nearly everybody moves when a stack is added."""
    return _hash(person) % stacks


def by_rendezvous(person: str, stacks: int) -> int:
    """Place a person on the stack with the highest hash of both names: a new stack takes its share and no more."""
    return max(range(stacks), key=lambda stack: _hash(f"{person}/{stack}"))


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())


def people(number: int = PEOPLE) -> list[str]:
    """Return the ids of people."""
    return [f"person-{index}" for index in range(number)]


def turns_of(ids: Iterable[str]) -> dict[str, float]:
    """Return the turns of each person in a day: few people take most of them, and the limits end at a thousand."""
    return {person: min(1_000.0, 3_000 / (rank + 1) ** 0.8) for rank, person in enumerate(ids)}


def moved(place: Place, ids: list[str]) -> float:
    """Return the share of people who move when one stack is added."""
    return mean(place(person, STACKS) != place(person, STACKS + 1) for person in ids)


def hottest(home: dict[str, int], load: dict[str, float]) -> float:
    """Return the load of the busiest stack, as a multiple of the average."""
    by_stack: Counter[int] = Counter()
    for person, stack in home.items():
        by_stack[stack] += load[person]  # type: ignore[assignment]  # a Counter adds any number
    return max(by_stack.values()) / mean(by_stack.values())


def rebalance(home: dict[str, int], load: dict[str, float], most: float) -> int:
    """Move people off the busiest stack until none has more than `most` times the average. Return how many moved."""
    members: dict[int, list[str]] = {stack: [] for stack in set(home.values())}
    for person in sorted(home, key=load.__getitem__):
        members[home[person]].append(person)
    total = {stack: sum(load[person] for person in who) for stack, who in members.items()}
    allowed, number = most * mean(total.values()), 0
    while max(total.values()) > allowed:
        hot, cool = max(total, key=total.__getitem__), min(total, key=total.__getitem__)
        person = members[hot].pop()
        home[person], number = cool, number + 1
        total[hot] -= load[person]
        total[cool] += load[person]
    return number


@dataclass
class Stack:
    """One stack: the people that it serves, and the effects of their turns."""

    served: set[str] = field(default_factory=set)
    effects: Counter[str] = field(default_factory=Counter)

    def take_turn(self, person: str) -> bool:
        """Take a turn, or refuse a person whom this stack does not serve: the router reads the directory again."""
        if person not in self.served:
            return False
        self.effects[person] += 1
        return True


@dataclass
class Directory:
    """The table of people to stacks, a small row each. A person moves in steps, and each step may be the last."""

    stacks: list[Stack]
    home: dict[str, int] = field(default_factory=dict)

    def add(self, person: str) -> None:
        """Give a new person a stack."""
        self.home[person] = by_rendezvous(person, len(self.stacks))
        self.stacks[self.home[person]].served.add(person)

    def move(self, person: str, target: int) -> Iterable[str]:
        """Move a person, step by step. Between two steps anything may happen, and no step is needed to be safe."""
        source = self.home[person]
        if source == target:
            return
        self.stacks[source].served.discard(person)
        yield "the old stack refuses the person: 503 with Retry-After, once the running turn has ended"
        self.stacks[target].effects[person] = self.stacks[source].effects[person]
        yield "the rows are copied: tasks, conversations, messages, calls, with their keys"
        self.home[person] = target
        yield "the directory names the new stack"
        self.stacks[target].served.add(person)
        yield "the new stack serves the person"
        del self.stacks[source].effects[person]


@dataclass
class Router:
    """Finds a person's stack: it keeps what it has read, and reads again when a stack refuses."""

    directory: Directory
    known: dict[str, int] = field(default_factory=dict)

    def send(self, person: str) -> bool:
        """Send a turn to the person's stack, and return whether it was taken. A client repeats a refused one."""
        for is_fresh in (False, True):
            if is_fresh or person not in self.known:
                self.known[person] = self.directory.home[person]
            if self.directory.stacks[self.known[person]].take_turn(person):
                return True
        return False


def environments(per_second: float, seconds: float, hours: float = 0.5) -> tuple[float, int]:
    """Simulate Lambda: return the environments that are busy on average, and the most that exist at once.

    A request takes the environment that was used last. One that is idle for IDLE_SECONDS ends. Each that exists, frozen
    or not, is a client of the pooler.
    """
    draw, now, most, total = random.Random(SEED), 0.0, 0, 0.0  # noqa: S311  (a simulation)
    busy: list[float] = []
    idle: list[float] = []
    while now < hours * 3600:
        now += draw.expovariate(per_second)
        while busy and busy[0] <= now:
            idle.append(heapq.heappop(busy))
        idle = [since for since in idle if now - since < IDLE_SECONDS]
        if idle:
            idle.pop()
        duration = draw.lognormvariate(math.log(seconds) - 0.125, 0.5)
        total += duration
        heapq.heappush(busy, now + duration)
        most = max(most, len(busy) + len(idle))
    return total / now, most


def table() -> str:
    """Return the table of docs/scaling.md."""
    ids = people()
    load = turns_of(ids)
    lines = ["| 100,000 people on 10 stacks | remainder | rendezvous | directory |", "|---|---:|---:|---:|"]
    hot = [hottest({person: place(person, STACKS) for person in ids}, load) for place in (by_remainder, by_rendezvous)]
    home = {person: by_rendezvous(person, STACKS) for person in ids}
    number = rebalance(home, load, 1.05)
    shares = [moved(place, ids) for place in (by_remainder, by_rendezvous)]
    lines.append(
        f"| people who move when an eleventh is added | {shares[0]:.1%} | {shares[1]:.1%} | those you choose |"
    )
    lines.append(f"| the busiest stack, times the average | {hot[0]:.2f} | {hot[1]:.2f} | {hottest(home, load):.2f} |")
    lines.append(f"| people moved for that | | | {number:,} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, and the environments that exist at two loads."""
    sys.stdout.write(table() + "\n\n")
    for per_minute in (10, 1_000):
        busy, most = environments(per_minute / 60, 5.0)
        sys.stdout.write(f"{per_minute} turns a minute: {busy:.2g} busy on average, at most {most} exist\n")


if __name__ == "__main__":
    main()
