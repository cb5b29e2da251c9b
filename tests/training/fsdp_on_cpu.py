"""Run a training script with FSDP2 on a CPU: ``fsdp_on_cpu.py train_upvla.py ...``.

Accelerate supports FSDP on accelerators only and trains plain DDP on a CPU. Torch's FSDP2 itself works over gloo. This
script gives accelerate the state that its constructor would set on a GPU, so that all of its FSDP code runs.
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

_init = Accelerator.__init__


def _init_with_fsdp(self: Accelerator, *args: Any, **kwargs: Any) -> None:
    _init(self, *args, **kwargs)
    if self.distributed_type != DistributedType.MULTI_CPU or self.num_processes == 1:
        return
    plugin = FullyShardedDataParallelPlugin()
    if self.mixed_precision != "no":
        plugin.set_mixed_precision(self.mixed_precision)
    self.state.fsdp_plugin = plugin
    self.state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP


if __name__ == "__main__":
    Accelerator.__init__ = _init_with_fsdp  # type: ignore[method-assign]
    sys.argv.pop(0)
    sys.path[0] = os.getcwd()
    runpy.run_path(sys.argv[0], run_name="__main__")
