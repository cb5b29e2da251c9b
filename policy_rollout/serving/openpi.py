"""The wire protocol of openpi's client (PyPI `openpi-client`): metadata first, then one chunk per observation.

Messages are flat maps. The chunk [T, A] has the units of the policy's own action convention, which is part of the
metadata: a client that executes chunks converts them (`policy_rollout/policies/action_units.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_rollout.policies.interface import ActionConvention, StateLayout
from policy_rollout.serving.request import Request, parse_request, parse_state
from policy_rollout.serving.wire import Limits, WireError, pack, unpack

NAMES = {"rgb_static": "observation/image", "rgb_gripper": "observation/wrist_image"}
PROMPT = "prompt"
STATE = "observation/state"
BROKEN = 1011
"""The close code after an error's text frame."""


def metadata(
    server: str,
    model: str,
    convention: ActionConvention,
    cameras: Sequence[str],
    act_step: int,
    replan_every: int,
    image_shapes: Mapping[str, Sequence[int]] | None = None,
    state: StateLayout | None = None,
    image_rotation: int = 0,
) -> bytes:
    """Return the message that the server sends on connection. image_shapes: (height, width) of the training frames;
    state: what observations must have under `STATE`, None if the model does not read it; image_rotation: degrees by
    which the client rotates its cameras' images."""
    content = {
        "server": server,
        "model": model,
        "cameras": {camera: NAMES[camera] for camera in cameras},
        "act_step": act_step,
        "action_size": convention.dim,
        "image_shapes": {camera: list(shape) for camera, shape in (image_shapes or {}).items()},
        "replan_every": replan_every,
        "action_convention": convention.to_json(),
    }
    if state is not None:
        content["state"] = {"key": STATE, **state.to_json()}
    if image_rotation:
        content["image_rotation"] = image_rotation
    return pack(content, bytes_keys=True)


def parse_message(
    data: bytes | str, cameras: Sequence[str], limits: Limits, state: StateLayout | None = None
) -> Request:
    """Return the request in a message; entries other than images, prompt and, if the model reads it, `STATE` are
    ignored.

    Raises `WireError`.
    """
    if isinstance(data, str):
        raise WireError("observations are binary frames, got a text frame")
    return parse_map(unpack(data, limits), cameras, limits, state)


def parse_map(value: object, cameras: Sequence[str], limits: Limits, state: StateLayout | None = None) -> Request:
    """Return the request in a decoded message. Raises `WireError`."""
    if not isinstance(value, dict):
        raise WireError(f"an observation is a map with {', '.join(NAMES[c] for c in cameras)} and {PROMPT}")
    kind = value.get("type")
    if isinstance(kind, str) and kind == "hello":
        raise WireError("this is vla-eval's hello, received too late; connect to the path /vla-eval")
    numbers = None if state is None else parse_state(value.get(STATE), state, STATE)
    return parse_request(value.get(PROMPT), value, NAMES, cameras, limits, state=numbers)


def answer(chunk: NDArray[np.float32], infer_ms: float, prev_total_ms: float | None) -> bytes:
    """Return the server's answer to an observation."""
    timing = {"infer_ms": infer_ms} | ({} if prev_total_ms is None else {"prev_total_ms": prev_total_ms})
    return pack({"actions": chunk, "server_timing": timing}, bytes_keys=True)


def observation(images: Mapping[str, Any], prompt: str, state: NDArray[Any] | None = None) -> bytes:
    """Return a client's message with images uint8 [H, W, 3] by camera and the robot's state [S], if the model reads
    it."""
    content = {NAMES[camera]: image for camera, image in images.items()} | {PROMPT: prompt}
    return pack(content if state is None else content | {STATE: state}, bytes_keys=True)
