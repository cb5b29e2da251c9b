"""Compile the backbone (``training.compile``), safely for runs that are killed while they compile."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

import torch
from torch._functorch import config as functorch

from models.language_model import Backbone

CACHE = "TORCHINDUCTOR_CACHE_DIR"


def compile_backbone(backbone: Backbone, keep_graph: bool = False) -> None:
    """Compile the forward at its first call; names of parameters do not change.

    ``keep_graph``: a step goes through its graph twice (``models.action.insulation``), so that the first backward pass
    may not overwrite tensors of the graph.

    On a CPU the compiler links into its cache, which all runs of a user share. A kill in that moment leaves an
    incomplete library, on which every later start fails ("file too short"). So each process gets a cache of its own,
    which is removed at exit, unless the user sets ``TORCHINDUCTOR_CACHE_DIR``.
    """
    shared = os.path.join(tempfile.gettempdir(), "torchinductor_")  # and the user's name; torch sets it when asked
    if not torch.cuda.is_available() and os.environ.get(CACHE, shared).startswith(shared):
        folder = tempfile.mkdtemp(prefix="blockdiff-compiled-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ[CACHE] = folder
    if keep_graph:
        functorch.donated_buffer = False
    backbone.compile(dynamic=True)  # lengths change from batch to batch
