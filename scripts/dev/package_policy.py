"""Package the model of a training run for shipping: 16-bit weights, tokenizer, description, configuration.

    make desk-policy        # or: python -m scripts.dev.package_policy --run outputs/tiny_desk --out assets/desk_policy

Writes a folder that loads as the run's own: model.safetensors with float16 weights, config.json, tokenizer/ and the
run's config.yaml, with paths relative to the repository. Existing files are replaced; others, such as the model card
README.md, stay.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from common.arguments import command_parser, output_dir_option, path_argument
from common.command import report_errors, run_command
from common.files import write_text
from models.pretrained.folders import CONFIG_FILE, TOKENIZER_FOLDER, model_folder
from models.pretrained.model_io import WEIGHTS_FILE, load_folder
from models.pretrained.weights_io import read_weights, require_finite, write_safetensors

ROOT = Path(__file__).resolve().parents[2]
RUN_CONFIG = "config.yaml"
MAX_BYTES = 10_000_000


def package(run: Path, out: Path) -> int:
    """Write the model of the run's output folder to ``out`` and return the size of the weights in bytes.

    Raises ``FileNotFoundError`` if the run has no model or no config.yaml, ``ValueError`` if a weight does not fit into
    16 bits or the weights exceed 10 MB.
    """
    source, config = model_folder(run), run / RUN_CONFIG
    if not config.is_file():
        raise FileNotFoundError(f"{config} does not exist; --run is the output folder of a training run")
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in read_weights(source).items()
    }
    require_finite(state, source)
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if size > MAX_BYTES:
        raise ValueError(
            f"--run {run}: {size / 1e6:.1f} MB of 16-bit weights; a model that is shipped has at most 10 MB"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_safetensors(out / WEIGHTS_FILE, state)
    for file in (source / CONFIG_FILE, config):
        write_text(out / file.name, file.read_text(encoding="utf-8").replace(f"{ROOT}/", "./"))
    shutil.copytree(source / TOKENIZER_FOLDER, out / TOKENIZER_FOLDER, dirs_exist_ok=True)
    return size


def largest_change(run: Path, out: Path) -> float:
    """Return the largest change of a weight by the conversion, relative to the largest weight of its tensor."""
    ours, theirs = (load_folder(folder).model.state_dict() for folder in (run, out))
    scale = {name: tensor.abs().max().clamp_min(torch.finfo(torch.float32).tiny) for name, tensor in ours.items()}
    return max(float((theirs[name] - tensor).abs().max() / scale[name]) for name, tensor in ours.items())


@report_errors("package_policy")
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument("--run", type=path_argument, required=True, help="output folder of a training run")
    output_dir_option(parser, "folder of the packaged model")
    args = parser.parse_args(argv)
    size = package(args.run.resolve(), args.out.resolve())
    change = largest_change(args.run, args.out)
    print(f"written: {args.out}, {size / 1e6:.2f} MB of weights; largest change of a weight {change:.1e}, relative")
    return 0


if __name__ == "__main__":
    run_command(main)
