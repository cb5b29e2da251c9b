"""Measure the memory that loading a model takes, for every format of weight files, and what processes of a node share.

Writes a Phi with random weights of --gb (float32) in each format: one .bin, one .safetensors, .safetensors in shards,
and one bf16 .safetensors. A fresh process loads each of them as training and acting do (`load_folder`). Its anonymous
memory is its own; the pages of a mapped file belong to the page cache, are shared, and can be dropped by the kernel.
Then four processes read the same file at once, and their share of its pages is counted (Pss: a page that n processes
map counts as 1 / n in each).

Examples:
  python -m benchmarks.loading --gb 1
"""

from __future__ import annotations

import gc
import multiprocessing
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.memory import MB, AnonymousPeak, smaps_rollup
from benchmarks.harness.record import ROOT, Parser, write
from common.arguments import real
from common.command import progress_bar, run_command
from common.files import write_json
from config.loading import load_job
from models.pretrained.model_io import WEIGHTS_FILE, build, load_folder, save_folder
from models.pretrained.weights_io import read_weights, write_safetensors
from models.upvla import UPVLA

CONFIG = ROOT / "config" / "tiny_bdvla.yaml"
FORMATS = ("bin", "safetensors", "sharded", "bf16")
SHARDS = 4
PROCESSES = 4
HEAD_WIDTH = 64
MIN_LAYERS = 2
WAIT_SECONDS = 1800.0
PRELOADED = ["benchmarks.loading", "transformers.models.phi.modeling_phi"]
_barrier: Any = None


@dataclass(frozen=True)
class Measured:
    """Results of one format, in MB (2^20 bytes).

    ``weights``: the model in memory, float32. ``files``: its files. ``own_peak``, ``own_after``: anonymous memory of a
    process above that before loading, during it and after it. ``mapped``, ``share``: pages of the files that each of
    PROCESSES processes maps at once (Rss), and its share of them (Pss).
    """

    weights: float
    files: float
    own_peak: float
    own_after: float
    mapped: tuple[float, ...]
    share: tuple[float, ...]

    @property
    def own_ratio(self) -> float:
        """Own memory at the peak of loading, as a multiple of the weights."""
        return self.own_peak / self.weights

    @property
    def largest_share(self) -> float:
        """Largest share of a process, as a fraction of the files; 1 / PROCESSES if all pages are shared."""
        return max(self.share) / self.files


def save_models(folder: Path, gb: float) -> float:
    """Write the model in all formats, and an embedded one that is loaded before; return the MB of its weights."""
    job = load_job([f"config={CONFIG}"], None)
    small = build(job)
    save_folder(small.model, small.prompter, folder / "embedded")
    model = UPVLA(replace(small.spec, llm=_sized(small.spec.llm, small.spec.vocab.size, gb * 2**30)))
    for name in FORMATS:
        save_folder(model, small.prompter, folder / name, state={})
        (folder / name / WEIGHTS_FILE).unlink()
    save_folder(model, small.prompter, folder / "safetensors")
    state = read_weights(folder / "safetensors")
    torch.save(state, folder / "bin" / "pytorch_model.bin")
    write_safetensors(folder / "bf16" / WEIGHTS_FILE, {name: tensor.bfloat16() for name, tensor in state.items()})
    _write_shards(folder / "sharded", state)
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values()) / MB


def _sized(llm: Mapping[str, Any], vocabulary: int, num_bytes: float) -> dict[str, Any]:
    """Return the config of a Phi whose embeddings, head and layers have about this size in float32."""
    width = 1024 if num_bytes > 128 * MB else 256
    layers = (num_bytes / 4 - 2 * vocabulary * width) / (12 * width * width)
    heads = width // HEAD_WIDTH
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": max(MIN_LAYERS, round(layers))}
    return {**llm, **sizes, "num_attention_heads": heads, "num_key_value_heads": heads}


def _write_shards(folder: Path, state: Mapping[str, Tensor]) -> None:
    names = sorted(state)
    parts = [names[at::SHARDS] for at in range(SHARDS)]
    places: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05d}-of-{SHARDS:05d}.safetensors"
        write_safetensors(folder / file, {name: state[name] for name in part})
        places |= dict.fromkeys(part, file)
    write_json(folder / f"{WEIGHTS_FILE}.index.json", {"weight_map": places})


def _set_barrier(barrier: Any) -> None:
    """Receive the barrier of a group of processes, which cannot be an argument of a task."""
    global _barrier
    _barrier = barrier


def _load(embedded: Path, folder: Path) -> tuple[float, float]:
    torch.set_num_threads(1)
    kept = load_folder(embedded)  # imports what loading imports; kept, so that its memory is not used again
    with AnonymousPeak() as own:
        built = load_folder(folder)
    assert built.model is not kept.model
    return own.peak - own.before, own.after - own.before


def _map(folder: Path) -> tuple[float, float]:
    torch.set_num_threads(1)
    before = smaps_rollup()
    state = read_weights(folder)
    for tensor in state.values():
        tensor.reshape(-1).view(torch.uint8).amax()  # reads all pages, allocates nothing
    _barrier.wait(WAIT_SECONDS)
    now = smaps_rollup()
    _barrier.wait(WAIT_SECONDS)
    mapped = now["Rss"] - now["Anonymous"] - before["Rss"] + before["Anonymous"]
    return mapped / 1024, (now["Pss_File"] - before["Pss_File"]) / 1024


def measure(folder: Path, weights: float, name: str) -> Measured:
    """Load one format in a fresh process, then map it in PROCESSES fresh ones at once."""
    source = folder / name
    files = sum(file.stat().st_size for end in ("bin", "safetensors") for file in source.glob(f"*.{end}")) / MB
    server = multiprocessing.get_context("forkserver")  # forks processes that have imported, and read nothing
    server.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, server) as pool:
        own_peak, own_after = pool.submit(_load, folder / "embedded", source).result()
    barrier = server.Barrier(PROCESSES)
    with ProcessPoolExecutor(PROCESSES, server, initializer=_set_barrier, initargs=(barrier,)) as pool:
        mapped, share = zip(*pool.map(_map, [source] * PROCESSES), strict=True)
    return Measured(weights, files, own_peak, own_after, mapped, share)


def main(argv: Sequence[str] | None = None) -> dict[str, Measured]:
    parser = Parser("loading", __doc__)
    parser.add_argument(
        "--gb", type=real(0.01), default=0.2, help="float32 weights of the language model, about, in 2^30 bytes (0.2)"
    )
    args = parser.parse(argv)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        weights = save_models(Path(name), args.gb)
        gc.collect()
        found = {
            kind: measure(Path(name), weights, kind) for kind in progress_bar(FORMATS, desc="loading", unit="format")
        }
    print(f"{weights:.0f} MB of weights in float32; own memory as a multiple of them, share of {PROCESSES} processes")
    print("format       files, MB  own, peak  own, after  share of the pages")
    for kind, one in found.items():
        after = one.own_after / weights
        print(f"{kind:<12} {one.files:9.0f}  {one.own_ratio:9.3f}  {after:10.3f}  {one.largest_share:18.3f}")
    ratios = {kind: {"own_ratio": one.own_ratio, "largest_share": one.largest_share} for kind, one in found.items()}
    write(args, {"gb": args.gb, "processes": PROCESSES, "ratios": ratios, "results": found})
    return found


if __name__ == "__main__":
    run_command(main)
