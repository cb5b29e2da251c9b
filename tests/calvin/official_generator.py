"""CALVIN's generator of evaluation chains, exactly and quickly; it wrote `policy_rollout/calvin/official_chains.txt`.

The original seeds numpy's legacy generator with the index of an initial state and draws five of the 34 tasks without
replacement until enough draws are feasible in their order. 7.5 million draws give the 1000 chains. Here the same random
numbers are drawn in bulk and the draws are checked as arrays: 8 to 10 s instead of 98 s.

    python -m tests.calvin.official_generator
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from policy_rollout.calvin.initial_states import INITIAL_STATES
from policy_rollout.calvin.sequences import CHAIN_LENGTH, OFFICIAL_CHAINS, OFFICIAL_COUNT, Chain
from policy_rollout.calvin.symbolic import CATEGORIES, Frozen, Value, freeze, successors, thaw
from policy_rollout.calvin.tasks import TASK_NAMES

BATCH = 8192  # draws checked at once: the byte arrays stay in the processor's cache

Bytes = NDArray[np.uint8]


def get_sequences(num_sequences: int = OFFICIAL_COUNT) -> list[Chain]:
    """Return what CALVIN's `get_sequences(num_sequences)` returns, its final shuffle included."""
    shares = [len(part) for part in np.array_split(np.arange(num_sequences), len(INITIAL_STATES))]
    chains = [
        Chain(thaw(state), tasks)
        for seed, (state, share) in enumerate(zip(INITIAL_STATES, shares, strict=True))
        for tasks in chains_from(seed, share)
    ]
    order = list(range(num_sequences))
    np.random.RandomState(0).shuffle(order)
    return [chains[i] for i in order]


def chains_from(seed: int, count: int) -> list[tuple[str, ...]]:
    """The official generator's first `count` chains of the initial state number `seed` (0..191)."""
    graph = _graph()
    random = np.random.RandomState(seed)
    accepted: list[tuple[str, ...]] = []
    while len(accepted) < count:
        draws = _doable(_swaps(random), graph.ids[INITIAL_STATES[seed]], graph.after)
        accepted += [tuple(TASK_NAMES[task] for task in draw) for draw in draws]
    return accepted[:count]


def sequences_sha256(chains: Iterable[tuple[Mapping[str, Value], Sequence[str]]]) -> str:
    """SHA-256 of chains as the JSON list of [state, tasks] with sorted keys."""
    rows = [[dict(state), list(tasks)] for state, tasks in chains]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _swaps(random: np.random.RandomState) -> Bytes:
    """The swap partners of BATCH shuffles of the 34 tasks, [33, BATCH]; row 0 is the partner of place 33.

    `choice(34, 5, replace=False)` shuffles all 34: for i = 33..1 it swaps place i with a place drawn from 0..i by
    masked rejection of 32-bit words. `randint` with an array of bounds consumes the very same words, in the same order.
    """
    bounds = np.arange(len(TASK_NAMES), 1, -1)
    partners = random.randint(0, bounds, size=(BATCH, len(bounds)))
    return np.ascontiguousarray(partners.astype(np.uint8).T)


def _drawn(swaps: Bytes, place: int) -> Bytes:
    """Which task each shuffle leaves at `place`: follow the place back through the swaps, last one first. [N]"""
    at = np.full(swaps.shape[1], place, np.uint8)
    for i in range(1, len(swaps) + 1):
        partner = swaps[len(swaps) - i]
        at ^= (partner ^ np.uint8(i)) * ((at == i) | (at == partner))  # i becomes partner, partner becomes i
    return at


def _doable(swaps: Bytes, start: int, after: NDArray[np.int16]) -> NDArray[np.uint8]:
    """The draws of five tasks [K, 5] that can be done in their order from state `start`, one of a category each."""
    category = np.array([1 << CATEGORIES[task] for task in TASK_NAMES])
    drawn = np.empty((0, swaps.shape[1]), np.uint8)
    state = np.full(swaps.shape[1], start, np.int16)
    seen = np.zeros(swaps.shape[1], category.dtype)
    for place in range(CHAIN_LENGTH):
        task = _drawn(swaps, place)
        state = after[state, task]
        keep = (state >= 0) & (seen & category[task] == 0)
        seen = (seen | category[task])[keep]
        drawn = np.concatenate([drawn, task[None]])[:, keep]
        swaps, state = swaps[:, keep], state[keep]
    return drawn.T


class _Graph(NamedTuple):
    ids: dict[Frozen, int]
    after: NDArray[np.int16]  # [states, tasks]: the only state a task leads to, or -1


@cache
def _graph() -> _Graph:
    """Every state that a chain can pass through."""
    ids = {state: i for i, state in enumerate(INITIAL_STATES)}
    frontier, rows = list(INITIAL_STATES), []
    while frontier:
        found: list[Frozen] = []
        for state in frontier:
            ways = [successors(state, task) for task in TASK_NAMES]
            for way in ways:
                if len(way) == 1 and way[0] not in ids:
                    ids[way[0]] = len(ids)
                    found.append(way[0])
            rows.append([ids[way[0]] if len(way) == 1 else -1 for way in ways])
        frontier = found
    return _Graph(ids, np.array(rows, np.int16))


def main() -> None:
    """Write the official chains."""
    lines = []
    for state, tasks in get_sequences():
        ids = (INITIAL_STATES.index(freeze(state)), *map(TASK_NAMES.index, tasks))
        lines.append(" ".join(map(str, ids)) + "\n")
    OFFICIAL_CHAINS.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
