"""The symbols: rules of the tasks, and reading a state off a scene."""

from __future__ import annotations

import numpy as np
import pytest

from policy_rollout.calvin.initial_states import INITIAL_STATES, ROBOT_START, initial_state
from policy_rollout.calvin.scene_state import Regions, symbolic_state
from policy_rollout.calvin.symbolic import CATEGORIES, STATE_KEYS, feasible_tasks, thaw
from policy_rollout.calvin.tasks import TASK_NAMES
from tests.calvin.info_world import (
    BASE,
    BLUE,
    DRAWER,
    PINK,
    PLANK,
    RED,
    ROBOT,
    TABLE,
    held,
    moved,
    new_info,
    standing_on,
)
from tests.calvin.rules import apply_task

REST = thaw((0, 0, "right", "closed", "table", "table", "slider_left", 0))


def with_(**values):
    return {**REST, **values}


def scene_of(info, **joints):
    """scene_obs of a hand-made info dictionary."""
    scene = np.zeros(24)
    for i, name in enumerate(("slider", "drawer", "button", "switch", "lightbulb", "led")):
        scene[i] = joints.get(name, 0.0)
    for i, block in enumerate(info["scene_info"]["movable_objects"].values()):
        scene[6 + 6 * i : 9 + 6 * i] = block["current_pos"]
    return scene


def read_by_contact(info, **joints):
    return symbolic_state(scene_of(info, **joints), info=info)


def test_feasible_tasks_of_a_plain_scene():
    assert set(feasible_tasks(REST)) == {
        "move_slider_left", "open_drawer", "turn_on_led", "turn_on_lightbulb", "lift_pink_block_slider",
        "lift_red_block_table", "lift_blue_block_table",
        *(f"{verb}_{colour}_block_{side}" for verb in ("push", "rotate") for colour in ("red", "blue")
          for side in ("left", "right")),
    }  # fmt: skip
    assert feasible_tasks(REST, ["open_drawer", "close_drawer"]) == ("open_drawer",)


def test_the_door_covers_the_side_it_stands_on():
    assert "lift_pink_block_slider" in feasible_tasks(REST)
    assert "lift_pink_block_slider" not in feasible_tasks(with_(slider="left"))
    assert "lift_pink_block_slider" in feasible_tasks(with_(slider="left", pink_block="slider_right"))


def test_with_a_block_in_the_gripper_only_putting_it_down_is_feasible():
    state = apply_task(REST, "lift_red_block_table")
    assert (state["red_block"], state["grasped"]) == ("grasped", 1)
    assert set(feasible_tasks(state)) == {"place_in_slider", "stack_block"}
    assert set(feasible_tasks({**state, "drawer": "open"})) == {"place_in_slider", "place_in_drawer", "stack_block"}
    assert apply_task(state, "place_in_slider")["red_block"] == "slider_right"
    stacked = apply_task(state, "stack_block")
    assert (stacked["red_block"], stacked["blue_block"], stacked["grasped"]) == ("stacked_top", "stacked_bottom", 0)
    assert apply_task(stacked, "unstack_block") == REST


def test_a_task_of_two_outcomes_is_only_feasible_when_uniqueness_is_not_asked():
    state = apply_task(with_(pink_block="table"), "lift_red_block_table")
    assert "stack_block" not in feasible_tasks(state)
    assert "stack_block" in feasible_tasks(state, unique=False)
    with pytest.raises(ValueError, match="2 outcomes"):
        apply_task(state, "stack_block")


def test_sweeping_into_the_drawer_needs_one_block_on_the_table_and_the_others_in_the_cabinet():
    state = with_(drawer="open", blue_block="slider_right")
    assert "push_into_drawer" in feasible_tasks(state)
    assert apply_task(state, "push_into_drawer")["red_block"] == "drawer"
    assert "push_into_drawer" not in feasible_tasks(with_(drawer="open"), unique=False)
    assert "push_into_drawer" not in feasible_tasks({**state, "drawer": "closed"})


def test_every_task_has_a_category_and_opposites_share_it():
    assert set(CATEGORIES) == set(TASK_NAMES)
    assert CATEGORIES["open_drawer"] == CATEGORIES["close_drawer"] != CATEGORIES["move_slider_left"]
    assert CATEGORIES["stack_block"] != CATEGORIES["unstack_block"]


def test_wrong_states_and_tasks_are_refused():
    with pytest.raises(ValueError, match="has the keys led, lightbulb"):
        feasible_tasks({"led": 1})
    with pytest.raises(ValueError, match="unknown task 'dance'"):
        feasible_tasks(REST, ["dance"])


