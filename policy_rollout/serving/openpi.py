"""The wire protocol of openpi's client (PyPI `openpi-client`): metadata first, then an observation in, a chunk out.

Messages are flat maps. The chunk [T, A] leaves in the units of the policy's own action convention, which is part of the
metadata: whoever plays chunks scales them too (`policy_rollout/policies/action_units.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_rollout.policies.interface import ActionConvention
from policy_rollout.serving.request import NeedsChunk, look
from policy_rollout.serving.wire import Limits, WireError, pack, unpack

NAMES = {"rgb_static": "observation/image", "rgb_gripper": "observation/wrist_image"}
PROMPT = "prompt"
BROKEN = 1011
"""The close code that follows an error's text frame."""


def metadata(
    server: str,
    model: str,
    convention: ActionConvention,
    cameras: Sequence[str],
    act_step: int,
    replan_every: int,
    image_shapes: Mapping[str, Sequence[int]] | None = None,
) -> bytes:
    """What the server says as soon as a client has connected. image_shapes: (height, width) of the training frames."""
    about = {
        "server": server,
        "model": model,
        "cameras": {camera: NAMES[camera] for camera in cameras},
        "act_step": act_step,
        "action_size": convention.dim,
        "image_shapes": {camera: list(shape) for camera, shape in (image_shapes or {}).items()},
        "replan_every": replan_every,
        "action_convention": convention.to_json(),
    }
    return pack(about, bytes_keys=True)


def observed(data: bytes | str, cameras: Sequence[str], limits: Limits) -> NeedsChunk:
    """What a message shows; what it carries beyond images and prompt (`observation/state`) is not looked at.

    Raises `WireError`.
    """
    if isinstance(data, str):
        raise WireError("observations are binary frames, got a text frame")
    return observed_map(unpack(data, limits), cameras, limits)


def observed_map(value: object, cameras: Sequence[str], limits: Limits) -> NeedsChunk:
    """A decoded observation, checked. Raises `WireError`."""
    if not isinstance(value, dict):
        raise WireError(f"an observation is a map with {', '.join(NAMES[c] for c in cameras)} and {PROMPT}")
    kind = value.get("type")
    if isinstance(kind, str) and kind == "hello":
        raise WireError("this is vla-eval's hello, and it came late; connect to the path /vla-eval")
    return look(value.get(PROMPT), value, NAMES, cameras, limits)


def answer(chunk: NDArray[np.float32], infer_ms: float, prev_total_ms: float | None) -> bytes:
    timing = {"infer_ms": infer_ms} | ({} if prev_total_ms is None else {"prev_total_ms": prev_total_ms})
    return pack({"actions": chunk, "server_timing": timing}, bytes_keys=True)


def observation(look_at: Mapping[str, Any], prompt: str) -> bytes:
    """The client's side: images uint8 [H, W, 3] by camera, as a message."""
    return pack({NAMES[camera]: image for camera, image in look_at.items()} | {PROMPT: prompt}, bytes_keys=True)
