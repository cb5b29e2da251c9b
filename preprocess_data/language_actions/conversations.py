"""Write demonstrations as conversations: a frame and the instruction in the question, the next motion as the answer.

<output>/llava_v1_5_mix665k.json   records in LLaVA's format
<output>/images/*.png              the static camera's frames
<output>/language_actions.json     source, settings, and what the sentences lose of the recorded actions
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.command import progress_bar
from common.files import atomic_path, read_object, write_text
from config.schema import MMU_INDEX
from policy_rollout.benchmarks.processed import ProcessedSplit
from policy_rollout.policies.interface import ActionConvention
from policy_rollout.policies.language_actions import ActionLanguage, LanguageErrors, errors
from training.data.calvin import Annotation, CalvinSplit
from training.data.dataset_spec import read_contract

INFO_NAME = "language_actions.json"
FORMAT = "language_actions/1"


@dataclass(frozen=True)
class Settings:
    """Settings of the conversations.

    ``act_step``: actions per chunk, which has to be that of the model; ``stride``: steps between two frames of a
    window; ``mm``, ``degrees``: resolution; ``max_samples``: 0 for all.
    """

    act_step: int
    stride: int
    mm: float
    degrees: float
    max_samples: int = 0


@dataclass(frozen=True)
class Sample:
    """A start frame with the rest of its window."""

    window: Annotation
    start: int


@dataclass(frozen=True)
class Summary:
    """Number of conversations, number of different sentences, the most frequent with its count, and the errors."""

    conversations: int
    sentences: int
    most_frequent: tuple[str, int]
    errors: LanguageErrors


def convention_of(split: CalvinSplit | ProcessedSplit) -> ActionConvention:
    """Return what the numbers of the split's actions mean."""
    contract = split.contract if isinstance(split, ProcessedSplit) else read_contract(split.path)
    return ActionConvention(**contract.action)


def samples_of(split: CalvinSplit | ProcessedSplit, settings: Settings) -> list[Sample]:
    """Return the start frames of all windows that lie in one recording. Raises ``ValueError`` if there is none."""
    crossing = set(split.crossing(split.annotations))
    windows = [window for window in split.annotations if window not in crossing]
    found = [Sample(window, start) for window in windows for start in window.frames[:: settings.stride]]
    if not found:
        raise ValueError(f"{split.annotation_path} has no window with frames")
    if settings.max_samples and len(found) > settings.max_samples:
        chosen = np.linspace(0, len(found) - 1, settings.max_samples).round().astype(int)
        found = [found[i] for i in chosen]
    return found


def write_conversations(split: CalvinSplit | ProcessedSplit, output: Path, settings: Settings) -> Summary:
    """Write the conversations of a split and return what was written.

    Images that exist are kept, so that a killed run resumes. Raises ``ValueError`` if ``output`` has conversations of
    another source or other settings.
    """
    language = ActionLanguage(convention_of(split), settings.act_step, settings.mm, settings.degrees)
    samples = samples_of(split, settings)
    asked = {"format": FORMAT, "source": str(split.path.resolve()), **asdict(settings)}
    _claim(output, asked)
    (output / "images").mkdir(exist_ok=True)
    records: list[str] = []
    chunks: list[NDArray[np.floating[Any]]] = []
    sentences: Counter[str] = Counter()
    for number, sample in enumerate(progress_bar(samples, desc="language actions", unit="frame")):
        chunk = recorded_chunk(split, sample, settings.act_step)
        sentence = language.describe(chunk)
        image = f"images/{sample.start:07d}.png"
        _write_image(split, sample.start, output / image)
        records.append(json.dumps(_record(number, image, language.question(sample.window.instruction), sentence)))
        chunks.append(chunk)
        sentences[sentence] += 1
    lost = errors(language, chunks)
    write_text(output / MMU_INDEX, "[\n" + ",\n".join(records) + "\n]\n")
    found = Summary(len(records), len(sentences), sentences.most_common(1)[0], lost)
    info = {**asked, "convention": language.convention.to_json(), "conversations": len(records)}
    info |= {
        "sentences": dict(sentences.most_common(20)),
        "different_sentences": len(sentences),
        "errors": asdict(lost),
    }
    write_text(output / INFO_NAME, json.dumps(info, indent=1) + "\n")
    return found


def recorded_chunk(split: CalvinSplit | ProcessedSplit, sample: Sample, act_step: int) -> NDArray[np.floating[Any]]:
    """Return the recorded actions [h, A] from the start frame to the end of the window, at most ``act_step``."""
    stop = min(sample.start + act_step, sample.window.end + 1)
    if isinstance(split, ProcessedSplit):
        return np.asarray(split.index.actions[sample.start : stop])
    frames = range(sample.start, stop)
    return np.stack([split.frame(frame, ["rel_actions"])["rel_actions"] for frame in frames])


def _claim(output: Path, asked: dict[str, Any]) -> None:
    file = output / INFO_NAME
    if file.is_file():
        known = read_object(file)
        for name, value in asked.items():
            if known.get(name) != value:
                raise ValueError(
                    f"--output-dir {output}: has conversations with {name}={known.get(name)!r}, now it is {value!r}; "
                    "give another folder"
                )
        return
    if (output / MMU_INDEX).exists():
        raise ValueError(f"--output-dir {output}: has a {MMU_INDEX} of another command; give another folder")
    write_text(file, json.dumps(asked, indent=1) + "\n")


def _write_image(split: CalvinSplit | ProcessedSplit, frame: int, file: Path) -> None:
    if file.is_file():
        return
    image = np.asarray(split.frame(frame, ["rgb_static"])["rgb_static"])
    with atomic_path(file) as partial:
        Image.fromarray(image).save(partial, format="PNG")


def _record(number: int, image: str, question: str, answer: str) -> dict[str, Any]:
    turns: Sequence[dict[str, str]] = [
        {"from": "human", "value": f"<image>\n{question}"},
        {"from": "gpt", "value": answer},
    ]
    return {"id": number, "image": image, "conversations": turns}