def test_an_initial_state_is_read_back_from_its_numbers():
    for state in INITIAL_STATES:
        robot_obs, scene_obs = initial_state(thaw(state))
        assert symbolic_state(scene_obs, robot_obs) == thaw(state)
        assert tuple(symbolic_state(scene_obs)) == STATE_KEYS


@pytest.mark.parametrize(
    ("contacts", "x", "z", "place"),
    [([(TABLE, BASE)], 0.1, 0.46, "table"), ([(TABLE, PLANK)], -0.2, 0.46, "slider_left"),
     ([(TABLE, PLANK), (TABLE, BASE)], 0.1, 0.46, "slider_right"),
     ([(TABLE, DRAWER), (TABLE, BASE)], 0.1, 0.36, "drawer"), ([(TABLE, BASE), (TABLE, DRAWER)], 0.1, 0.45, "table"),
     ([(TABLE, BASE), (ROBOT, 12)], 0.1, 0.46, "table"),
     ([], 0.1, 0.5, "elsewhere"), ([(ROBOT, 9), (ROBOT, 11)], 0.1, 0.5, "grasped")],
)  # fmt: skip
def test_contacts_say_where_a_block_is(contacts, x, z, place):
    info = standing_on(new_info(), "block_red", *contacts)
    info["scene_info"]["movable_objects"]["block_red"]["current_pos"] = (x, 0.0, z)
    state = read_by_contact(info)
    assert state["red_block"] == place
    assert state["grasped"] == (place == "grasped")
    assert state["blue_block"] == state["pink_block"] == "table"


def test_contacts_distinguish_top_and_bottom_of_a_stack():
    info = standing_on(moved(new_info(), "block_red", dz=0.04), "block_red", (BLUE, -1))
    info = standing_on(info, "block_blue", (RED, -1), (TABLE, BASE))
    state = read_by_contact(info)
    assert (state["red_block"], state["blue_block"], state["pink_block"]) == ("stacked_top", "stacked_bottom", "table")
    assert "unstack_block" in feasible_tasks(state)
    tower = standing_on(moved(info, "block_pink", dz=0.08), "block_pink", (RED, -1))
    tower = standing_on(tower, "block_red", (BLUE, -1), (PINK, -1))
    state = read_by_contact(tower)
    assert [state[key] for key in ("red_block", "blue_block", "pink_block")] == ["elsewhere"] * 3


def test_blocks_that_touch_side_by_side_are_not_a_stack():
    info = standing_on(new_info(), "block_red", (BLUE, -1), (TABLE, BASE))
    assert read_by_contact(info)["red_block"] == "table"


def test_positions_alone_show_stacks_and_with_the_robot_a_held_block():
    stack = moved(new_info(), "block_red", dx=0.1, dz=0.04)  # above blue
    state = symbolic_state(scene_of(stack))
    assert (state["red_block"], state["blue_block"]) == ("stacked_top", "stacked_bottom")

    lifted = held(moved(new_info(), "block_red", dz=0.1), "block_red")
    scene = scene_of(lifted)
    robot = np.array(ROBOT_START)
    robot[:3], robot[6], robot[14] = [*scene[6:8], scene[8] + 0.01], 0.04, -1.0
    assert symbolic_state(scene, robot)["red_block"] == "grasped" == read_by_contact(lifted)["red_block"]
    assert symbolic_state(scene)["red_block"] == "elsewhere"
    robot[14] = 1.0
    assert symbolic_state(scene, robot)["red_block"] == "elsewhere"


@pytest.mark.parametrize(
    ("joints", "key", "value"),
    [({"drawer": 0.089}, "drawer", "closed"), ({"drawer": 0.11}, "drawer", "partway"),
     ({"drawer": 0.131}, "drawer", "open"),
     ({"slider": 0.119}, "slider", "right"), ({"slider": 0.14}, "slider", "partway"),
     ({"slider": 0.161}, "slider", "left"),
     ({"lightbulb": 1.0}, "lightbulb", 1), ({"led": 1.0}, "led", 1)],
)  # fmt: skip
def test_a_door_is_only_open_or_closed_when_the_opposite_can_be_reached(joints, key, value):
    state = symbolic_state(scene_of(new_info(), **joints))
    assert state == {**symbolic_state(scene_of(new_info())), key: value}
    if value == "partway":
        assert not set(feasible_tasks(state)) & {"open_drawer", "close_drawer"} or key == "slider"


def test_another_cabinet_splits_its_sides_elsewhere():
    info = standing_on(new_info(), "block_red", (TABLE, PLANK))
    scene = scene_of(info)
    assert symbolic_state(scene, info=info)["red_block"] == "slider_right"
    assert symbolic_state(scene, info=info, regions=Regions(shelf_split_x=0.05))["red_block"] == "slider_left"
    with pytest.raises(ValueError, match=r"shape \(23,\)"):
        symbolic_state(scene[1:])
