"""Open an episode in rerun: images, state and action by their dimensions over time, and the instruction.

Names and timelines are those of lerobot's viewer: `observation.images.<camera>`, `state/<dimension>`,
`action/<dimension>`, `frame_index` and `timestamp` (seconds).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from matplotlib import colormaps

from preprocess_data.dataset_viewer.interface import EpisodeView, Floats, Source

APPLICATION = "blockdiff-vla"
JPEG_QUALITY = 90
COLOURS = colormaps["tab10"]
ROWS = (1, 4, 3)
"""Relative heights of the instruction, the images, and the plots of action and state."""
REMEDY = (
    "--rerun needs the package rerun-sdk: pip install -e '.[rerun]' in the project's folder, or omit it (HTML page)"
)


def require_rerun(file: Path | None) -> None:
    """Raise ValueError if rerun is not installed, or ``file`` has another suffix than .rrd."""
    if find_spec("rerun") is None:
        raise ValueError(REMEDY)
    if file is not None and file.suffix != ".rrd":
        raise ValueError(f"--rerun {file}: expected the name of an .rrd file, or none to open the viewer")


def log_episode(source: Source, number: int, file: Path | None) -> None:
    """Log an episode into ``file``, or into rerun's viewer, which is started if none runs.

    Raises ValueError or OSError naming a file that cannot be read or written.
    """
    import rerun as rr
    import rerun.blueprint as rrb

    episode = source.episode(number)
    recording = rr.RecordingStream(APPLICATION, recording_id=f"{source.path.name}/episode_{number}")
    if file is None:
        rr.spawn(recording=recording)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        recording.save(file)
    moments = np.arange(episode.length)
    rate = source.rate or 1.0
    lines = [episode.title, episode.note, *(f"{who}: {words}" for who, words in episode.turns)]
    recording.log("instruction", rr.TextDocument("\n\n".join(lines)), static=True)
    for moment in moments.tolist():
        recording.set_time("frame_index", sequence=moment)
        recording.set_time("timestamp", duration=moment / rate)
        for camera in episode.cameras:
            image = rr.Image(episode.image(camera, moment)).compress(jpeg_quality=JPEG_QUALITY)
            recording.log(f"observation.images.{camera}", image)
    times = [rr.TimeColumn("frame_index", sequence=moments), rr.TimeColumn("timestamp", duration=moments / rate)]
    scalars = _scalars(source, episode)
    for number, (entity, column) in enumerate(scalars):
        colour = [round(255 * part) for part in COLOURS(number % COLOURS.N)[:3]]
        recording.log(entity, rr.SeriesLines(colors=[colour]), static=True)  # its own colours are too similar
        recording.send_columns(entity, indexes=times, columns=rr.Scalars.columns(scalars=column))
    images = [rrb.Spatial2DView(origin=f"observation.images.{camera}", name=camera) for camera in episode.cameras]
    names = dict.fromkeys(entity.partition("/")[0] for entity, _ in scalars)
    plots = [rrb.TimeSeriesView(origin=name, name=name) for name in names]
    rows = [rrb.TextDocumentView(origin="instruction", name="instruction"), rrb.Horizontal(*images)]
    rows += [rrb.Horizontal(*plots)] if plots else []
    time = rrb.TimePanel(timeline="timestamp", state="collapsed")
    layout = rrb.Vertical(*rows, row_shares=ROWS[: len(rows)])
    recording.send_blueprint(rrb.Blueprint(layout, rrb.SelectionPanel(state="collapsed"), time))
    recording.flush()
    recording.disconnect()


def _scalars(source: Source, episode: EpisodeView) -> list[tuple[str, Floats]]:
    """Return (entity, values [length]) of every dimension of state and action."""
    return [
        *_columns("state", episode.states, ()),
        *_columns("action", episode.actions, source.action_names),
    ]


def _columns(name: str, table: Floats | None, names: Sequence[str]) -> list[tuple[str, Floats]]:
    if table is None:
        return []
    names = names if len(names) == table.shape[1] else tuple(map(str, range(table.shape[1])))
    return [(f"{name}/{names[axis]}", table[:, axis]) for axis in range(table.shape[1])]
