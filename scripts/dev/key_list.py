"""Print the number of tensors, parameters and bytes of weight files, and a checksum of their names and shapes.

    python -m scripts.dev.key_list outputs/mine/model.safetensors
    python -m scripts.dev.key_list upvla/pytorch_model.bin magvitv2/pytorch_model.bin

The checksum is the SHA-256 of the sorted lines `name<TAB>[shape]`, so that it does not depend on the values, the data
type or the file format. docs/import_upvla.md has those of the published models. Tensors are not copied into memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from math import prod

from common.arguments import command_parser, path_argument
from common.command import report_errors, run_command


def summarize(shapes: Mapping[str, Sequence[int]]) -> tuple[int, int, str]:
    """Return the number of tensors, their number of elements, and the checksum of names and shapes."""
    lines = sorted(f"{name}\t{list(shape)}\n" for name, shape in shapes.items())
    return (
        len(lines),
        sum(prod(shape) for shape in shapes.values()),
        hashlib.sha256("".join(lines).encode()).hexdigest(),
    )


@report_errors("key_list")
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument("files", nargs="+", type=path_argument, help="weight files, or folders with one")
    args = parser.parse_args(argv)
    from models.pretrained.weights_io import read_weights  # imports torch

    for file in args.files:
        tensors = read_weights(file)
        count, elements, digest = summarize({name: tensor.shape for name, tensor in tensors.items()})
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        print(f"{file}: {count} tensors, {elements:,} parameters, {size:,} bytes, sha256 {digest}")
    return 0


if __name__ == "__main__":
    run_command(main)
