"""BridgeData as it lies on disk, made small: raw folders, and RLDS files written by protobuf and tensorboard."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image
from tensorboard.summary.writer.record_writer import RecordWriter


def states_of(seed: int, moments: int) -> np.ndarray:
    """[n, 7]: a slow walk that begins near half a turn, so that its angles wrap."""
    rng = np.random.default_rng(seed)
    steps = rng.uniform(-0.02, 0.02, (moments, 7))
    steps[0] = [0.3, 0.0, 0.1, 0.0, 0.0, np.pi - 0.005, 0.5]
    steps[1, 5] = 0.01
    states = np.cumsum(steps, axis=0)
    states[:, 3:6] = (states[:, 3:6] + np.pi) % (2 * np.pi) - np.pi
    return states


def image(seed: int, size: int = 24) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((size + 8, size)).save(content, "jpeg")
    return content.getvalue()


def raw_trajectory(
    folder: Path, seed: int, moments: int = 4, words: str = "put the pot on the stove", cameras: Sequence[int] = (0, 1)
) -> Path:
    folder.mkdir(parents=True)
    for camera in cameras:
        (folder / f"images{camera}").mkdir()
        for moment in range(moments):
            (folder / f"images{camera}" / f"im_{moment}.jpg").write_bytes(image(100 * seed + 10 * camera + moment))
    states = states_of(seed, moments)
    observed = {"full_state": states, "time_stamp": np.arange(moments, dtype=float), "eef_transform": np.eye(4)}
    (folder / "obs_dict.pkl").write_bytes(pickle.dumps(observed))
    actions = [
        {"actions": np.array([0.0] * 6 + [float(moment % 2)]), "policy_type": "x"} for moment in range(moments - 1)
    ]
    (folder / "policy_out.pkl").write_bytes(pickle.dumps(actions))
    if words:
        (folder / "lang.txt").write_text(f"{words}\nconfidence: 1\n")
    return folder


@cache
def example_class() -> Any:
    """tf.train.Example, as feature.proto has it."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    kind = descriptor_pb2.FieldDescriptorProto

    def message(name: str, *fields: tuple[str, int, int, str]) -> Any:
        made = file.message_type.add(name=name)
        for field, number, of, type_name in fields:
            label = kind.LABEL_REPEATED if field in ("value", "feature") else kind.LABEL_OPTIONAL
            made.field.add(name=field, number=number, type=of, label=label, type_name=type_name or None)
        return made

    message("BytesList", ("value", 1, kind.TYPE_BYTES, ""))
    message("FloatList", ("value", 1, kind.TYPE_FLOAT, ""))
    message("Int64List", ("value", 1, kind.TYPE_INT64, ""))
    one = message(
        "Feature",
        *(
            (f"{n}_list", i, kind.TYPE_MESSAGE, f".t.{t}List")
            for i, (n, t) in enumerate((("bytes", "Bytes"), ("float", "Float"), ("int64", "Int64")), 1)
        ),
    )
    one.oneof_decl.add(name="kind")
    for field in one.field:
        field.oneof_index = 0
    features = message("Features", ("feature", 1, kind.TYPE_MESSAGE, ".t.Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.field.add(name="key", number=1, type=kind.TYPE_STRING, label=kind.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=kind.TYPE_MESSAGE, label=kind.LABEL_OPTIONAL, type_name=".t.Feature")
    entry.options.map_entry = True
    message("Example", ("features", 1, kind.TYPE_MESSAGE, ".t.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


def example(values: Mapping[str, Any]) -> bytes:
    """Lists of bytes, float arrays and integer lists, serialised by protobuf."""
    made = example_class()()
    for name, value in values.items():
        feature = made.features.feature[name]
        if isinstance(value, np.ndarray):
            feature.float_list.value.extend(value.ravel().tolist())
        elif value and isinstance(value[0], bytes):
            feature.bytes_list.value.extend(value)
        else:
            feature.int64_list.value.extend(value)
    return bytes(made.SerializeToString())


def rlds_episode(seed: int, moments: int = 4, words: str = "open the drawer") -> dict[str, Any]:
    actions = np.zeros((moments, 7), dtype=np.float32)
    actions[:, 6] = np.arange(moments) % 2
    return {
        "steps/observation/state": states_of(seed, moments).astype(np.float32),
        "steps/action": actions,
        "steps/observation/image_0": [image(100 * seed + m) for m in range(moments)],
        "steps/observation/image_1": [image(100 * seed + 10 + m) for m in range(moments)],
        "steps/language_instruction": [words.encode()] * moments,
        "steps/is_first": [1] + [0] * (moments - 1),
        "episode_metadata/has_image_0": [1],
        "episode_metadata/has_image_1": [seed % 2],
        "episode_metadata/episode_id": [-seed - 1],
    }


def open_x_episode(seed: int, moments: int = 4) -> dict[str, Any]:
    """As Open X-Embodiment's ``bridge`` names it."""
    whole = rlds_episode(seed, moments)
    return {
        "steps/observation/state": whole["steps/observation/state"],
        "steps/observation/image": whole["steps/observation/image_0"],
        "steps/observation/natural_language_instruction": whole["steps/language_instruction"],
        "steps/action/world_vector": np.zeros((moments, 3), dtype=np.float32),
        "steps/action/open_gripper": [m % 2 for m in range(moments)],
    }


def rlds_files(root: Path, shards: Sequence[Sequence[bytes]], name: str = "bridge_dataset") -> Path:
    """A TFDS folder with one split, train."""
    root.mkdir(parents=True)
    for number, contents in enumerate(shards):
        with (root / f"{name}-train.tfrecord-{number:05d}-of-{len(shards):05d}").open("wb") as file:
            writer = RecordWriter(file)
            for content in contents:
                writer.write(content)
    lengths = [str(len(contents)) for contents in shards]
    info = {"name": name, "version": "1.0.0", "splits": [{"name": "train", "shardLengths": lengths}]}
    (root / "dataset_info.json").write_text(json.dumps(info))
    (root / "features.json").write_text(json.dumps({"pythonClassName": "FeaturesDict"}))
    return root
