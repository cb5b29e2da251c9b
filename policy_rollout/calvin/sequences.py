"""Chains of tasks: CALVIN's official ones, and our own for any subset of the tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import NamedTuple

from policy_rollout.calvin.initial_states import INITIAL_STATES
from policy_rollout.calvin.symbolic import CATEGORIES, Frozen, State, check_tasks, successors, thaw
from policy_rollout.calvin.tasks import TASK_NAMES

CHAIN_LENGTH = 5
OFFICIAL_COUNT = 1000
OFFICIAL_CHAINS = Path(__file__).with_name("official_chains.txt")
"""One chain a line: the index of the initial state in INITIAL_STATES, then those of five tasks in TASK_NAMES. Written
by `python -m tests.calvin.official_generator`, which draws the chains as CALVIN's own generator does."""


class Chain(NamedTuple):
    """Tasks to be done one after the other from a symbolic initial state (`initial_state` turns it into numbers)."""

    state: State
    tasks: tuple[str, ...]


def success_rates(completed: Sequence[int], length: int = CHAIN_LENGTH) -> list[float]:
    """CALVIN's table row: the share of chains with at least 1, 2, .. `length` tasks done; their sum is the average."""
    if not completed:
        raise ValueError("no chain was played: there is no rate to give")
    return [sum(done >= i for done in completed) / len(completed) for i in range(1, length + 1)]


def official_sequences(n: int = OFFICIAL_COUNT) -> list[Chain]:
    """Return the first `n` of CALVIN's 1000 evaluation chains. Raise ValueError unless 1 <= n <= 1000.

    Always a prefix of the 1000: `get_sequences(n)` of the original is a different, differently shuffled list.
    """
    if not 1 <= n <= OFFICIAL_COUNT:
        raise ValueError(f"n is {n}; the official list has 1 to {OFFICIAL_COUNT} chains")
    lines = OFFICIAL_CHAINS.read_text(encoding="utf-8").splitlines()
    rows = (map(int, line.split()) for line in lines[:n])
    return [Chain(thaw(INITIAL_STATES[start]), tuple(TASK_NAMES[task] for task in tasks)) for start, *tasks in rows]


def desk_sequences(n: int, tasks: Iterable[str] = TASK_NAMES, seed: int = 0, length: int = CHAIN_LENGTH) -> list[Chain]:
    """`n` chains of `length` of the given tasks, by CALVIN's rules: doable in order, one of a category each.

    The initial states take turns, as equally often as `n` allows; given its state, a chain is drawn uniformly from all
    the valid ones, as CALVIN's are. Chain i depends on `tasks`, `seed`, `length` and i only, so fewer chains are a
    prefix of more. ValueError where no initial state has such a chain.
    """
    names = check_tasks(tasks)
    names = tuple(task for task in TASK_NAMES if task in names)  # the order of the argument does not matter
    supply = _Supply(names)
    starts = [state for state in INITIAL_STATES if supply.count(state, 0, length)]
    if not starts:
        raise ValueError(f"no chain of {length} tasks can be made of: {', '.join(names) or '(no task)'}")
    Random(f"desk states {seed}").shuffle(starts)
    return [
        Chain(thaw(state), supply.draw(state, 0, length, Random(f"desk chain {seed} {i}")))
        for i, state in enumerate(islice(cycle(starts), n))
    ]


class _Supply:
    """The valid chains of some tasks: how many there are, and one drawn uniformly from them, without listing them."""

    def __init__(self, tasks: tuple[str, ...]) -> None:
        self._tasks = [(task, 1 << CATEGORIES[task]) for task in tasks]
        self._options: dict[Frozen, list[tuple[str, int, Frozen]]] = {}
        self._counts: dict[tuple[Frozen, int, int], int] = {}

    def options(self, state: Frozen) -> list[tuple[str, int, Frozen]]:
        """(task, bit of its category, state after it) of the tasks that are doable in `state`."""
        if state not in self._options:
            ways = [(task, bit, successors(state, task)) for task, bit in self._tasks]
            self._options[state] = [(task, bit, after[0]) for task, bit, after in ways if len(after) == 1]
        return self._options[state]

    def count(self, state: Frozen, seen: int, length: int) -> int:
        """How many chains of `length` start in `state` with no category of the bits `seen`."""
        if length == 0:
            return 1
        key = (state, seen, length)
        if key not in self._counts:
            self._counts[key] = sum(
                self.count(after, seen | bit, length - 1) for _, bit, after in self.options(state) if not seen & bit
            )
        return self._counts[key]

    def draw(self, state: Frozen, seen: int, length: int, random: Random) -> tuple[str, ...]:
        """One of the chains that `count` counts, each with the same probability."""
        if length == 0:
            return ()
        rank = int(random.random() * self.count(state, seen, length))
        for task, bit, after in self.options(state):
            ways = 0 if seen & bit else self.count(after, seen | bit, length - 1)
            if rank < ways:
                return (task, *self.draw(after, seen | bit, length - 1, random))
            rank -= ways
        raise AssertionError("the counts of the options add up to the count of the state")
