"""docs/gallery.md names the pictures that are there, and its command makes them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.files import PROJECT_DIR
from common.image_grid import write_png
from scripts.dev.gallery import browser, images
from scripts.dev.gallery.__main__ import ITEMS, main
from tests.scripts.saved_run import write_run

PAGE, IMAGES = PROJECT_DIR / "docs/gallery.md", PROJECT_DIR / "docs/images/gallery"
MEGABYTES = 2.5


def named(page: Path) -> list[str]:
    return re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8"))


def test_the_page_names_every_picture_of_its_folder_and_no_other() -> None:
    shown = [PAGE.parent / path for path in named(PAGE)]
    assert shown
    assert sorted(shown) == sorted(IMAGES.iterdir())
    assert {path.name for path in shown} <= {item.file for item in ITEMS}
    assert sum(path.stat().st_size for path in shown) < MEGABYTES * 1e6


def test_masks_and_answers_are_made_and_the_page_lists_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [f"{name}={write_run(tmp_path / name, name, text_block_size=4)}" for name in ("ar", "bd")]
    page, folder = tmp_path / "docs/gallery.md", tmp_path / "docs/images"
    questions = ["--questions", str(PROJECT_DIR / "dummy_data/llava_validation")]
    options = [*questions, "--output-dir", str(folder), "--page", str(page)]
    assert main(["--only", "masks", "answers", "--models", *runs, *options]) == 0
    assert named(page) == ["images/masks.png", "images/answers.gif"]
    with Image.open(folder / "masks.png") as masks:
        assert masks.width > 1000
    with Image.open(folder / "answers.gif") as answers:
        assert answers.n_frames > 4  # type: ignore[attr-defined]
        assert answers.size[0] == images.ANSWERS_WIDTH
    assert "2 of 8 images" in capsys.readouterr().out


def test_what_cannot_be_made_is_left_out_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--output-dir", str(tmp_path / "images"), "--page", str(tmp_path / "gallery.md")]
    monkeypatch.setattr(browser, "find_chromium", lambda: None)
    assert main(["--only", "inspect", *options]) == 0
    assert "left out: no Chromium is installed" in capsys.readouterr().out
    assert named(tmp_path / "gallery.md") == []
    assert main(["--only", "decoding", "--decoding", str(tmp_path), *options]) == 2
    assert "has no decoding.png" in capsys.readouterr().err
    write_png(tmp_path / "decoding.png", np.zeros((4, 6, 3), np.uint8))
    assert main(["--only", "decoding", "--decoding", str(tmp_path), *options]) == 0
    assert named(tmp_path / "gallery.md") == ["images/decoding.png"]


def test_the_newest_result_of_decoding_is_found(tmp_path: Path) -> None:
    assert images.newest_decoding(tmp_path) is None
    for name in ("2026-01-02_decoding", "2026-01-03_decoding", "2026-02-01_other"):
        (tmp_path / name).mkdir()
    for name in ("2026-01-02_decoding", "2026-01-03_decoding"):
        (tmp_path / name / "decoding.png").touch()
    assert images.newest_decoding(tmp_path) == tmp_path / "2026-01-03_decoding"


@pytest.mark.skipif(browser.find_chromium() is None, reason="needs Chromium")
def test_a_screenshot_shows_the_page(tmp_path: Path) -> None:
    page = tmp_path / "a page.html"
    page.write_text("<body style='margin:0;background:rgb(10,200,30)'>")
    chromium = browser.find_chromium()
    assert chromium is not None
    image = browser.screenshot(chromium, page, width=500, height=300)
    assert image.shape == (300, 500, 3)
    assert image[150, 250].tolist() == [10, 200, 30]
