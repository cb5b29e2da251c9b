"""Screenshots of HTML files in headless Chromium."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from common.image_grid import RgbImage

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless",
    "--no-sandbox",  # root in a container; the pages are our own
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
)
SECONDS = 300


def find_chromium() -> str | None:
    """Return the path of an installed Chromium or Chrome, or None."""
    return next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


def screenshot(chromium: str, page: Path, width: int = 1200, height: int = 1500) -> RgbImage:
    """Return the top of a page, uint8 [height, width, 3]. Raises ``RuntimeError`` if Chromium writes no image."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "page.png"
        size = f"--window-size={width},{height}"
        command = [chromium, *OPTIONS, f"--user-data-dir={folder}/user", size, f"--screenshot={image}"]
        done = subprocess.run(
            [*command, page.resolve().as_uri()],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS,
        )
        if not image.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"{chromium} took no screenshot of {page}: {last}")
        with Image.open(image) as found:
            return np.asarray(found.convert("RGB"))
