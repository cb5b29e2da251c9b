"""A sweep as Slurm jobs, through submitit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.slurm.conftest import ROOT, Slurm

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

STUB = """
import json, os, pathlib, sys
given = dict(a.split("=", 1) for a in sys.argv[2:])
print("job", os.environ["SLURM_ARRAY_JOB_ID"])
if given["training.seed"] == "13":
    sys.exit("it failed")
line = json.dumps({"step": 2, "total/loss": int(given["training.seed"])})
(pathlib.Path(given["experiment.output_dir"]) / "metrics.jsonl").write_text(line + "\\n")
"""


def test_every_run_is_a_job_and_one_that_fails_leaves_the_others_alone(slurm: Slurm, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    (tmp_path / "stub.py").write_text(STUB)
    done = slurm.command(
        sys.executable,
        str(ROOT / "train_upvla.py"),
        "-m",
        "config=config/debug_arvla_1step.yaml",
        "training.seed=1,13,2",
        f"experiment.output_dir={tmp_path / 'sweep'}",
        f"sweep.launch={sys.executable} {tmp_path / 'stub.py'}",
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.timeout_min=5",
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stderr
    rows = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [row["state"] for row in rows] == ["done", "failed (exit 1)", "done"]
    assert [row["metrics"].get("total/loss") for row in rows] == [1, None, 2]
    assert rows[1]["said"] == "it failed"
    jobs = {log.read_text().splitlines()[0] for log in (tmp_path / "sweep").glob("*/output.log")}
    assert len(jobs) == 1  # one array of three
    assert next(iter(jobs)).startswith("job ")
