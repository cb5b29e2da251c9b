"""Single frames of videos: the same as decoding the whole file, at a bounded cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="videos need PyAV: pip install -r requirements-lerobot.txt")
import av

from training.data.formats import video_frames
from training.data.formats.video_frames import NoFrameError, Video, frame_name, read_video_frame, video_frame

FPS = 30


def write_video(path: Path, frames: int, group: int, bframes: int = 0) -> Path:
    """Write frames of a moving ramp with a key frame every ``group`` frames."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.options = {"g": str(group), "bf": str(bframes), "sc_threshold": "0", "crf": "10"}
        for number in range(frames):
            image = np.roll(np.tile(np.arange(64, dtype=np.uint8) * 3, (64, 1)), 2 * number, axis=1)
            image = np.stack([image, np.full_like(image, 2 * number), image.T], axis=2)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())
    return path


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize(("group", "bframes"), [(2, 0), (12, 2), (250, 3)])
def test_frames_in_any_order_are_those_of_the_whole_file(tmp_path: Path, group: int, bframes: int) -> None:
    path = write_video(tmp_path / "a.mp4", 50, group, bframes)
    expected, video = decoded(path), Video(path)
    order = [*range(50), 49, 0, 0, 7, 3, *np.random.default_rng(0).integers(0, 50, 60).tolist()]
    for number in order:
        np.testing.assert_array_equal(video.frame(number / FPS), expected[number], str(number))
    with pytest.raises(NoFrameError, match=r"no frame at 2\.0000 s.*nearest is at 1\.6333 s"):
        video.frame(2.0)
    np.testing.assert_array_equal(video.frame(5 / FPS), expected[5])


@pytest.mark.parametrize("group", [2, 12])
def test_a_random_frame_costs_a_group_at_most_and_following_frames_one_each(
    tmp_path: Path, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    video, count = Video(write_video(tmp_path / "a.mp4", 60, group)), 0
    original = Video._decode

    def counting(self: Video) -> bool:
        nonlocal count
        count += 1
        return original(self)

    monkeypatch.setattr(Video, "_decode", counting)
    for number in range(60):
        video.frame(number / FPS)
    assert count <= 60 + 2 * group
    for number in np.random.default_rng(1).permutation(60).tolist():
        count = 0
        video.frame(number / FPS)
        assert count <= group


def test_a_process_keeps_some_videos_open_and_opens_a_changed_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_frames, "OPEN_VIDEOS", 2)
    monkeypatch.setattr(video_frames, "_open", type(video_frames._open)())
    paths = [write_video(tmp_path / f"{name}.mp4", 4, 2) for name in "abc"]
    opened: list[Path] = []
    original = Video.__init__
    monkeypatch.setattr(Video, "__init__", lambda self, path: opened.append(path) or original(self, path))
    for path in (paths[0], paths[0], paths[1], paths[0], paths[2], paths[1]):
        read_video_frame(path, 0.0)
    assert opened == [*paths, paths[1]]
    write_video(paths[1], 9, 2)
    np.testing.assert_array_equal(read_video_frame(paths[1], 8 / FPS), decoded(paths[1])[8])


def test_a_path_names_a_frame_only_inside_a_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 4, 2)
    assert video_frame(Path(frame_name(path, 0.1))) == (path, 0.1)
    assert video_frame(path / "first.bmp") is None
    assert video_frame(tmp_path / "b.mp4" / "0.100000.bmp") is None
    (tmp_path / "bad.mp4").write_bytes(b"nothing" * 100)
    with pytest.raises(ValueError, match=r"bad\.mp4 cannot be read as a video"):
        read_video_frame(tmp_path / "bad.mp4", 0.0)
