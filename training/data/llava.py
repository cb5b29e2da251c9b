"""Conversations about images, from LLaVA's json: a list of records like

    {"image": "coco/train2017/000000033471.jpg",
     "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A bus."}, ...]}

Unusable records (a missing image, no answer) are counted by reason and folder, named at start, and then left out or
refused. Records without an image are used as text or left out. No image is ever made up. A list of one image is that
image.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from common.text import check_text, shortened
from config.schema import OnBadRecord, TextOnly
from models.processing.image import ClipImageSpec, clip_pixels
from models.processing.text import ASSISTANT, HUMAN, IMAGE_MARK, Prompter
from training.data.batch import TextSample
from training.data.caches.clip_cache import ImageFeatures
from training.data.formats.strings import Strings
from training.data.readers import LLAVA_NAME, iterate_json_values, read_image

INDEX_NAME = LLAVA_NAME
NAMED = 5
"""Records that are named per reason."""
FOLDERS = 8
"""Folders that are counted in a line."""
MAX_SKIPPED = 1000
"""Consecutive unusable records after which the error is not in single records."""

TEXT_ALONE = "no image"
"""Folder name for records without an image."""
NO_IMAGE = "without an image (dataset.params.text_only=use learns from them)"
MISSING_IMAGE = "whose image does not exist"
MARK_WITHOUT_IMAGE = "with an <image> mark but no image"
SEVERAL_IMAGES = "with several images"
NO_PATH = "whose image is not named by a path"
MORE_MARKS = "with more <image> marks than images"
NOT_AN_OBJECT = "that are no JSON objects"
NO_CONVERSATION = "without a question and answer in turn"
EMPTY_ANSWER = "with an empty answer"
NOT_UNICODE = "with text that is not valid Unicode (half of a surrogate pair, such as half an emoji)"
NOT_FOUND = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)

logger = logging.getLogger(__name__)


@dataclass
class Skipped:
    """Records left out at start: reason -> count per folder, and the names of the first few."""

    folders: dict[str, Counter[str]] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str, folder: str) -> None:
        """Count a record."""
        self.folders.setdefault(reason, Counter())[folder] += 1
        named = self.names.setdefault(reason, [])
        if len(named) < NAMED:
            named.append(name)

    @property
    def counts(self) -> dict[str, int]:
        """Number of records per reason."""
        return {reason: folders.total() for reason, folders in self.folders.items()}

    def __len__(self) -> int:
        return sum(self.counts.values())

    def lines(self) -> list[str]:
        """Return a line for each reason."""
        return [
            f"{count} {reason} [{_counted(self.folders[reason])}]: "
            f"{', '.join(self.names[reason])}{', ...' if count > NAMED else ''}"
            for reason, count in self.counts.items()
        ]


class LeftOut:
    """Samples that were found unusable or cut while they were read; each is logged once."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._cut: set[int] = set()

    def report(self, found: Iterable[tuple[int, str]]) -> None:
        """Log unusable samples. ``found``: (index of the sample, reason)."""
        for index, reason in found:
            if index not in self._seen:
                self._seen.add(index)
                logger.warning("left out, number %d of this process, the next one instead: %s", len(self._seen), reason)

    def report_cut(self, found: Iterable[tuple[int, int]]) -> None:
        """Count conversations that were cut, and log the first. ``found``: (index of the sample, ids cut off)."""
        for index, ids in found:
            if not self._cut:
                logger.warning(
                    "usable conversation %d is cut by %d ids, which are not trained on: it is longer than "
                    "dataset.preprocessing.max_seq_length allows; others are counted, and the number is logged at the "
                    "end of the run",
                    index,
                    ids,
                )
            self._cut.add(index)

    @property
    def cut(self) -> int:
        """Number of conversations that were cut."""
        return len(self._cut)

    def __len__(self) -> int:
        return len(self._seen)


