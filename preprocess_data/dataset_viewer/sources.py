"""Open a data set of any supported format for the viewer.

To add a format: a class like ``ProcessedSource`` and its opener in ``OPENERS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.constants import CAMERAS
from preprocess_data.dataset_viewer.interface import ACTION_NAMES, EpisodeView, Floats, ImageArray, Label, Source
from preprocess_data.dataset_viewer.robot_sources import open_bridge, open_lerobot
from preprocess_data.dataset_viewer.rollout_source import open_rollouts
from training.data.calvin import Annotation, CalvinSplit, is_split, splits_in
from training.data.dataset_spec import read_contract
from training.data.episode_index import INDEX_NAME, ProcessedIndex, read_index
from training.data.formats import zip_reader
from training.data.formats.strings import Strings
from training.data.llava import image_of
from training.data.readers import LLAVA_NAME, iterate_json_list, npz_shapes, read_image, read_npz

SAMPLED = 1000  # frames whose actions are read if each is a file
RATE = 30.0  # frames a second, of CALVIN and the desk


class RawSource:
    """A raw CALVIN split: its annotated windows or, without annotations, its stretches of play."""

    kind: str = "raw CALVIN split"
    rate: float = RATE
    action_names: tuple[str, ...] = ACTION_NAMES

    def __init__(self, path: Path) -> None:
        self.path = path
        self._split = CalvinSplit(path)

    @cached_property
    def _windows(self) -> tuple[Annotation, ...]:
        if zip_reader.is_file(self._split.annotation_path):
            return self._split.annotations
        if zip_reader.is_file(self.path / "ep_start_end_ids.npy"):
            return tuple(Annotation(first, last, "", None) for first, last in self._split.ranges.tolist())
        ids = self._split.frame_ids
        return (Annotation(int(ids[0]), int(ids[-1]), "", None),)

    def __len__(self) -> int:
        return len(self._windows)

    def labels(self) -> Iterator[Label]:
        return (Label(window.instruction, window.task, len(window.frames)) for window in self._windows)

    def actions(self) -> tuple[Iterator[Floats], str]:
        ids = self._split.frame_ids
        chosen = ids[np.linspace(0, len(ids) - 1, min(SAMPLED, len(ids))).astype(int)]
        of = "all frames" if len(chosen) == len(ids) else f"{len(chosen)} evenly spaced frames of {len(ids)}"
        return (self._action(int(frame))[None] for frame in chosen), of

    def notes(self) -> list[str]:
        return [f"{len(self._split.frame_ids):,} frames on disk, annotated or not"]

    def episode(self, number: int) -> EpisodeView:
        window = self._windows[number]

        def image(camera: str, moment: int) -> ImageArray:
            return self._split.frame(window.start + moment, (camera,))[camera]

        return EpisodeView(
            number=number,
            title=window.instruction or "(no instruction)",
            note=" · ".join(filter(None, [window.task, f"frames {window.start} to {window.end}"])),
            length=len(window.frames),
            cameras=_cameras(self._split.frame_path(window.start)),
            image=image,
            actions=np.stack([self._action(frame) for frame in window.frames]),
            states=self._states(window),
        )

    def _states(self, window: Annotation) -> Floats | None:
        found = [self._split.frame(frame, (), ("robot_obs",)).get("robot_obs") for frame in window.frames]
        present = [state.astype(np.float32) for state in found if state is not None]
        return np.stack(present) if len(present) == len(found) else None

    def _action(self, frame: int) -> Floats:
        return self._split.frame(frame, ("rel_actions",))["rel_actions"].astype(np.float32)


class ProcessedSource:
    """A processed split, listed in dataset_info.json."""

    kind: str = "processed split"
    action_names: tuple[str, ...] = ACTION_NAMES

    def __init__(self, path: Path) -> None:
        self.path = path
        self.index: ProcessedIndex = read_index(path)
        self.rate = float(read_contract(path).action["rate_hz"])  # CALVIN's if none is declared

    def __len__(self) -> int:
        return self.index.episodes

    def labels(self) -> Iterator[Label]:
        lengths = np.diff(np.asarray(self.index.starts))
        return (Label(self.index.instruction(i), self.index.task(i), int(n)) for i, n in enumerate(lengths))

    def actions(self) -> tuple[Iterator[Floats], str]:
        piece = 1 << 18
        return (self.index.actions[start : start + piece] for start in range(0, len(self.index), piece)), "all frames"

    def notes(self) -> list[str]:
        states = self.index.states
        more = [] if states is None else [f"every frame has the robot's state, {states.array.shape[1]} numbers"]
        return [f"frames are stored relative to {self.index.base}", *more]

    def episode(self, number: int) -> EpisodeView:
        index = self.index
        start, end = index.starts[number : number + 2].tolist()
        packed = index.frame_path(start).suffix == ".npz"
        cameras: tuple[str, ...] = ("picture", "hand") if len(index.gripper_frames) else ("picture",)
        if packed:
            cameras = _cameras(index.frame_path(start))

        def image(camera: str, moment: int) -> ImageArray:
            path = index.frame_path(start + moment)
            if packed:
                return _rgb(path, camera, read_npz(path, (camera,))[camera])
            hand = index.gripper_path(start + moment)
            return np.asarray(read_image(hand if camera == "hand" and hand is not None else path))

        return EpisodeView(
            number=number,
            title=index.instruction(number) or "(no instruction)",
            note=" · ".join(filter(None, [index.task(number), f"samples {start} to {end - 1}"])),
            length=end - start,
            cameras=cameras,
            image=image,
            actions=index.actions[start:end],
            states=None if index.states is None else index.states[start:end],
        )


class ConversationSource:
    """Conversations about images in LLaVA's json format."""

    kind: str = "conversations about images"
    rate: float = 0.0
    action_names: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path / LLAVA_NAME if path.is_dir() else path
        self._images, self._turns, self._ids = Strings(), Strings(), Strings()
        self._imageless = 0
        for number, record in enumerate(iterate_json_list(self._file)):
            turns, image = record.get("conversations"), image_of(record)
            if not isinstance(turns, list) or not all(_is_turn(turn) for turn in turns):
                expected = "has no 'conversations' of turns with 'from' and 'value'"
                raise ValueError(f"{self._file}: record {number} {expected}")
            self._imageless += image == ""
            self._images.append(_printable(image) if isinstance(image, str) else "")
            self._turns.append(_printable("\0".join(f"{turn['from']}\1{turn['value']}" for turn in turns)))
            self._ids.append(_printable(str(record.get("id", ""))))
        if not len(self._images):
            raise ValueError(f"{self._file} holds no record")

    def __len__(self) -> int:
        return len(self._images)

    def labels(self) -> Iterator[Label]:
        for number in range(len(self)):
            first = self._question(number).partition("\n")[0]
            folder = self._images[number].partition("/")[0]
            yield Label(first, folder or None, len(self._conversation(number)))

    def actions(self) -> tuple[Iterator[Floats], str]:
        return iter(()), "there are none"

    def notes(self) -> list[str]:
        return [f"{self._imageless} records without an image"] if self._imageless else []

    def episode(self, number: int) -> EpisodeView:
        image = self._images[number]
        return EpisodeView(
            number=number,
            title=self._question(number) or "(no text)",
            note=" · ".join(filter(None, [f"record {number}", self._ids[number], image or "without an image"])),
            length=1,
            cameras=("picture",) if image else (),
            image=lambda camera, moment: np.asarray(read_image(self._file.parent / image)),
            turns=tuple((who, text.replace("<image>", "").strip()) for who, text in self._conversation(number)),
        )

    def _question(self, number: int) -> str:
        return next((text for _, text in self._conversation(number)), "").replace("<image>", "").strip()

    def _conversation(self, number: int) -> list[tuple[str, str]]:
        turns = [turn.partition("\1") for turn in self._turns[number].split("\0") if turn]
        return [(who, text) for who, _, text in turns]


