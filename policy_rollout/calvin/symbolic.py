"""Symbolic states of blocks, doors and lights, the tasks that are feasible in them, and the tasks' effects.

A state is a dictionary with the keys and values of CALVIN's chains (calvin_agent's multistep_sequences):
    led, lightbulb      0 | 1
    slider              "right" | "left"
    drawer              "closed" | "open"
    *_block             "table" | "slider_right" | "slider_left" | "drawer" | "grasped" | "stacked_top" |
                        "stacked_bottom"
    grasped             0 | 1, whether some block is "grasped"
A state of a scene (`scene_state.symbolic_state`) may also have "partway" for a door without enough travel for its
tasks, and "elsewhere" for a block; no rule has these values, so tasks on them are not feasible.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from policy_rollout.calvin.tasks import COLOURS, TASK_NAMES

Value = str | int
State = dict[str, Value]
Frozen = tuple[Value, ...]  # a state's values in the order of STATE_KEYS: hashable

STATE_KEYS = ("led", "lightbulb", "slider", "drawer", "red_block", "blue_block", "pink_block", "grasped")
ON_SHELF = ("slider_right", "slider_left")


@dataclass(frozen=True)
class Rule:
    """One rule of a task: key -> allowed values before it, key -> value after it."""

    condition: Mapping[str, tuple[Value, ...]]
    effect: Mapping[str, Value]

    def after(self, state: Frozen) -> Frozen | None:
        """Return the state after the rule, None if its condition does not hold."""
        if any(state[STATE_KEYS.index(key)] not in allowed for key, allowed in self.condition.items()):
            return None
        return tuple(self.effect.get(key, value) for key, value in zip(STATE_KEYS, state, strict=True))


def _rule(condition: Mapping[str, Value | tuple[Value, ...]], effect: Mapping[str, Value], grasped: int = 0) -> Rule:
    allowed = {key: value if isinstance(value, tuple) else (value,) for key, value in condition.items()}
    return Rule({"grasped": (grasped,), **allowed}, effect)


def _block_rules(block: str, others: tuple[str, str]) -> dict[str, list[Rule]]:
    """Return the rules of one block (with its colour in the name) for each task."""
    lifted: dict[str, Value] = {block: "grasped", "grasped": 1}
    shelf_rules = [  # the door covers its side
        _rule({block: "slider_left", "slider": "right"}, lifted),
        _rule({block: "slider_right", "slider": "left"}, lifted),
    ]
    grasped: dict[str, Value] = {block: "grasped"}
    return {
        f"lift_{block}_table": [_rule({block: "table"}, lifted)],
        f"lift_{block}_slider": shelf_rules,
        f"lift_{block}_drawer": [_rule({block: "drawer", "drawer": "open"}, lifted)],
        "place_in_slider": [
            _rule({**grasped, "slider": side}, {block: f"slider_{side}", "grasped": 0}, grasped=1)
            for side in ("right", "left")
        ],
        "place_in_drawer": [_rule({**grasped, "drawer": "open"}, {block: "drawer", "grasped": 0}, grasped=1)],
        "stack_block": [
            _rule({**grasped, other: "table"}, {block: "stacked_top", other: "stacked_bottom", "grasped": 0}, grasped=1)
            for other in others
        ],
        "unstack_block": [
            _rule({block: "stacked_top", other: "stacked_bottom"}, {block: "table", other: "table"}) for other in others
        ],
        # the block must be unambiguous: the other two are in the cabinet
        "push_into_drawer": [
            _rule({block: "table", "drawer": "open", **dict.fromkeys(others, ON_SHELF)}, {block: "drawer"})
        ],
    }


def _rules() -> dict[str, tuple[Rule, ...]]:
    rules: dict[str, list[Rule]] = {task: [] for task in TASK_NAMES}
    for colour in COLOURS:
        block = f"{colour}_block"
        others = tuple(f"{other}_block" for other in COLOURS if other != colour)
        for verb in ("rotate", "push"):
            for side in ("right", "left"):
                rules[f"{verb}_{block}_{side}"].append(_rule({block: "table"}, {}))
        for task, ways in _block_rules(block, (others[0], others[1])).items():
            rules[task].extend(ways)
    rules["move_slider_left"].append(_rule({"slider": "right"}, {"slider": "left"}))
    rules["move_slider_right"].append(_rule({"slider": "left"}, {"slider": "right"}))
    rules["open_drawer"].append(_rule({"drawer": "closed"}, {"drawer": "open"}))
    rules["close_drawer"].append(_rule({"drawer": "open"}, {"drawer": "closed"}))
    for light in ("lightbulb", "led"):
        rules[f"turn_on_{light}"].append(_rule({light: 0}, {light: 1}))
        rules[f"turn_off_{light}"].append(_rule({light: 1}, {light: 0}))
    return {task: tuple(ways) for task, ways in rules.items()}


RULES: Mapping[str, tuple[Rule, ...]] = _rules()


def _category(task: str) -> int:
    """Return CALVIN's task group: a chain never has two tasks of one group, which could undo each other."""
    if task.startswith("lift_"):
        return 4 + ("table", "slider", "drawer").index(task.rsplit("_", 1)[1])
    groups = {
        "rotate": 1,
        "push": 1,
        "move": 2,
        "open": 3,
        "close": 3,
        "place": 7,
        "turn": 8,
        "stack": 10,
        "unstack": 11,
    }
    return 9 if task == "push_into_drawer" else groups[task.split("_", 1)[0]]


CATEGORIES: Mapping[str, int] = {task: _category(task) for task in TASK_NAMES}


def freeze(state: Mapping[str, Value]) -> Frozen:
    """Return a state as a tuple. Raises ValueError for missing or additional keys."""
    if set(state) != set(STATE_KEYS):
        raise ValueError(f"a desk state has the keys {', '.join(STATE_KEYS)}; got {', '.join(map(str, state))}")
    values = (state[key] for key in STATE_KEYS)
    return tuple(value if isinstance(value, str) else int(value) for value in values)


def thaw(state: Frozen) -> State:
    """Return the dictionary of a frozen state, keys in CALVIN's order."""
    return dict(zip(STATE_KEYS, state, strict=True))


@cache
def successors(state: Frozen, task: str) -> tuple[Frozen, ...]:
    """Return the possible states after `task` in `state`, one for each rule that applies."""
    return tuple(after for rule in RULES[task] if (after := rule.after(state)) is not None)


def feasible_tasks(
    state: Mapping[str, Value], tasks: Iterable[str] = TASK_NAMES, unique: bool = True
) -> tuple[str, ...]:
    """Return those of `tasks` that are feasible in `state`, in their order.

    With `unique` only tasks with one outcome, as in CALVIN's chains: stacking the held block is excluded while both
    other blocks are on the table. Otherwise one applicable rule is sufficient.
    """
    frozen = freeze(state)
    ways = {task: len(successors(frozen, task)) for task in check_tasks(tasks)}
    return tuple(task for task, count in ways.items() if (count == 1 if unique else count > 0))


def check_tasks(tasks: Iterable[str]) -> tuple[str, ...]:
    """Return `tasks` as a tuple. Raises ValueError naming a task that CALVIN does not have."""
    names = tuple(tasks)
    for task in names:
        if task not in RULES:
            raise ValueError(f"unknown task {task!r}; allowed are {', '.join(TASK_NAMES)}")
    return names
