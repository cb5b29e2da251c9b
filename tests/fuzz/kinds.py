"""Every kind of file that the code reads: how a good one is made, and who reads it.

A reader gets the path, and returns something comparable. To add a kind: a line in ``kinds``.
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as save_safetensors

from config.loading import load_job
from models.pretrained.model_io import load_folder, save_folder
from models.pretrained.weights_io import read_weights
from models.processing.image import ClipImageSpec
from models.processing.text import load_tokenizer
from models.vision.clip_encoder import load_clip
from models.vision.magvitv2 import load_magvit
from policy_rollout.policies.model_yaml import load_model_yaml
from preprocess_data.dataset_viewer.sources import ConversationSource
from scripts.summarize_offline_eval_json import COLUMNS
from scripts.summarize_offline_eval_json import read as read_results
from tests.data.builders import annotation_content, frame_arrays
from tests.fuzz.robots import place, robot_files
from tests.tiny import tiny_model
from training.checkpointing.manifest import open_checkpoint
from training.data.calvin import CalvinSplit
from training.data.episode_index import BINARY_NAME, INDEX_NAME, build_index, read_index
from training.data.formats import zip_reader
from training.data.readers import iterate_json_list, npz_shapes, read_image, read_npy, read_pickled_npy

ROOT = Path(__file__).resolve().parents[2]
Reader = Callable[[Path], Any]


@dataclass(frozen=True)
class Kind:
    """``name``: what is damaged; ``good``: its bytes; ``file``: the name it has to have; ``read``: gets its path."""

    name: str
    good: bytes
    file: str
    read: Reader
    prepare: Callable[[Path], None] | None = None  # puts into the folder what the reader needs besides
    also: str = ""  # what an error may say instead of the file's name
    checked: bool = False  # the format has checksums all over: what reads without complaint must be unchanged


def kinds() -> list[Kind]:
    return [*_frames(), *_lists(), *_settings(), *_models(), *robot_kinds()]


# ------------------------------------------------------------------------------------------------------- data of robots
def _frames() -> list[Kind]:
    arrays = frame_arrays(3)
    npz, plain = io.BytesIO(), io.BytesIO()
    np.savez_compressed(npz, **arrays)
    np.savez(plain, **arrays)
    ranges, annotations = io.BytesIO(), io.BytesIO()
    np.save(ranges, np.array([[0, 4], [7, 9]]))
    np.save(annotations, np.array(annotation_content([(0, 3), (2, 4)]), dtype=object), allow_pickle=True)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made:
        for number in range(3):
            made.writestr(f"D/training/episode_{number:07d}.npz", npz.getvalue())
        made.writestr("D/training/ep_start_end_ids.npy", ranges.getvalue())
    images = {}
    for suffix, settings in {"png": {}, "jpg": {"quality": 90}, "webp": {"lossless": True}, "bmp": {}}.items():
        content = io.BytesIO()
        Image.fromarray(arrays["rgb_static"]).save(content, {"jpg": "jpeg"}.get(suffix, suffix), **settings)
        images[suffix] = content.getvalue()
    keys = ("rgb_static", "rgb_gripper", "actions", "rel_actions", "robot_obs", "scene_obs")
    return [
        Kind(
            "npz (compressed frame)",
            npz.getvalue(),
            "episode_0000003.npz",
            lambda path: _frame(path, keys),
            checked=True,
        ),
        Kind(
            "npz (stored frame)", plain.getvalue(), "episode_0000003.npz", lambda path: _frame(path, keys), checked=True
        ),
        Kind("npz (headers)", npz.getvalue(), "frame.npz", npz_shapes),
        Kind("npy (numbers)", ranges.getvalue(), "ep_start_end_ids.npy", lambda path: CalvinSplit(path.parent).ranges),
        Kind("npy (bare)", ranges.getvalue(), "table.npy", read_npy),
        Kind("npy (pickled)", annotations.getvalue(), "auto_lang_ann.npy", read_pickled_npy),
        Kind("npy (annotations)", annotations.getvalue(), "auto_lang_ann.npy", _annotations),
        Kind("zip (split)", packed.getvalue(), "task_D_D.zip", _zipped, checked=True),
        *(
            Kind(suffix, content, f"image.{suffix}", _image, checked=suffix == "png")
            for suffix, content in images.items()
        ),
    ]


def _frame(path: Path, keys: tuple[str, ...]) -> Any:
    return CalvinSplit(path.parent).frame(3, keys)


def _annotations(path: Path) -> Any:
    folder = path.parent / "lang_annotations"
    folder.mkdir(exist_ok=True)
    (folder / path.name).write_bytes(path.read_bytes())
    return CalvinSplit(path.parent).annotations


def _zipped(path: Path) -> Any:
    split = CalvinSplit(path / "D" / "training")
    found: dict[Any, Any] = {i: split.frame(i, ("rgb_static", "rel_actions")) for i in range(3)}
    found |= {name: zip_reader.archive(path).read(name) for name in ("D/training/episode_0000001.npz",)}
    return found, split.ranges


def _image(path: Path) -> Any:
    return np.asarray(read_image(path))


# ---------------------------------------------------------------------------------------------------- lists and indices
def _lists() -> list[Kind]:
    episodes = [
        {
            "instruction": f"do thing {episode}",
            "task": "thing",
            "frames": [
                {"dir": "a.npz", "rel_action": [0.25 * number] * 7, "abs_action": [0.0] * 7} for number in range(4)
            ],
        }
        for episode in range(3)
    ]
    listed = json.dumps(episodes, indent=1).encode()
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A drawer, ünd more."}]
    talks = json.dumps([{"image": f"{n}.jpg", "conversations": talk} for n in range(4)], ensure_ascii=False).encode()

    def frames(folder: Path) -> None:
        (folder / "a.npz").touch()

    def with_json(folder: Path) -> None:
        frames(folder)
        (folder / INDEX_NAME).write_bytes(listed)
        build_index(folder)

    return [
        Kind("json (dataset_info)", listed, INDEX_NAME, lambda path: _index(path.parent), prepare=frames),
        Kind("index (binary)", _built(listed), BINARY_NAME, _binary, prepare=with_json, checked=True),
        Kind("json (list of records)", talks, "records.json", lambda path: list(iterate_json_list(path))),
        Kind("json (conversations)", talks, "talks.json", _talks),
    ]


def _index(folder: Path) -> Any:
    index = read_index(folder)
    texts = [index.instruction(i) for i in range(index.episodes)] + [index.frames[i] for i in range(len(index))]
    return np.asarray(index.starts), np.asarray(index.actions), np.asarray(index.episode_of), texts


def _binary(path: Path) -> Any:
    return _index(path.parent)


def _built(listed: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / INDEX_NAME).write_bytes(listed)
        build_index(folder)
        return (folder / BINARY_NAME).read_bytes()


def _talks(path: Path) -> Any:
    source = ConversationSource(path)
    return [source.episode(number).turns for number in range(len(source))]


# ------------------------------------------------------------------------------------------------------------- settings
def _settings() -> list[Kind]:
    config = (ROOT / "config" / "tiny_arvla.yaml").read_bytes()
    model = (ROOT / "policy_rollout" / "upvla_model.yaml").read_bytes()
    clip = (ROOT / "assets" / "tiny_clip" / "preprocessor_config.json").read_bytes()
    results = json.dumps({"overall": dict.fromkeys(COLUMNS, 0.5), "per_task": {}}).encode()
    return [
        # An empty configuration is one that leaves everything out: then it is a key that is missing.
        Kind("yaml (run)", config, "run.yaml", _job, also="train_pre_shards_path_or_url has to be given"),
        Kind("yaml (model)", model, "model.yaml", lambda path: repr(load_model_yaml(path, checkpoint=path.parent))),
        Kind("json (CLIP images)", clip, "preprocessor_config.json", lambda path: ClipImageSpec.from_dir(path.parent)),
        Kind("json (results)", results, "results.json", read_results),
    ]


def _job(path: Path) -> Any:
    return repr(load_job([f"config={path}"], paths=False))


# --------------------------------------------------------------------------------------------------------------- models
def _models() -> list[Kind]:
    state = {f"layer.{n}.weight": torch.arange(12.0).reshape(3, 4) + n for n in range(3)}
    pickled, old = io.BytesIO(), io.BytesIO()
    torch.save(state, pickled)
    torch.save(state, old, _use_new_zipfile_serialization=False)
    shards = json.dumps({"metadata": {}, "weight_map": dict.fromkeys(state, "model.safetensors")}).encode()
    content = save_safetensors(state)
    tokenizer = ROOT / "assets" / "tiny_phi"
    saved = saved_model()

    def shard(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(content)

    def model(folder: Path) -> None:
        for name, whole in saved.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(whole)

    def words(folder: Path) -> None:
        for file in tokenizer.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())

    def clip_weights(folder: Path) -> None:
        for name in ("model.safetensors", "preprocessor_config.json"):
            (folder / name).write_bytes((ROOT / "assets" / "tiny_clip" / name).read_bytes())

    def magvit_weights(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes((ROOT / "assets" / "tiny_magvit" / "model.safetensors").read_bytes())

    def state_dir(folder: Path) -> None:
        (folder / "training_state").mkdir(exist_ok=True)

    clip = (ROOT / "assets" / "tiny_clip" / "config.json").read_bytes()
    magvit = (ROOT / "assets" / "tiny_magvit" / "config.json").read_bytes()
    fits = "does not fit the model"  # a changed size is told by the weights, which are of another
    return [
        Kind("json (CLIP)", clip, "config.json", _clip, prepare=clip_weights, also=fits),
        Kind("json (MAGVITv2)", magvit, "config.json", _magvit, prepare=magvit_weights, also=fits),
        Kind("json (checkpoint)", b'{"global_step": 3, "files": {}}', "metadata.json", _checkpoint, prepare=state_dir),
        Kind("safetensors", content, "weights.safetensors", _weights),
        Kind("torch pickle (zip)", pickled.getvalue(), "pytorch_model.bin", _weights),
        Kind("torch pickle (old)", old.getvalue(), "weights.pt", _weights),
        Kind("json (shards)", shards, "model.safetensors.index.json", _weights, prepare=shard),
        Kind("json (model folder)", saved["config.json"], "config.json", _folder, prepare=model),
        Kind(
            "json (tokenizer)", (tokenizer / "tokenizer.json").read_bytes(), "tokenizer.json", _tokenizer, prepare=words
        ),
    ]


@cache
def saved_model() -> dict[str, bytes]:
    """The files of a saved tiny model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_folder(*tiny_model(folder / "language", hidden=8), folder / "model")
        files = [file for file in (folder / "model").rglob("*") if file.is_file()]
        return {str(file.relative_to(folder / "model")): file.read_bytes() for file in files}


def _weights(path: Path) -> Any:
    return {name: tensor.numpy() for name, tensor in read_weights(path).items()}


def _clip(path: Path) -> Any:
    return sorted(load_clip(path.parent).state_dict())


def _magvit(path: Path) -> Any:
    return sorted(load_magvit(path.parent).state_dict())


def _checkpoint(path: Path) -> Any:
    return open_checkpoint(path.parent).step


def _folder(path: Path) -> Any:
    return load_folder(path.parent).model.spec.to_json()


def _tokenizer(path: Path) -> Any:
    tokenizer, words = load_tokenizer(path.parent)
    return words, tokenizer("open the drawer")["input_ids"]


# ------------------------------------------------------------------------------------------------- data of other robots
def robot_kinds() -> list[Kind]:
    return [
        Kind(
            one.name,
            one.good,
            Path(one.file).name,
            one.read,
            prepare=place(one.folder, one.file) if one.folder else None,
            checked=one.checked,
        )
        for one in robot_files()
    ]
