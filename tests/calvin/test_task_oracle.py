"""The oracle on hand-made info dictionaries: each function just above and just below its threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest

from policy_rollout.calvin.oracle import TaskOracle, _rotation_degrees
from policy_rollout.calvin.tasks import TASK_NAMES
from tests.calvin.info_world import (
    BASE,
    BLUE,
    DRAWER,
    PLANK,
    RED,
    ROBOT,
    TABLE,
    changed,
    held,
    moved,
    new_info,
    standing_on,
)

ORACLE = TaskOracle()
ON_TABLE, ON_SHELF, IN_DRAWER = (TABLE, BASE), (TABLE, PLANK), (TABLE, DRAWER)


def turned(degrees, axis=2):
    half = math.radians(degrees) / 2
    quaternion = [0.0, 0.0, 0.0, math.cos(half)]
    quaternion[axis] = math.sin(half)
    return tuple(quaternion)


def test_the_table_has_calvins_34_tasks():
    assert len(TASK_NAMES) == 34 == len(set(TASK_NAMES))
    assert TASK_NAMES[0] == "rotate_red_block_right"
    assert TASK_NAMES[-1] == "push_into_drawer"


def test_nothing_is_done_when_nothing_changed():
    assert ORACLE.tasks_done(new_info(), new_info()) == set()


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(61, {"rotate_blue_block_left"}), (59, set()), (-61, {"rotate_blue_block_right"}), (-59, set()),
     (179, {"rotate_blue_block_left"}), (270, {"rotate_blue_block_right"})],
)  # fmt: skip
def test_a_turn_of_more_than_sixty_degrees_is_a_rotation(degrees, expected):
    start = changed(new_info(), "block_blue", current_orn=turned(25))
    end = changed(start, "block_blue", current_orn=turned(25 + degrees))
    assert ORACLE.tasks_done(start, end) == expected


def test_a_rotation_needs_an_upright_block_near_its_place_that_stands_on_something():
    start = new_info()
    end = changed(start, "block_red", current_orn=turned(80))
    assert ORACLE.done("rotate_red_block_left", start, end)
    assert ORACLE.done("rotate_red_block_left", start, moved(end, "block_red", dx=0.06, dy=0.07))
    assert not ORACLE.done("rotate_red_block_left", start, moved(end, "block_red", dx=0.08, dy=0.07))
    assert not ORACLE.done("rotate_red_block_left", start, held(end, "block_red"))
    assert ORACLE.done("rotate_red_block_left", start, standing_on(end, "block_red", (ROBOT, 1), ON_TABLE))
    lying = changed(start, "block_red", current_orn=turned(80, axis=0))
    assert not ORACLE.done("rotate_red_block_left", start, lying)


def test_turns_agree_with_scipys_fixed_axis_angles():
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation
    random = np.random.default_rng(0)
    for start, end in random.normal(size=(200, 2, 4)):
        start, end = start / np.linalg.norm(start), end / np.linalg.norm(end)
        expected = (rotation.from_quat(end) * rotation.from_quat(start).inv()).as_euler("xyz", degrees=True)
        np.testing.assert_allclose(_rotation_degrees(start, end), expected, atol=1e-6)


@pytest.mark.parametrize(("dx", "task"), [(0.101, "push_pink_block_right"), (-0.101, "push_pink_block_left")])
def test_a_push_is_more_than_ten_centimetres(dx, task):
    start = new_info()
    assert ORACLE.tasks_done(start, moved(start, "block_pink", dx=dx)) == {task}
    assert ORACLE.tasks_done(start, moved(start, "block_pink", dx=dx * 0.98)) == set()


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([ON_TABLE], [ON_TABLE, (RED, -1)], True),  # pushed against another block
        ([ON_TABLE], [ON_TABLE, ON_SHELF], True),
        ([ON_TABLE, (RED, -1)], [ON_TABLE], False),  # pushed away from another block
        ([ON_TABLE], [ON_SHELF], False),  # another link of the same body
        ([ON_TABLE, IN_DRAWER], [ON_TABLE], False),
        ([ON_TABLE], [(ROBOT, 12), ON_TABLE], True),
        ([(ROBOT, 9), ON_TABLE], [(ROBOT, 12), ON_TABLE], True),
        ([ON_TABLE], [(ROBOT, 12)], False),
        ([(ROBOT, 12)], [(ROBOT, 12)], False),
        ([(ROBOT, 12)], [ON_TABLE], False),
        ([], [ON_TABLE], False),
        ([], [], False),
    ],
)
def test_a_pushed_block_keeps_every_contact_of_the_start_and_may_gain_others(before, after, expected):
    start = standing_on(new_info(), "block_pink", *before)
    end = standing_on(moved(start, "block_pink", dx=0.2), "block_pink", *after)
    assert ORACLE.done("push_pink_block_right", start, end) == expected


def test_a_push_may_be_asked_along_y():
    oracle = TaskOracle({"back": ["push_object", "block_red", 0, 0.1], "front": ["push_object", "block_red", 0, -0.1]})
    start = new_info()
    assert oracle.tasks_done(start, moved(start, "block_red", dy=0.11)) == {"back"}
    assert oracle.tasks_done(start, moved(start, "block_red", dx=0.3, dy=-0.11)) == {"front"}
    assert oracle.tasks_done(start, moved(start, "block_red", dy=0.09)) == set()


@pytest.mark.parametrize(
    ("surface", "link", "height"),
    [("table", ON_TABLE, 0.05), ("slider", ON_SHELF, 0.03), ("drawer", IN_DRAWER, 0.05)],
)
def test_a_lift_is_named_after_the_surface_the_block_stood_on(surface, link, height):
    start = standing_on(new_info(), "block_red", link)
    up = held(moved(start, "block_red", dz=height + 0.001), "block_red")
    assert ORACLE.tasks_done(start, up) == {f"lift_red_block_{surface}"}
    assert not ORACLE.tasks_done(start, held(moved(start, "block_red", dz=height - 0.001), "block_red"))
    touching = standing_on(up, "block_red", (ROBOT, 12), link)
    assert not ORACLE.tasks_done(start, touching)
    in_the_gripper_before = standing_on(start, "block_red", (ROBOT, 12), link)
    assert ORACLE.tasks_done(in_the_gripper_before, up) == {f"lift_red_block_{surface}"}
    assert not ORACLE.tasks_done(held(start, "block_red"), up)
    flying = standing_on(up, "block_red")
    assert not ORACLE.tasks_done(start, flying)


def test_a_lift_may_name_a_body_without_a_link_or_no_surface_at_all():
    oracle = TaskOracle(
        {"any": ["lift_object", "block_red", 0.05], "body": ["lift_object", "block_red", 0.05, "table"]}
    )
    for start, expected in (
        (standing_on(new_info(), "block_red", IN_DRAWER), {"any", "body"}),
        (standing_on(new_info(), "block_red", (BLUE, -1)), {"any"}),
    ):
        up = held(moved(start, "block_red", dz=0.06), "block_red")
        assert oracle.tasks_done(start, up) == expected


@pytest.mark.parametrize(("task", "link"), [("place_in_slider", ON_SHELF), ("place_in_drawer", IN_DRAWER)])
def test_placing_means_letting_go_on_the_named_link(task, link):
    start = held(new_info(), "block_blue")
    end = standing_on(new_info(), "block_blue", link)
    assert task in ORACLE.tasks_done(start, end)
    assert {"place_in_slider", "place_in_drawer"} & ORACLE.tasks_done(start, end) == {task}
    assert not ORACLE.done(task, start, standing_on(end, "block_blue", ON_TABLE))
    still_touched = standing_on(end, "block_blue", link)
    still_touched["robot_info"]["contacts"] = start["robot_info"]["contacts"]
    assert not ORACLE.done(task, start, still_touched)
    assert not ORACLE.done(task, new_info(), end)
    dragged = standing_on(start, "block_blue", (ROBOT, 12), ON_TABLE)
    assert not ORACLE.done(task, dragged, end)


def test_placing_from_a_gripper_that_touches_two_things_does_not_count():
    start = held(new_info(), "block_blue")
    start["robot_info"]["contacts"] += ((0, ROBOT, TABLE, -1, DRAWER),)
    assert not ORACLE.done("place_in_drawer", start, standing_on(new_info(), "block_blue", IN_DRAWER))


@pytest.mark.parametrize("block", ["block_red", "block_blue", "block_pink"])
def test_any_block_may_be_swept_into_the_drawer(block):
    start, end = new_info(), standing_on(new_info(), block, IN_DRAWER, ON_TABLE)
    assert ORACLE.done("push_into_drawer", start, end)
    assert not ORACLE.done("push_into_drawer", start, standing_on(end, block, ON_TABLE))
    assert not ORACLE.done("push_into_drawer", standing_on(start, block, ON_SHELF), end)
    assert not ORACLE.done("push_into_drawer", standing_on(start, block, ON_TABLE, (ROBOT, 12)), end)
    assert ORACLE.done("push_into_drawer", start, standing_on(end, block, IN_DRAWER, (ROBOT, 12)))


@pytest.mark.parametrize(
    ("door", "task", "before", "after", "short"),
    [("base__slide", "move_slider_left", 0.05, 0.201, 0.199), ("base__slide", "move_slider_right", 0.28, 0.129, 0.131),
     ("base__drawer", "open_drawer", 0.02, 0.141, 0.139), ("base__drawer", "close_drawer", 0.20, 0.079, 0.081)],
)  # fmt: skip
def test_doors_move_by_more_than_their_threshold(door, task, before, after, short):
    start = changed(new_info(), **{door: before})
    assert ORACLE.tasks_done(start, changed(start, **{door: after})) == {task}
    assert ORACLE.tasks_done(start, changed(start, **{door: short})) == set()
    assert ORACLE.tasks_done(start, changed(start, **{door: (after,)})) == {task}


def test_a_door_may_be_evaluated_by_absolute_thresholds():
    oracle = TaskOracle({
        "open": ["move_door_abs", "base__drawer", 0.05, 0.15], "close": ["move_door_abs", "base__drawer", 0.15, 0.05],
    })  # fmt: skip
    position = {value: changed(new_info(), base__drawer=value) for value in (0.04, 0.06, 0.14, 0.16)}
    assert oracle.tasks_done(position[0.04], position[0.16]) == {"open"}
    assert oracle.tasks_done(position[0.16], position[0.04]) == {"close"}
    assert oracle.tasks_done(position[0.06], position[0.16]) == set()
    assert oracle.tasks_done(position[0.04], position[0.14]) == set()
    assert oracle.tasks_done(position[0.16], position[0.06]) == set()


@pytest.mark.parametrize("light", ["lightbulb", "led"])
def test_lights_are_switched_on_and_off(light):
    off, on = new_info(), changed(new_info(), **{light: 1})
    assert ORACLE.tasks_done(off, on) == {f"turn_on_{light}"}
    assert ORACLE.tasks_done(on, off) == {f"turn_off_{light}"}
    assert ORACLE.tasks_done(on, on) == set()


def test_stacking_means_coming_to_rest_on_blocks_alone():
    start = held(new_info(), "block_red")
    on_blue = standing_on(new_info(), "block_red", (BLUE, -1))
    assert ORACLE.done("stack_block", start, on_blue)
    assert not ORACLE.done("stack_block", on_blue, on_blue)
    assert not ORACLE.done("stack_block", start, standing_on(on_blue, "block_red", (BLUE, -1), ON_TABLE))
    assert not ORACLE.done("stack_block", start, standing_on(on_blue, "block_red", (BLUE, -1), (ROBOT, 12)))
    assert ORACLE.done("stack_block", start, changed(on_blue, "block_red", current_lin_vel=(0.0, 0.0, -0.99)))
    assert not ORACLE.done("stack_block", start, changed(on_blue, "block_red", current_lin_vel=(0.0, 0.0, -1.0)))
    assert not ORACLE.done("stack_block", start, changed(on_blue, "block_red", current_ang_vel=(1.01, 0.0, 0.0)))


def test_unstacking_means_leaving_the_other_blocks():
    start = standing_on(new_info(), "block_pink", (BLUE, -1))
    assert ORACLE.done("unstack_block", start, new_info())
    assert ORACLE.done("unstack_block", start, held(start, "block_pink"))
    assert not ORACLE.done("unstack_block", start, start)
    assert not ORACLE.done("unstack_block", start, standing_on(start, "block_pink", (RED, -1)))
    assert not ORACLE.done("unstack_block", standing_on(start, "block_pink", (BLUE, -1), ON_TABLE), new_info())
    falling = changed(start, "block_pink", current_lin_vel=(0.0, 0.0, -1.2))
    assert not ORACLE.done("unstack_block", falling, new_info())


def test_only_the_given_tasks_are_evaluated():
    start = new_info()
    end = changed(start, led=1, base__drawer=0.2)
    assert ORACLE.tasks_done(start, end) == {"turn_on_led", "open_drawer"}
    assert ORACLE.tasks_done(start, end, among=["open_drawer", "close_drawer"]) == {"open_drawer"}
    assert ORACLE.tasks_done(start, end, among=()) == set()
    with pytest.raises(ValueError, match="unknown task 'dance'"):
        ORACLE.tasks_done(start, end, among=["dance"])


@pytest.mark.parametrize(
    ("row", "message"),
    [(["teleport", "block_red"], "unknown function 'teleport'"),
     (["push_object", "block_red", 0.1], r"push_object\(obj_name, x_direction, y_direction\) takes 3 to 3, got 2"),
     (["push_object", "block_red", 0.1, 0.1], "exactly one"), (["lift_object", "block_red", 0], "above 0"),
     (["move_door_rel", "base__drawer", 0], "must not be 0"), (["move_door_rel", "base__drawer", 1, 2], "got 3"),
     (["move_door_rel", "base__drawer", "far"], "threshold is 'far'"),
     (["move_door_rel", "base__drawer", float("nan")], "threshold is nan"),
     (["lift_object", None, 0.05], "obj_name is None; it must be a name"),
     (["toggle_light", "led", "off", "on"], "start_state is 'off'"), (["toggle_light", "led", 1, 1], "must differ"),
     (["push_object_into", [], "table", "a", "table", "b"], "must be a name or a list of names"),
     ([], "not a list")],
)  # fmt: skip
def test_a_wrong_row_is_refused_at_construction_naming_the_task(row, message):
    with pytest.raises(ValueError, match=f"task 'my_task'.*{message}"):
        TaskOracle({"my_task": row})


def test_an_info_dictionary_without_scene_explains_what_to_do():
    info = {"robot_info": {"uid": 0, "contacts": ()}}
    with pytest.raises(ValueError, match="use_scene_info=True"):
        ORACLE.done("open_drawer", info, info)


def test_a_missing_object_is_named():
    oracle = TaskOracle({"shut": ["move_door_rel", "base__window", -0.1]})
    with pytest.raises(ValueError, match="no 'base__window'"):
        oracle.done("shut", new_info(), new_info())
