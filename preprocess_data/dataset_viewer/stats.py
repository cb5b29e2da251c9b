"""Compute statistics of a data set: episodes, tasks, sentences, lengths, and the distribution of its actions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preprocess_data.dataset_viewer.interface import Source

BINS = 41  # over [-1.025, 1.025]: one bin is centred on zero
TEXT_ROWS = 12  # tasks and sentences in the text
_UNITS = ((3600, "h"), (60, "min"), (1, "s"))
_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Facts:
    """Statistics of a data set. E: episodes; A: dimensions of an action."""

    kind: str
    path: str
    episodes: int
    moments: int
    rate: float
    lengths: npt.NDArray[np.int64]  # [E]
    tasks: Counter[str]
    instructions: Counter[str]
    action_names: tuple[str, ...]
    actions_of: str  # the frames that the actions below are from
    histogram: npt.NDArray[np.int64]  # [A, BINS]
    edges: npt.NDArray[np.float64]  # [BINS + 1]
    outside: npt.NDArray[np.int64]  # [A] values beyond the outer edges
    low: npt.NDArray[np.float64]  # [A]
    high: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, source: Source) -> Facts:
        """Read all labels and actions of a data set."""
        lengths: list[int] = []
        tasks: Counter[str] = Counter()
        instructions: Counter[str] = Counter()
        for label in source.labels():
            lengths.append(label.length)
            tasks[label.task or "(none)"] += 1
            instructions[label.instruction] += 1
        pieces, actions_of = source.actions()
        size = len(source.action_names)
        edges = np.linspace(-1.025, 1.025, BINS + 1)
        histogram, outside = np.zeros((size, BINS), np.int64), np.zeros(size, np.int64)
        low, high = np.full(size, np.inf), np.full(size, -np.inf)
        total, squares, count = np.zeros(size), np.zeros(size), 0
        for piece in pieces:
            table = piece.astype(np.float64)
            low, high = np.minimum(low, table.min(axis=0)), np.maximum(high, table.max(axis=0))
            total, squares, count = total + table.sum(axis=0), squares + (table**2).sum(axis=0), count + len(table)
            for axis in range(size):
                found = np.histogram(table[:, axis], bins=edges)[0]
                histogram[axis] += found
                outside[axis] += len(table) - found.sum()
        mean = total / max(count, 1)
        return cls(
            kind=source.kind,
            path=str(source.path),
            episodes=len(lengths),
            moments=sum(lengths),
            rate=source.rate,
            lengths=np.asarray(lengths, dtype=np.int64),
            tasks=tasks,
            instructions=instructions,
            action_names=source.action_names if count else (),
            actions_of=actions_of,
            histogram=histogram,
            edges=edges,
            outside=outside,
            low=low,
            high=high,
            mean=mean,
            deviation=np.sqrt(np.maximum(squares / max(count, 1) - mean**2, 0)),
            notes=tuple(source.notes()),
        )

    def figures(self) -> list[tuple[str, str]]:
        """Return the main numbers as (label, value)."""
        if not self.rate:
            return [
                ("records", f"{self.episodes:,}"),
                ("turns", f"{self.moments:,}"),
                ("folders", f"{len(self.tasks):,}"),
                ("first questions", f"{len(self.instructions):,}"),
            ]
        seconds = self.moments / self.rate
        duration = next(f"{seconds / unit:.1f} {name}" for unit, name in _UNITS if seconds >= unit or unit == 1)
        return [
            ("episodes", f"{self.episodes:,}"),
            ("frames", f"{self.moments:,}"),
            (f"at {self.rate:g} Hz", duration),
            ("tasks", f"{len(self.tasks):,}"),
            ("sentences", f"{len(self.instructions):,}"),
        ]

    def text(self) -> str:
        """Return all statistics as text for a terminal."""
        lines = [f"{self.path}: {self.kind}", "  " + ", ".join(f"{value} {label}" for label, value in self.figures())]
        low, middle, high = np.percentile(self.lengths, [0, 50, 100]).astype(int)
        lines.append(f"  {'frames in an episode' if self.rate else 'turns'}: {low} to {high}, median {middle}")
        lines += [f"  {note}" for note in self.notes]
        tables = {"tasks": self.tasks, "sentences": self.instructions} if self.rate else {"folders": self.tasks}
        for title, counts in tables.items():
            lines.append(f"{title}:")
            shown = counts.most_common(TEXT_ROWS)
            for name, count in shown:
                bar = "█" * max(round(18 * count / shown[0][1]), 1)
                lines.append(f"  {count:>7,}  {bar:<18}  {name or '(empty)'}")
            if len(counts) > TEXT_ROWS:
                hidden = sum(counts.values()) - sum(count for _, count in shown)
                lines.append(f"  {hidden:>7,}  in {len(counts) - TEXT_ROWS} more")
        if self.action_names:
            lines.append(f"actions of {self.actions_of}, from -1 to 1:")
            for axis, name in enumerate(self.action_names):
                spread = f"{self.low[axis]:+.2f} to {self.high[axis]:+.2f}"
                outside = f", {self.outside[axis]:,} OUTSIDE" if self.outside[axis] else ""
                lines.append(
                    f"  {name:<8} {sparkline(self.histogram[axis])}  {spread}, mean {self.mean[axis]:+.3f}, "
                    f"deviation {self.deviation[axis]:.3f}{outside}"
                )
        return "\n".join(lines)


def sparkline(counts: npt.NDArray[np.int64]) -> str:
    """Return counts as a row of bars; heights are square roots, so that rare values are visible."""
    heights = np.sqrt(counts / max(int(counts.max()), 1))
    return "".join(_BARS[int(np.ceil(height * (len(_BARS) - 1)))] for height in heights)