def _printable(text: str) -> str:
    """Return the text with unpaired surrogates escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str)


def _cameras(path: Path) -> tuple[str, ...]:
    present = npz_shapes(path)
    return tuple(name for name in CAMERAS if name in present)


def _rgb(path: Path, camera: str, array: npt.NDArray[Any]) -> ImageArray:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(f"{path}: {camera} must be uint8 [height, width, 3], found {array.dtype} {list(array.shape)}")
    return array


def _raw(path: Path) -> Source | None:
    return RawSource(path) if is_split(path) else None


def _processed(path: Path) -> Source | None:
    tfds = (path / "features.json").is_file()  # TFDS has a dataset_info.json of its own
    return ProcessedSource(path) if (path / INDEX_NAME).is_file() and not tfds else None


def _conversations(path: Path) -> Source | None:
    named = path.suffix == ".json" and path.is_file() and path.name != INDEX_NAME
    return ConversationSource(path) if named or (path / LLAVA_NAME).is_file() else None


OPENERS: list[Callable[[Path], Source | None]] = [
    _processed,
    _conversations,
    _raw,
    open_lerobot,
    open_rollouts,
    open_bridge,
]


def open_source(path: Path) -> Source:
    """Return the data set at ``path``. Raise ValueError or FileNotFoundError naming the formats that can be read."""
    if path.name == INDEX_NAME:
        path = path.parent
    if not path.exists() and not zip_reader.is_folder(path):
        raise FileNotFoundError(f"{path} does not exist")
    for opener in OPENERS:
        source = opener(path)
        if source is not None:
            return source
    below = [str(path / name) for name in splits_in(path)]
    hint = f"; did you mean {' or '.join(below)}?" if below else ""
    formats = f"{INDEX_NAME}, {LLAVA_NAME}, episode_*.npz, meta/info.json, results.json, obs_dict.pkl or features.json"
    raise ValueError(f"{path} is no data set that is read here ({formats}){hint}")