class LlavaDataset(Dataset[TextSample]):
    """One sample for each usable record, in the order of the file.

    Args:
        path: the json file, or a folder with ``llava_v1_5_mix665k.json``.
        prompter: renders conversations. ``<image>`` is removed from every turn. The answer mask does not depend on the
            text, so that an answer may contain "ASSISTANT:".
        image_spec: CLIP's image preparation; None: images are not opened, pixels are [3, 0, 0].
        max_ids: a conversation is cut after this many ids.
        image_root: folder that ``image`` paths are relative to; the json's folder if None.
        on_bad_record: "skip" leaves out records with a missing image, without a conversation, with an empty answer,
            with more ``<image>`` marks than images, or with invalid Unicode, and ``summary`` counts and names them;
            "error" refuses the file. An image that cannot be decoded, and an answer that is cut off completely, are
            found only when they are read: then "skip" gives the next record instead (the same one at every resume)
            and records it in ``TextSample.left_out``.
        text_only: "use" makes samples of records that have no image and no ``<image>`` mark; "skip" leaves them out.
        features: cached CLIP patches of the images: then no image is opened or has to exist, and
            ``TextSample.pixels`` are [P, C].

    Raises ValueError or FileNotFoundError naming the file and the record.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        prompter: Prompter,
        image_spec: ClipImageSpec | None,
        max_ids: int,
        image_root: str | os.PathLike[str] | None = None,
        on_bad_record: OnBadRecord = "skip",
        text_only: TextOnly = "skip",
        features: ImageFeatures | None = None,
    ) -> None:
        if max_ids < 1:
            raise ValueError(f"max_ids must be at least 1, is {max_ids}")
        self.path = Path(path) / INDEX_NAME if Path(path).is_dir() else Path(path)
        self.prompter = prompter
        self.image_spec = image_spec
        self.max_ids = max_ids
        self.image_root = Path(image_root) if image_root is not None else self.path.parent
        self.on_bad_record = on_bad_record
        self.text_only = text_only
        self.features = features
        self.skipped = Skipped()
        self.used: Counter[str] = Counter()  # folder of the image -> usable records
        self._images, self._turns = Strings(), Strings()  # image "": none
        self._records = array("Q")  # number of each usable record in the file
        self._read()

    def _read(self) -> None:
        folders = _Folders(self.image_root)
        for number, record in enumerate(iterate_json_values(self.path)):
            reason, image = self._unusable(record, folders), image_of(record)
            folder = _folder_of(image)
            if reason is None:
                assert isinstance(image, str)
                self.used[folder] += 1
                self._images.append(image)
                self._turns.append(json.dumps([[turn["from"], turn["value"]] for turn in record["conversations"]]))
                self._records.append(number)
                continue
            name = f"record {number} {image!r}" if image and isinstance(image, str) else f"record {number}"
            if self.on_bad_record == "error" and reason != NO_IMAGE:
                raise ValueError(
                    f"{self.path}: {name} is unusable: {reason}; dataset.params.on_bad_record=skip leaves such out"
                )
            self.skipped.add(reason, name, folder)
        if not len(self):
            raise ValueError(f"{self.path} has no usable record: {'; '.join(self.skipped.lines()) or 'it is empty'}")

    def _unusable(self, record: Any, folders: _Folders) -> str | None:
        if not isinstance(record, dict):
            return NOT_AN_OBJECT
        image, turns = image_of(record), record.get("conversations")
        if isinstance(image, list) and len(image) > 1:
            return SEVERAL_IMAGES
        if not _is_conversation(turns):
            return NO_CONVERSATION
        if not isinstance(image, str):
            return NO_PATH
        if (reason := _unusable_text(record["conversations"], image)) is not None:
            return reason
        if not image:
            return None if self.text_only == "use" else NO_IMAGE
        if self.features is not None and image in self.features:
            return None
        if self.image_spec is not None and not folders.has(image):
            return MISSING_IMAGE
        if self.features is not None:
            raise ValueError(
                f"{self.path}: {image} is not among the patches in {self.features.folder}. Make them: "
                f"{self.features.remake} (or encode images in every step: dataset.params.clip_cache=false)"
            )
        return None

    def summary(self) -> list[str]:
        """Return lines for the log: the records of the file, and those that are left out with the reason."""
        return [
            f"{self.path}: {len(self) + len(self.skipped)} records, {len(self)} usable [{_counted(self.used)}]",
            *(f"  left out: {line}" for line in self.skipped.lines()),
            *([] if self.features is None else [f"  {self.features.describe()}"]),
        ]

    def image_and_answers(self, index: int) -> tuple[Path, dict[str, str]]:
        """Return the image file of a record that has one, and question -> answer of all records about it."""
        image, found = self._images[index], dict[str, str]()
        for other in range(len(self)):
            if self._images[other] == image:
                spoken = json.loads(self._turns[other])
                turns = [text for _, text in spoken[spoken[0][0] != HUMAN :]]  # as the prompter reads them
                for question, answer in zip(turns[::2], turns[1::2], strict=False):
                    found.setdefault(question.replace(IMAGE_MARK, "").strip(), answer.strip())
        return self.image_root / image, found

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> TextSample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        left_out: list[tuple[int, str]] = []
        for distance in range(min(len(self), MAX_SKIPPED)):
            candidate = (index + distance) % len(self)
            try:
                return replace(self._sample(candidate), left_out=tuple(left_out))
            except (ValueError, OSError, MemoryError) as error:
                reason = f"{self.path}: record {self._records[candidate]}: {error or type(error).__name__}"
                if self.on_bad_record == "error":
                    raise ValueError(f"{reason}; dataset.params.on_bad_record=skip leaves such out") from error
                left_out.append((candidate, reason))
        raise ValueError(
            f"{self.path}: {len(left_out)} records in a row, all that were tried, cannot be used; the first: "
            f"{left_out[0][1]}"
        )

    def _sample(self, index: int) -> TextSample:
        turns = [(speaker, text) for speaker, text in json.loads(self._turns[index])]
        conversation = self.prompter.conversation(turns)
        ids, answer = conversation.ids[: self.max_ids], conversation.answer[: self.max_ids]
        cut = len(conversation.ids) - len(ids)
        image = self._images[index]
        if not any(answer):
            raise ValueError(
                f"the conversation {shortened(turns[0][1])} has no answer in its first {len(ids)} ids, which is all "
                "that dataset.preprocessing.max_seq_length allows"
            )
        pixels = None
        if image and self.features is not None:
            pixels = self.features[image]
        elif image:
            spec = self.image_spec
            pixels = torch.empty(3, 0, 0) if spec is None else clip_pixels(read_image(self.image_root / image), spec)
        return TextSample(ids=ids, answer=answer, pixels=pixels, index=index, cut=cut)


def image_of(record: Any) -> Any:
    """Return the path of a record's image, "" if it has none; other values are returned unchanged.

    A list of one image is that image.
    """
    image = record.get("image") if isinstance(record, dict) else None
    if isinstance(image, list) and len(image) < 2:
        image = image[0] if image else ""
    return "" if image is None else image


def _is_conversation(turns: Any) -> bool:
    """Return True for texts of human and gpt in turn, at least one of each, after an optional first turn of gpt."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return False
    if not all(isinstance(turn.get("value"), str) for turn in turns):
        return False
    speakers = [turn.get("from") for turn in turns]
    if speakers and speakers[0] != HUMAN:
        speakers = speakers[1:]
    return len(speakers) >= 2 and all(speaker == (HUMAN, ASSISTANT)[i % 2] for i, speaker in enumerate(speakers))


