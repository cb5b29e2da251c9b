"""Small drawings as SVG text. Colours are CSS variables of the page, so that they follow light and dark."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

WIDTH = 640  # of curves, in SVG units; scaled to the room there is
LANE = 62  # height of a lane of curves
GAP = 14
_CURVES = 3  # in a lane


def curves(actions: npt.NDArray[np.float32], names: tuple[str, ...]) -> str:
    """An episode's actions [n, A] over time: lanes of three (position, rotation), and one for what is left."""
    lanes = [range(start, min(start + _CURVES, actions.shape[1])) for start in range(0, actions.shape[1], _CURVES)]
    height = len(lanes) * (LANE + GAP)
    parts = [f'<svg class="curves" viewBox="0 0 {WIDTH} {height}" preserveAspectRatio="none" role="img">']
    for lane, axes in enumerate(lanes):
        top = lane * (LANE + GAP) + GAP / 2
        reach = max(1.0, float(np.abs(actions[:, axes.start : axes.stop]).max()))
        parts.append(f'<line class="zero" x1="0" x2="{WIDTH}" y1="{top + LANE / 2:.1f}" y2="{top + LANE / 2:.1f}"/>')
        for order, axis in enumerate(axes):
            points = _points(actions[:, axis], top, reach, step=len(axes) == 1)
            hue = "c3" if len(axes) == 1 else f"c{order}"
            label = names[axis] if axis < len(names) else f"dimension {axis}"
            parts.append(f'<polyline class="{hue}" points="{points}"><title>{label}</title></polyline>')
    parts.append(f'<line class="now" x1="0" x2="0" y1="0" y2="{height}"/></svg>')
    return "".join(parts)


def _points(values: npt.NDArray[np.float32], top: float, reach: float, step: bool) -> str:
    """SVG points of one curve; ``step``: the value holds until the next moment (a gripper command)."""
    n = len(values)
    x = np.linspace(0, WIDTH, n) if n > 1 else np.array([0.0, WIDTH])
    y = top + LANE / 2 * (1 - np.clip(values if n > 1 else values.repeat(2), -reach, reach) / reach)
    if step:
        x, y = np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def histogram(counts: npt.NDArray[np.int64], hue: str) -> str:
    """Bars whose heights are square roots of the counts, so that what is rare is still seen."""
    n, high = len(counts), 56
    heights = np.sqrt(counts / max(int(counts.max()), 1)) * high
    bars = "".join(
        f'<rect x="{place * 6}" y="{high - bar:.1f}" width="5" height="{bar:.1f}"/>'
        for place, bar in enumerate(heights)
        if bar > 0
    )
    return (
        f'<svg class="histogram {hue}" viewBox="0 0 {n * 6} {high + 2}" preserveAspectRatio="none" role="img">'
        f'{bars}<line class="zero" x1="0" x2="{n * 6}" y1="{high + 1}" y2="{high + 1}"/></svg>'
    )


def lengths(values: npt.NDArray[np.int64], bins: int = 41) -> tuple[str, int, int]:
    """(histogram of episode lengths, shortest, longest)."""
    low, high = int(values.min()), int(values.max())
    counts = np.histogram(values, bins=min(bins, max(high - low + 1, 1)), range=(low - 0.5, high + 0.5))[0]
    return histogram(counts.astype(np.int64), "c4"), low, high
