"""What a task does to a symbolic state."""

from __future__ import annotations

from collections.abc import Mapping

from policy_rollout.calvin.symbolic import State, Value, check_tasks, freeze, successors, thaw


def apply_task(state: Mapping[str, Value], task: str) -> State:
    """Return the state after `task`. Raise ValueError if it is not feasible, or does not say which block is meant."""
    after = successors(freeze(state), check_tasks([task])[0])
    if len(after) != 1:
        raise ValueError(f"task {task!r} has {len(after)} outcomes in {dict(state)}; exactly one is needed")
    return thaw(after[0])