def _unusable_text(turns: list[dict[str, Any]], image: str) -> str | None:
    """Return why the text of a conversation about ``image`` ("": none) is unusable, or None."""
    marks = sum(turn["value"].count(IMAGE_MARK) for turn in turns)
    if marks > bool(image):
        return MORE_MARKS if image else MARK_WITHOUT_IMAGE
    answers = (turn["value"] for number, turn in enumerate(turns) if number and turn["from"] == ASSISTANT)
    if not all(answer.replace(IMAGE_MARK, "").strip() for answer in answers):
        return EMPTY_ANSWER
    try:
        for text in (image, *(turn["value"] for turn in turns)):
            check_text(text)
    except ValueError:
        return NOT_UNICODE
    return None


def _folder_of(image: Any) -> str:
    """Return the first folder of an image's path, by which records are counted (in LLaVA's mix it is the data set)."""
    if not isinstance(image, str) or not image:
        return TEXT_ALONE if image == "" else "?"
    parts = Path(image.encode("utf-8", "backslashreplace").decode()).parts
    return parts[0] if len(parts) > 1 else "."


def _counted(folders: Counter[str]) -> str:
    shown = ", ".join(f"{folder} {count}" for folder, count in folders.most_common(FOLDERS))
    return shown if len(folders) <= FOLDERS else f"{shown} and {len(folders) - FOLDERS} more"


class _Folders:
    """Check whether files exist by listing each folder once, not by a call for each of half a million files."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[str, frozenset[str]] = {}

    def has(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(self._root / folder))
            except ValueError:  # no file can have such a name
                self._names[folder] = frozenset()
            except OSError as error:
                if error.errno not in NOT_FOUND:
                    raise ValueError(f"{self._root / folder} cannot be listed ({error.strerror})") from error
                self._names[folder] = frozenset()
        return name in self._names[folder]
