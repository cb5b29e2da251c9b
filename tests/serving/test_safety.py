"""What stands between a policy and a robot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from policy_rollout.policies.action_units import gripper_values, in_metres
from policy_rollout.policies.interface import ActionConvention
from policy_rollout.robot.safety import SafetyGuard, SafetyLimits, Unsafe

CALVIN = ActionConvention()
X = np.array([1.0, 0, 0, 0, 0, 0])
HOME = np.array([0.4, 0.0, 0.2, 3.1, 0.0, 1.5])


def guard(limits: SafetyLimits | None = None, convention: ActionConvention = CALVIN, pose=HOME) -> SafetyGuard:
    made = SafetyGuard(convention, limits or SafetyLimits())
    made.start_at(pose)
    return made


def action(*numbers: float) -> np.ndarray:
    return np.array([*numbers, *[0.0] * (7 - len(numbers))], dtype=np.float32)


def test_relative_actions_add_up_to_a_target_in_metres_and_radians():
    made = guard()
    for _ in range(3):
        command = made.command(action(1, 0, -0.5, 0, 1, 0, 1), HOME)
    np.testing.assert_allclose(command.pose, HOME + np.array([0.06, 0, -0.03, 0, 0.15, 0]), atol=1e-7)
    np.testing.assert_allclose(command.step, [0.02, 0, -0.01, 0, 0.05, 0], atol=1e-8)
    assert command.gripper == 1
    assert not made.hits


def test_actions_relative_to_the_measured_hand_and_absolute_ones_are_targets_too():
    measured = HOME + X / 100
    relative = guard(convention=replace(CALVIN, kind="relative_to_measured"))
    relative.command(action(1), HOME)
    np.testing.assert_allclose(relative.command(action(1), measured).pose, measured + X / 50, atol=1e-7)
    absolute = guard(convention=replace(CALVIN, kind="absolute", position_m_per_unit=1.0, rotation_rad_per_unit=1.0))
    wish = HOME + np.array([0.01, -0.01, 0.02, 0.01, 0, 0])
    np.testing.assert_allclose(absolute.command(np.append(wish, 1.0), HOME).pose, wish, atol=1e-6)


def test_angles_take_the_short_way_over_half_a_turn():
    made = guard(convention=replace(CALVIN, kind="absolute", position_m_per_unit=1.0, rotation_rad_per_unit=1.0))
    command = made.command(np.append(HOME[:3], [-3.13, 0.0, 1.5, 1.0]), HOME)
    assert command.step[3] == pytest.approx(2 * np.pi - 6.23, abs=1e-5)
    assert command.pose[3] == pytest.approx(-3.13, abs=1e-5)


def test_a_step_is_shortened_in_its_own_direction_and_counted():
    made = guard(SafetyLimits(max_step_m=0.01, max_step_rad=0.02))
    command = made.command(action(0.3, -0.4, 0, 0.6, 0.8, 0), HOME)
    np.testing.assert_allclose(command.step[:3], [0.006, -0.008, 0], atol=1e-8)
    np.testing.assert_allclose(command.step[:2] / 0.01, [0.6, -0.8], atol=1e-6)
    np.testing.assert_allclose(command.step[3:], [0.012, 0.016, 0], atol=1e-8)
    assert made.hits == {"rotation step": 1}
    made.command(action(1, 1, 1), HOME)
    assert made.hits == {"rotation step": 1, "position step": 1}


def test_without_a_limit_no_action_between_minus_one_and_one_is_changed_and_no_larger_one_is_let_through():
    made = guard()
    np.testing.assert_allclose(made.command(action(1, 1, 1, 1, 1, 1), HOME).step, [0.02] * 3 + [0.05] * 3, atol=1e-7)
    assert not made.hits
    command = made.command(action(100, 100, 100, -100, 100, 0), HOME)
    assert np.linalg.norm(command.step[:3]) == pytest.approx(0.02 * np.sqrt(3))
    assert np.linalg.norm(command.step[3:]) == pytest.approx(0.05 * np.sqrt(3))


def test_targets_stay_in_the_workspace():
    box = ((0.3, -0.1, 0.1), (0.41, 0.1, 0.3))
    made = guard(SafetyLimits(workspace=box))
    poses = np.array([made.command(action(1, 0.5, -1), HOME).pose for _ in range(20)])
    assert poses[:, :3].min(0) == pytest.approx([0.41, 0.01, 0.1])
    assert poses[-1, :3] == pytest.approx([0.41, 0.1, 0.1])
    assert made.hits["workspace"] == 20
    back = made.command(action(-1, 0, 1), HOME)
    assert back.pose[:3] == pytest.approx([0.39, 0.1, 0.12]), "a target at the wall has not run on behind it"


def test_a_hand_outside_the_workspace_is_not_moved_at_all():
    limits = SafetyLimits(workspace=((0.0, 0.0, 0.0), (0.1, 0.1, 0.1)))
    with pytest.raises(Unsafe, match="outside the workspace"):
        guard(limits)


def test_a_target_does_not_run_away_from_a_hand_that_is_held():
    made = guard(SafetyLimits(max_lead_m=0.05))
    for _ in range(10):
        command = made.command(action(1), HOME)
    assert command.pose[0] - HOME[0] == pytest.approx(0.05)
    assert made.hits["lead"] == 8


@pytest.mark.parametrize("limits", [SafetyLimits(workspace=((0, 0, 0), (1, 1, 1))), SafetyLimits(max_lead_m=0.1)])
def test_a_limit_that_needs_a_measured_pose_is_refused_without_one(limits):
    with pytest.raises(Unsafe, match="needs the measured pose"):
        guard(limits, pose=None)


def test_without_a_measured_pose_targets_are_counted_from_the_start():
    made = guard(pose=None)
    made.command(action(1), None)
    np.testing.assert_allclose(made.command(action(0, 1), None).pose[:3], [0.02, 0.02, 0], atol=1e-8)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_numbers_that_are_not_finite_end_the_run(wrong):
    with pytest.raises(Unsafe, match="not finite"):
        guard().command(action(0, wrong), HOME)
    with pytest.raises(Unsafe, match="not finite"):
        guard().command(action(0), np.full_like(HOME, wrong))


def test_a_weak_wish_does_not_change_the_gripper_with_hysteresis():
    made = guard(SafetyLimits(gripper_hysteresis=0.5))
    wishes = [0.9, -0.2, 0.1, -0.4, -0.6, 0.3, 0.7]
    assert [made.command(action(0, 0, 0, 0, 0, 0, wish), HOME).gripper for wish in wishes] == [1, 1, 1, 1, -1, -1, 1]
    assert made.hits["gripper held"] == 3
    plain = guard()
    assert [plain.command(action(0, 0, 0, 0, 0, 0, wish), HOME).gripper for wish in wishes] == [1, -1, 1, -1, -1, 1, 1]


def test_holding_repeats_the_target():
    made = guard()
    assert made.hold() is None
    last = made.command(action(1, 0, 0, 0, 0, 0, 1), HOME)
    held = made.hold()
    np.testing.assert_array_equal(held.pose, last.pose)
    assert not held.step.any()
    assert held.gripper == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"workspace": ((1, 0, 0), (0, 1, 1))},
        {"max_step_m": 0},
        {"max_age_s": -1},
        {"gripper_hysteresis": 1.0},
        {"max_step_rad": float("nan")},
    ],
)
def test_impossible_limits_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SafetyLimits(**wrong)


@pytest.mark.parametrize("change", [{"frame": "tool"}, {"rotation": "axis_angle"}, {"gripper": "suction"}])
def test_a_convention_that_cannot_be_executed_is_refused(change):
    with pytest.raises(ValueError, match=next(iter(change.values()))):
        SafetyGuard(replace(CALVIN, **change), SafetyLimits())


def test_grippers_are_understood_in_both_orders_and_numbers():
    values = {
        words: gripper_values(ActionConvention(gripper=words)) for words in ("0 open, 1 closed", "+1 open, -1 closed")
    }
    assert list(values.values()) == [(1, 0), (-1, 1)]
    chunk = in_metres(np.zeros((2, 3, 7), np.float32), ActionConvention(gripper="0 open, 1 closed"))
    assert (chunk[..., 6] == 1).all()
