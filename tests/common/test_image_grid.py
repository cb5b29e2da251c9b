"""Captions and the errors of predicted frames."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from common.image_grid import FrameErrors, add_caption, frame_errors, image_url, mean_errors


def grey(level: int) -> np.ndarray:
    return np.full((6, 6, 3), level, np.uint8)


def test_the_error_of_a_prediction_and_of_the_present_frame_are_means_over_pixels() -> None:
    now = grey(100)
    now[:3] = 250
    assert frame_errors(now, grey(97), grey(100)) == FrameErrors(predicted=3, present=75)
    assert "prediction 3.0, copy of the present frame 75.0 of 255" in str(FrameErrors(3, 75))


def test_the_mean_of_errors_is_over_frames_and_needs_one() -> None:
    assert mean_errors([FrameErrors(2, 10), FrameErrors(4, 0)]) == FrameErrors(3, 5)
    with pytest.raises(ValueError, match="no frames"):
        mean_errors([])


def test_text_and_note_of_a_caption_are_wrapped_to_the_width_of_the_image() -> None:
    image = np.zeros((20, 160, 3), np.uint8)
    short, long = "word", "several words that do not fit into one line"

    def height(text: str, note: str = "") -> int:
        captioned = add_caption(image, text, note)
        assert captioned.shape[1] == 160
        assert (captioned[:20] == image).all()
        return captioned.shape[0]

    one = height(short)
    line = height(short, short) - one
    assert height(long) == height(short, long) - line
    assert height(long) > one


def test_a_url_holds_the_image_as_png_exactly_and_as_jpeg_nearly() -> None:
    image = np.kron(np.arange(4, dtype=np.uint8).reshape(2, 2) * 60, np.ones((16, 16), np.uint8))[..., None].repeat(
        3, 2
    )
    for quality, media_type, tolerance in ((None, "image/png", 0), (90, "image/jpeg", 12)):
        head, content = image_url(image, quality).split(",")
        assert head == f"data:{media_type};base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as found:
            assert np.abs(np.asarray(found).astype(int) - image.astype(int)).max() <= tolerance
