"""The wire protocol of vla-eval (PyPI `vla-eval`, protocol version 1): one action per observation.

A message is a map of `type`, `payload`, `seq`, `timestamp`. The client executes actions as received, so they are in the
units of its benchmark (`policy_rollout/serving/benchmarks.py`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_rollout.policies.action_units import gripper_values
from policy_rollout.policies.interface import ROBOT_OBS, Policy, StateLayout, state_read_by
from policy_rollout.serving.benchmarks import CALVIN_STATES, UNKNOWN, Benchmark, find_benchmark
from policy_rollout.serving.request import Request, parse_request, parse_state
from policy_rollout.serving.wire import Limits, WireError, pack, unpack

PROTOCOL_VERSION = 1
STATES = ("states", "state")
"""Keys of the robot's state; benchmarks use one of the two."""
TYPES = ("hello", "observation", "action", "episode_start", "episode_end", "error")


@dataclass(frozen=True)
class Message:
    """A received message; ``seq`` is the client's number of it, which the answer repeats."""

    type: str
    payload: Mapping[Any, Any]
    seq: int


def is_message(value: object) -> bool:
    """Return whether a map can be a vla-eval message. Openpi's observations have no key `type`."""
    return isinstance(value, dict) and _is_type(value.get("type")) and "payload" in value


def _is_type(value: object) -> bool:
    return isinstance(value, str) and value in TYPES  # comparing an array with a text is elementwise


def read(data: bytes | str, limits: Limits) -> Message:
    """Parse a frame. Raises `WireError` if it is not a message of this protocol."""
    if isinstance(data, str):
        raise WireError("vla-eval messages are binary frames, got a text frame")
    return message(unpack(data, limits))


def message(value: object) -> Message:
    """Check a decoded message. Raises `WireError`."""
    if not isinstance(value, dict) or not {"type", "payload", "seq", "timestamp"} <= value.keys():
        raise WireError("a message is a map with type, payload, seq and timestamp")
    if not _is_type(value["type"]):
        raise WireError(f"message type {str(value['type'])[:40]!r} is unknown; there are {', '.join(TYPES)}")
    seq = value["seq"]
    if type(seq) is not int or not isinstance(value["payload"], dict):
        raise WireError("a message's seq is an integer and its payload a map")
    return Message(value["type"], value["payload"], seq)


def write(kind: str, payload: Mapping[str, Any], seq: int) -> bytes:
    """Return a message as bytes."""
    return pack({"type": kind, "payload": payload, "seq": seq, "timestamp": time.time()})


def error(text: str, seq: int) -> bytes:
    """Return the error answer to message `seq`; the connection stays open."""
    return write("error", {"error": text}, seq)


def action(values: NDArray[np.float32], seq: int) -> bytes:
    """Return the action [7] that answers observation `seq`."""
    return write("action", {"actions": values}, seq)


def require_hello(payload: Mapping[Any, Any], policy: Policy) -> Benchmark:
    """Return the client's benchmark. Raises `WireError` for another protocol version, or a policy that does not fit."""
    version = payload.get("protocol_version")
    if version != PROTOCOL_VERSION:
        raise WireError(f"protocol version {str(version)[:20]} is not served; this server supports {PROTOCOL_VERSION}")
    benchmark = find_benchmark(payload.get("benchmark"))
    benchmark.require(policy)
    return benchmark


def hello(seq: int, server: str, model: str, policy: Policy, benchmark: Benchmark, names: Mapping[str, str]) -> bytes:
    """Return the server's answer to hello: the observations that it needs, and the meaning of its actions.

    ``names``: the client's name of each camera.
    """
    convention, layout, state = policy.convention, policy.convention.layout, state_read_by(policy)
    sent = benchmark.executed(convention)
    position = "absolute_xyz" if convention.kind == "absolute" else "delta_xyz"
    meaning = f"1.0 is {sent.position_m_per_unit:g} m, {convention.kind} in the {convention.frame} frame"
    closed, opened = gripper_values(sent)
    gripper = "binary_close_positive" if closed > opened else "binary_close_negative"
    groups: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
        "position": (layout.position, {"format": position, "description": meaning}),
        "rotation": (
            layout.rotation,
            {"format": sent.rotation, "description": f"1.0 is {sent.rotation_rad_per_unit:g} rad"},
        ),
        "gripper": (layout.gripper, {"format": gripper, "range": [-1.0, 1.0]}),
    }
    spec = {name: {"name": name, "dims": len(at), **about} for name, (at, about) in groups.items() if at}
    others = layout.dim - sum(len(at) for at, _ in groups.values())
    if others:
        spec["action"] = {
            "name": "action",
            "dims": others,
            "format": "raw",
            "description": "as the model predicts them",
        }
    image = {"name": "image", "dims": 0, "format": "rgb_hwc_uint8"}
    inputs: dict[str, Any] = {names[camera]: image for camera in policy.cameras}
    inputs["language"] = {"name": "language", "dims": 0, "format": "language"}
    params: dict[str, Any] = {"send_state": state is not None, **benchmark.params}
    if len(benchmark.cameras) > 1:
        params["send_wrist_image"] = len(policy.cameras) > 1
    if state is not None:
        inputs["state"] = {"name": "state", **benchmark.describe_state(state)}
    payload = {
        "harness_version": server,
        "protocol_version": PROTOCOL_VERSION,
        "model_server": model,
        "capabilities": {},
        "observation_params": params,
        "action_spec": spec,
        "observation_spec": inputs,
    }
    return write("hello", payload, seq)


def parse_observation(
    payload: Mapping[Any, Any],
    names: Mapping[str, str],
    cameras: Sequence[str],
    limits: Limits,
    state: StateLayout | None = None,
    benchmark: Benchmark = UNKNOWN,
) -> Request:
    """Return the request in an observation's payload. Raises `WireError`."""
    images = payload.get("images")
    if not isinstance(images, dict):
        raise WireError("an observation's payload needs images: a map from camera names to images")
    benchmark.require_task(payload.get("task_name"))
    restart = bool(payload.get("episode_restart", False))
    numbers = None if state is None else _state(payload, state)
    return parse_request(payload.get("task_description"), images, names, cameras, limits, restart, numbers)


def _state(payload: Mapping[Any, Any], layout: StateLayout) -> NDArray[Any]:
    """Return the robot's state of an observation; the joints of CALVIN's, which it does not have, are 0."""
    key = next((key for key in STATES if payload.get(key) is not None), STATES[0])
    sent = payload.get(key)
    size = len(sent) if isinstance(sent, list) else np.size(sent) if isinstance(sent, np.ndarray) else 0
    if layout != ROBOT_OBS or size != len(CALVIN_STATES):
        return parse_state(sent, layout, key)
    numbers = parse_state(sent, StateLayout(len(CALVIN_STATES)), key)
    whole = np.zeros(layout.dim, dtype=numbers.dtype)
    whole[list(CALVIN_STATES)] = numbers
    return whole
