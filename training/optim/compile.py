"""The backbone compiled (``training.compile``); a run that was killed while it compiled can be started again."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

import torch

from models.language_model import Backbone

CACHE = "TORCHINDUCTOR_CACHE_DIR"


def compile_backbone(backbone: Backbone) -> None:
    """Have its forward compiled at the first call; names of parameters stay as they are.

    On a CPU the compiler links straight into its cache, which all runs of a user share: a kill in that moment leaves
    half a library there, on which every later start fails ("file too short"). So each process has a cache of its own
    there, removed at its end; a folder that the user names in ``TORCHINDUCTOR_CACHE_DIR`` is taken as it is.
    """
    shared = os.path.join(tempfile.gettempdir(), "torchinductor_")  # and the user's name; torch sets it when asked
    if not torch.cuda.is_available() and os.environ.get(CACHE, shared).startswith(shared):
        folder = tempfile.mkdtemp(prefix="blockdiff-compiled-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ[CACHE] = folder
    backbone.compile(dynamic=True)  # lengths change from batch to batch
