"""Conversations about pictures, from LLaVA's json: a list of records like

    {"image": "coco/train2017/000000033471.jpg",
     "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A bus."}, ...]}

Records that cannot be learned from by looking (no picture, or one that is not there, or no answer) are counted and
named at start, then left out or refused; no picture is ever made up.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import Dataset

from models.images import ClipImageSpec, clip_pixels
from models.prompting import ASSISTANT, HUMAN, Prompter
from training.data.batch import TextSample
from training.data.files import LLAVA_NAME, iterate_json_list, read_image
from training.data.strings import Strings

INDEX_NAME = LLAVA_NAME
NAMED = 5  # how many records are named per reason

OnBadImage = Literal["skip", "error"]

logger = logging.getLogger(__name__)


@dataclass
class Skipped:
    """Records left out: reason -> how many, and the first few by name."""

    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        named = self.names.setdefault(reason, [])
        if len(named) < NAMED:
            named.append(name)

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __str__(self) -> str:
        return "; ".join(
            f"{count} {reason} ({', '.join(self.names[reason])}{', ...' if count > NAMED else ''})"
            for reason, count in self.counts.items()
        )


class LlavaDataset(Dataset[TextSample]):
    """One sample for each usable record, in the order of the file.

    Args:
        path: the json file, or a folder with ``llava_v1_5_mix665k.json``.
        prompter: renders conversations; ``<image>`` is taken out of every turn, and the answer mask comes by
            construction, so that an answer with "ASSISTANT:" inside is still learned where it belongs.
        image_spec: how CLIP wants its pictures; None: pictures are not opened, pixels are [3, 0, 0].
        max_ids: a conversation is cut to this many ids, from the front; what is cut off is not learned.
        image_root: folder that ``image`` paths are relative to; the json's folder if None.
        on_bad_image: "skip" leaves out records without a usable picture or conversation, with one warning that counts
            and names them; "error" refuses the file. A picture that exists but cannot be decoded is found only when its
            turn comes: then "skip" gives the next record instead (the same one at every resume) and says so.

    Raises ValueError or FileNotFoundError naming the file and the record.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        prompter: Prompter,
        image_spec: ClipImageSpec | None,
        max_ids: int,
        image_root: str | os.PathLike[str] | None = None,
        on_bad_image: OnBadImage = "skip",
    ) -> None:
        if max_ids < 1:
            raise ValueError(f"max_ids must be at least 1, is {max_ids}")
        self.path = Path(path) / INDEX_NAME if Path(path).is_dir() else Path(path)
        self.prompter = prompter
        self.image_spec = image_spec
        self.max_ids = max_ids
        self.image_root = Path(image_root) if image_root is not None else self.path.parent
        self.on_bad_image = on_bad_image
        self.skipped = Skipped()
        self.replaced: set[int] = set()  # samples found unusable while training, in this process
        self._images, self._turns = Strings(), Strings()
        self._read()

    def _read(self) -> None:
        folders = _Folders(self.image_root)
        records = 0
        for number, record in enumerate(iterate_json_list(self.path)):
            records += 1
            reason = self._unusable(record, folders)
            if reason is None:
                self._images.append(record["image"])
                self._turns.append(json.dumps([[turn["from"], turn["value"]] for turn in record["conversations"]]))
                continue
            name = f"record {number}" + (f" {record['image']!r}" if isinstance(record.get("image"), str) else "")
            if self.on_bad_image == "error":
                raise ValueError(f"{self.path}: {name} is unusable: {reason}")
            self.skipped.add(reason, name)
        if not len(self):
            raise ValueError(f"{self.path} has no usable record: {self.skipped or 'it is empty'}")
        if self.skipped:
            logger.warning("%s: %d of %d records left out: %s", self.path, len(self.skipped), records, self.skipped)

    def _unusable(self, record: dict[str, Any], folders: _Folders) -> str | None:
        image = record.get("image")
        if image is None:
            return "without a picture"
        turns = record.get("conversations")
        if not isinstance(image, str) or not _is_conversation(turns):
            return "without a question and answer in turn"
        if self.image_spec is not None and not folders.has(image):
            return "whose picture does not exist"
        return None

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> TextSample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        for distance in range(len(self)):
            candidate = (index + distance) % len(self)
            try:
                return self._sample(candidate)
            except (ValueError, FileNotFoundError) as error:
                if self.on_bad_image == "error":
                    raise
                if candidate not in self.replaced:
                    self.replaced.add(candidate)
                    logger.warning("left out, number %d, the next one instead: %s", len(self.replaced), error)
        raise ValueError(f"{self.path}: no record can be used any more")

    def _sample(self, index: int) -> TextSample:
        turns = [(speaker, text) for speaker, text in json.loads(self._turns[index])]
        conversation = self.prompter.conversation(turns)
        ids, answer = conversation.ids[: self.max_ids], conversation.answer[: self.max_ids]
        path = self.image_root / self._images[index]
        if not any(answer):
            raise ValueError(f"{self.path}: the conversation about {path} has no answer in its first {len(ids)} ids")
        if self.image_spec is None:
            pixels = torch.empty(3, 0, 0)
        else:
            pixels = clip_pixels(read_image(path), self.image_spec)
        return TextSample(ids=ids, answer=answer, pixels=pixels, index=index)


def _is_conversation(turns: Any) -> bool:
    """Texts of human and gpt in turn, at least one of each, after an opening turn of gpt's is left out."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return False
    if not all(isinstance(turn.get("value"), str) for turn in turns):
        return False
    speakers = [turn.get("from") for turn in turns]
    if speakers and speakers[0] != HUMAN:
        speakers = speakers[1:]
    return len(speakers) >= 2 and all(who == (HUMAN, ASSISTANT)[i % 2] for i, who in enumerate(speakers))


class _Folders:
    """Does a file exist? Asked once for each folder, not for each of half a million files."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[str, frozenset[str]] = {}

    def has(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(self._root / folder))
            except (FileNotFoundError, NotADirectoryError):
                self._names[folder] = frozenset()
        return name in self._names[folder]
