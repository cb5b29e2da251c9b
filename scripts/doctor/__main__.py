"""Check this installation and machine, and the data and checkpoints of a run.

    python -m scripts.doctor
    python -m scripts.doctor config=./config/tiny_bdvla.yaml training.max_train_steps=20
    python -m scripts.doctor --checkpoint outputs/tiny_bdvla
    python -m scripts.doctor --json > doctor.json

Prints one line for each check, with a remedy for what is wrong. Changes nothing. With the arguments of a training
command, checks the run too: keys, paths, the robot data against their contract, conversations, models, and whether the
newest checkpoint is complete and fits. The exit code is 1 if there is an error, else 0.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

from common.arguments import command_parser
from common.command import report_errors, run_command
from scripts.doctor.findings import Finding, lines, report

EPILOG = """\
levels:
  error    a run would fail               warning  a run may fail, or its results are in doubt
  note     something is absent that some commands need

--json replaces names of users, hosts and home folders: paste it into a report of a bug."""


def parser() -> argparse.ArgumentParser:
    made = command_parser(__doc__, EPILOG, prog="python -m scripts.doctor")
    run = "config=FILE and overrides: check this training run"
    made.add_argument("run", nargs="*", metavar="key=value", help=run)
    made.add_argument("--checkpoint", metavar="DIR", help="check a trained model: folder of a run, or hub id")
    made.add_argument("--json", action="store_true", help="print one JSON object, without private names")
    return made


def examine(argv: Sequence[str], checkpoint: str | None) -> Iterator[Finding]:
    """Yield all findings. ``argv``: arguments of a training command, or nothing."""
    from scripts.doctor import machine, renderer, software
    from scripts.doctor.devices import TorchProbe

    probe, env = TorchProbe(), dict(os.environ)
    yield software.check_python()
    yield from software.check_checkout()
    yield from software.check_packages()
    yield machine.check_memory()
    yield machine.check_shared_memory()
    yield from machine.check_disks(env)
    yield machine.check_launch(env)
    yield from machine.check_locks(env)
    yield machine.check_hub(env)
    yield renderer.check_renderer()
    yield from probe.findings()
    if argv:
        yield from _of_torch("config", lambda: _run(argv))
    if checkpoint is not None:
        yield from _of_torch("checkpoint", lambda: _checkpoint(checkpoint))


def _run(argv: Sequence[str]) -> Iterable[Finding]:
    from scripts.doctor.run import check_run

    return check_run(argv)


def _checkpoint(checkpoint: str) -> Iterable[Finding]:
    from scripts.doctor.run import check_checkpoint

    return check_checkpoint(checkpoint)


def _of_torch(name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check that imports torch, or that it cannot be imported."""
    try:
        yield from check()
    except ImportError as error:
        yield Finding(name, "error", f"not checked, because an import failed: {error}", "see the findings on packages")


@report_errors("doctor")
def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    findings: list[Finding] = []

    def examined() -> Iterator[Finding]:
        for finding in examine(options.run, options.checkpoint):
            findings.append(finding)
            yield finding

    if options.json:
        print(json.dumps(report(list(examined())), indent=1))
    else:
        for line in lines(examined()):
            print(line, flush=True)
    return int(any(finding.level == "error" for finding in findings))


if __name__ == "__main__":
    run_command(main)
