"""DataProvider: robot demonstrations as training samples. The class to re-implement for your own robot's data.

A provider has ``len(provider)`` and ``provider[i] -> RobotSample`` for every i below it, the same in every process. A
complete example, for episodes that are folders with
``frames.npy`` (uint8 [n, height, width, 3]), ``actions.npy`` ([n, 7]) and ``instruction.txt``:

    class MyRobot(Dataset[RobotSample]):
        def __init__(self, root, act_step, resolution):
            self.act_step, self.resolution = act_step, resolution
            self.episodes = sorted(path.parent for path in Path(root).glob("*/frames.npy"))
            self.actions = [np.load(path / "actions.npy").astype(np.float32) for path in self.episodes]
            self.texts = [(path / "instruction.txt").read_text().strip() for path in self.episodes]
            self.starts = np.cumsum([0] + [len(actions) for actions in self.actions])
            self.episode_of = np.repeat(np.arange(len(self.episodes)), np.diff(self.starts))

        def __len__(self):
            return int(self.starts[-1])

        def __getitem__(self, index):
            episode = self.episode_of[index]
            now = index - self.starts[episode]
            future, actions, is_pad = action_chunk(self.actions[episode], now, self.act_step)
            images = np.load(self.episodes[episode] / "frames.npy", mmap_mode="r")    # reads two frames, not all
            now_view, later = (fit(np.asarray(images[frame]), self.resolution) for frame in (now, future))
            return RobotSample(
                views=torch.from_numpy(now_view[None]),    # [1, 3, R, R]: one camera
                future_views=torch.from_numpy(later[None]),
                instruction=self.texts[episode],
                actions=torch.from_numpy(actions),
                action_is_pad=torch.from_numpy(is_pad),
                index=index,
            )

Name it in ``robot_dataset`` of ``training/data/dataloader.py``, the only place where training creates its provider.
Actions are relative: three of position, three of rotation (scaled so that 1.0 is the largest step of your robot), and
the gripper command, +1 open, -1 closed; another robot declares its ``dim`` and ``groups`` in ``dataset_contract.json``
and sets ``model.vla.action_dim``. For ``model.vla.proprioception=pose`` a sample also has the robot's state of that
frame, ``state=torch.from_numpy(self.states[episode][now])`` from a ``states.npy`` ([n, S], float32), whose ``dim``,
``groups`` and statistics are declared under ``state`` in ``dataset_contract.json``. It is often easier to write
``dataset_info.json`` next to your images (``training/data/episode_index.py`` shows the format) and to use the class
below unchanged.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from common.constants import CAMERAS as CAMERAS
from common.constants import action_layout
from config.schema import ActionKey
from models.processing.image import fit
from training.data.action_chunks import action_chunk, action_chunks
from training.data.batch import RobotBatch, RobotSample
from training.data.caches.token_cache import TokenCache
from training.data.dataset_spec import read_contract
from training.data.episode_index import read_index
from training.data.object_positions import read_positions
from training.data.readers import IMAGE_SUFFIXES, read_image, read_npz


class DataProvider(Dataset[RobotSample]):
    """One sample for each frame of a processed split (a folder with ``dataset_info.json``).

    Args:
        root: the folder.
        act_step: T, actions per chunk and distance in frames of the future view.
        resolution: R, side of the square images in pixels.
        num_view: V, cameras: 1 static, 2 static and gripper. Other cameras are not read.
        tokens: the token cache of this data set. With it samples hold codes in place of images, and no image is
            opened or has to exist.
        action_key: the label: the recorded motion, or what the expert wanted.
        with_positions: samples have the positions of objects, if the data set does (``object_positions.index``).

    The index is mapped from disk (for a small data set: in memory), shared by data workers, and finds a sample in
    constant time. A sample opens the file of its frame and the file of the future frame, once each.

    Raises ValueError or FileNotFoundError naming the file and, where there is one, the episode: at construction for a
    bad ``dataset_info.json`` or an unreadable first frame, later for any other frame.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        act_step: int,
        resolution: int,
        num_view: int,
        tokens: TokenCache | None = None,
        action_key: ActionKey = "rel_actions",
        with_positions: bool = False,
    ) -> None:
        if act_step < 1:
            raise ValueError(f"act_step must be at least 1, is {act_step}")
        if num_view not in (1, 2):
            raise ValueError(f"num_view must be 1 (static camera) or 2 (static and gripper), is {num_view}")
        self.act_step = act_step
        self.resolution = resolution
        self.num_view = num_view
        self.tokens = tokens
        self._texts: dict[int, str] = {}
        self.data = read_index(root, images=tokens is None, action_key=action_key)
        self.positions = read_positions(root, self.data) if with_positions else None
        self.layout = action_layout(read_contract(root).for_actions(self.data.action_dim).action)
        self._chunk_steps = self._steps_of_chunks()
        self.views(0)  # raises for a missing camera before workers start

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> RobotSample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        future, actions, is_pad = self.chunk(index)
        views = self.views(index)
        episode, positions = int(self.data.episode_of[index]), self.positions
        return RobotSample(
            views=views,
            future_views=views if future == index else self.views(future),
            instruction=self.data.instruction(episode),
            actions=torch.from_numpy(actions),
            action_is_pad=torch.from_numpy(is_pad),
            index=index,
            state=None if self.data.states is None else torch.from_numpy(self.data.states[index].copy()),
            positions=None if positions is None else torch.from_numpy(positions.of_frames(np.array([index]))[0]),
            target=-1 if positions is None else int(positions.object_of[episode]),
        )

    def batch(self, indices: Sequence[int]) -> RobotBatch:
        """Return what ``collate_robot`` makes of these samples, gathered at once: images are written to their place in
        the batch, and a frame that occurs several times is read once."""
        now = np.asarray(indices, dtype=np.int64)
        episodes = self.data.episode_of[now]
        future, rows, is_pad = action_chunks(now, self.data.starts[episodes + 1], self.act_step)
        actions = self.data.actions[rows]  # [B, T, A]
        for index in self.layout.motion:
            actions[..., index][is_pad] = 0
        if self._chunk_steps:
            assert self.data.expert_chunks is not None
            actions = self._cut(self.data.expert_chunks[now])
            is_pad = np.zeros_like(is_pad)
        views, later = self._views_of(np.concatenate([now, future])).chunk(2)
        positions = self.positions
        return RobotBatch(
            views=views,
            future_views=later,
            instructions=[self._text(int(number)) for number in self.data.instruction_of[episodes]],
            actions=torch.from_numpy(actions),
            action_is_pad=torch.from_numpy(is_pad),
            indices=torch.from_numpy(now),
            states=None if self.data.states is None else torch.from_numpy(self.data.states[now]),
            positions=None if positions is None else torch.from_numpy(positions.of_frames(now)),
            targets=None if positions is None else torch.from_numpy(positions.object_of[episodes]),
        )

    def _text(self, number: int) -> str:
        """Return a text of the index, decoded once."""
        if number not in self._texts:
            self._texts[number] = self.data.texts[number]
        return self._texts[number]

    def chunk(self, index: int) -> tuple[int, npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Return (index of the future frame, actions [T, A], is_pad [T]) of a sample; opens no file."""
        start, end = self.bounds(index)
        if self._chunk_steps:
            assert self.data.expert_chunks is not None
            actions = self._cut(self.data.expert_chunks[index : index + 1])[0]
            return min(index + self.act_step, end - 1), actions, np.zeros(self.act_step, dtype=np.bool_)
        future, actions, is_pad = action_chunk(
            self.data.actions[start:end], index - start, self.act_step, self.layout.gripper
        )
        return start + future, actions, is_pad

    def _steps_of_chunks(self) -> int:
        """Return C, the actions of a frame's ``expert_chunk``; 0 without. Raises ValueError if C is too small or no
        whole number."""
        if self.data.expert_chunks is None:
            return 0
        size, dim = int(self.data.expert_chunks.array.shape[1]), self.data.action_dim
        steps = size // dim
        if size % dim:
            raise ValueError(
                f"{self.data.path}: 'expert_chunk' has {size} numbers, which are no whole actions of {dim}; make the "
                "data again"
            )
        if steps < self.act_step:
            raise ValueError(
                f"act_step is {self.act_step}, but {self.data.path} holds chunks of {steps} actions; set act_step to "
                f"at most {steps}, or make the data with longer chunks"
            )
        return steps

    def _cut(self, chunks: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the first T actions, [n, T, A], of chunks [n, C * A]."""
        return np.array(chunks.reshape(len(chunks), self._chunk_steps, -1)[:, : self.act_step])

    def bounds(self, index: int) -> tuple[int, int]:
        """Return the first frame of the episode of frame ``index``, and one past its last."""
        episode = self.data.episode_of[index]
        return int(self.data.starts[episode]), int(self.data.starts[episode + 1])

    def views(self, frame: int) -> torch.Tensor:
        """Return the images of one frame, uint8 [V, 3, R, R]; with a token cache their codes, int16 [V, n]."""
        return self._views_of(np.asarray([frame]))[0]

    def _views_of(self, frames: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the images of n frames, uint8 [n, V, 3, R, R], or their codes, int16 [n, V, c]."""
        if self.tokens is not None:
            return torch.from_numpy(self.tokens.codes(frames, self.num_view))
        pixels = np.empty((len(frames), self.num_view, 3, self.resolution, self.resolution), dtype=np.uint8)
        done: dict[int, int] = {}
        for row in np.argsort(frames, kind="stable").tolist():  # a video is decoded forwards
            frame = int(frames[row])
            if done.setdefault(frame, row) != row:
                pixels[row] = pixels[done[frame]]
                continue
            for image, place in zip(self.images(frame), pixels[row], strict=True):
                fit(image, self.resolution, out=place)
        return torch.from_numpy(pixels)

    def images(self, frame: int) -> list[npt.NDArray[np.uint8]]:
        """Return the images of one frame as recorded, uint8 [height, width, 3], one for each view."""
        path = self.data.frame_path(frame)
        if path.suffix == ".npz":
            arrays = read_npz(path, CAMERAS[: self.num_view])
            for name, array in arrays.items():
                if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
                    raise ValueError(
                        f"{path}: {name} must be uint8 [height, width, 3], found {array.dtype} {list(array.shape)}"
                    )
            return list(arrays.values())
        images = [_decode(path)]
        if self.num_view == 2:
            second = self.data.gripper_path(frame)
            if second is None:
                raise ValueError(
                    f"{self.data.path} names one image a frame; for two views add 'gripper_dir' to each frame "
                    "(the same path again if the robot has one camera), or set model.vla.num_view=1"
                )
            images.append(images[0] if second == path else _decode(second))
        return images


def _decode(path: Path) -> npt.NDArray[np.uint8]:
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"{path} is neither an .npz nor an image ({', '.join(IMAGE_SUFFIXES)})")
    return np.asarray(read_image(path))
