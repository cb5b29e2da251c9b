"""Run cases in a process of their own: one name per line in, one JSON object per line out.

An error other than a lack of memory ends the process, because a device may be unusable after it; the runner then starts
another one.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import Any

import torch

from benchmarks.gpu_report.case import Case, Context, Skipped, Unequal
from benchmarks.gpu_report.sections import all_cases
from benchmarks.harness.record import hardware

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


def result_of(case: Case, context: Context) -> dict[str, Any]:
    """Run a case and return its status, message, seconds and figures."""
    started = time.perf_counter()
    found: dict[str, Any] = {"status": "done", "message": "", "figures": {}}
    try:
        found["figures"] = dict(case.run(context))
    except Skipped as why:
        found |= {"status": "skipped", "message": str(why)}
    except Unequal as why:
        found |= {"status": "failed", "message": str(why)}
    except OUT_OF_MEMORY as error:
        found |= {"status": "failed", "message": f"out of memory: {' '.join(str(error).split())[:300]}"}
    if found["status"] == "failed":
        context.free()
    return {**found, "seconds": time.perf_counter() - started}


def main() -> None:
    settings = json.loads(sys.argv[1])
    device = torch.device(settings["device"])
    torch.set_num_threads(settings["threads"])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    context = Context(settings["size"], device, settings["rounds"], settings["compiler"])
    cases = {case.key: case for case in all_cases(context.size, settings["networks"])}
    out = sys.stdout
    print(json.dumps({"hardware": hardware(device, settings["threads"])}), file=out, flush=True)
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print
        for line in sys.stdin:
            print(json.dumps(result_of(cases[line.strip()], context)), file=out, flush=True)


if __name__ == "__main__":
    main()
