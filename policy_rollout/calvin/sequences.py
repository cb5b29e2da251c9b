"""Chains of tasks: CALVIN's official ones, exactly and quickly, and our own for any subset of the tasks.

The official generator seeds numpy's legacy generator with the index of an initial state and draws five of the 34 tasks
without replacement until enough draws are doable one after the other. 7.5 million draws give the 1000 chains. Here the
same random numbers are taken in bulk and the draws are judged as arrays: 98 s become 8 to 10 s, and the list is cached.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.files import write_text
from policy_rollout.calvin.initial_states import INITIAL_STATES
from policy_rollout.calvin.symbolic import CATEGORIES, Frozen, State, Value, check_tasks, successors, thaw
from policy_rollout.calvin.tasks import TASK_NAMES

log = logging.getLogger(__name__)

CHAIN_LENGTH = 5
OFFICIAL_COUNT = 1000
OFFICIAL_SHA256 = "13bc4fad80a302e6405e5f4f800cc028789a245409cd12df39b783099ad4860f"
BATCH = 8192  # draws judged at once: the byte arrays stay in the processor's cache

Bytes = NDArray[np.uint8]


class Chain(NamedTuple):
    """Tasks to be done one after the other from a symbolic initial state (`initial_state` turns it into numbers)."""

    state: State
    tasks: tuple[str, ...]


def success_rates(completed: Sequence[int], length: int = CHAIN_LENGTH) -> list[float]:
    """CALVIN's table row: the share of chains with at least 1, 2, .. `length` tasks done; their sum is the average."""
    if not completed:
        raise ValueError("no chain was played: there is no rate to give")
    return [sum(done >= i for done in completed) / len(completed) for i in range(1, length + 1)]


# ---- the official chains ----


def official_sequences(n: int = OFFICIAL_COUNT, cache_dir: str | Path | None = None) -> list[Chain]:
    """The first `n` of CALVIN's 1000 evaluation chains.

    Always a prefix of the 1000: `get_sequences(n)` of the original is a different, differently shuffled list. Read from
    `cache_dir` (default: `default_cache_dir()`), generated and stored there the first time; ValueError unless
    1 <= n <= 1000.
    """
    if not 1 <= n <= OFFICIAL_COUNT:
        raise ValueError(f"n is {n}; the official list has 1 to {OFFICIAL_COUNT} chains")
    path = Path(cache_dir or default_cache_dir()) / f"calvin_sequences_{OFFICIAL_COUNT}.json"
    chains = _read_cache(path)
    if chains is None:
        chains = get_sequences(OFFICIAL_COUNT)
        if sequences_sha256(chains) != OFFICIAL_SHA256:
            raise RuntimeError("the generated chains are not CALVIN's: numpy's legacy random stream has changed")
        _write_cache(path, chains)
    return chains[:n]


def get_sequences(num_sequences: int = OFFICIAL_COUNT) -> list[Chain]:
    """What CALVIN's `get_sequences(num_sequences)` returns, its final shuffle included; not cached."""
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


# ---- chains of our own ----


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


# ---- the cache ----


def default_cache_dir() -> Path:
    """BLOCKDIFF_CACHE_DIR, else blockdiff-vla in the user's XDG cache."""
    own = os.environ.get("BLOCKDIFF_CACHE_DIR")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blockdiff-vla"


def _read_cache(path: Path) -> list[Chain] | None:
    """The official chains of a cache file; None where there is none or it does not hold exactly them."""
    if not path.is_file():
        return None
    try:
        chains = [Chain(dict(state), tuple(tasks)) for state, tasks in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError):  # not JSON, or JSON of another form
        chains = []
    if sequences_sha256(chains) != OFFICIAL_SHA256:
        log.warning("%s does not hold the official chains; generating them again", path)
        return None
    return chains


def _write_cache(path: Path, chains: list[Chain]) -> None:
    """Store the chains; a cache that cannot be written costs some seconds next time, and a warning now."""
    try:
        write_text(path, json.dumps(chains))
    except OSError as error:
        log.warning("cannot keep the official chains in %s: %s", path, error)
