"""The slow reference computes what the package computes; the package is faster and smaller."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import text_layout
from config.schema import Job
from models.objectives import text_objective
from models.objectives.base import TextTask
from models.rng import SampleRng
from tests.benchmarks.naive_text import loss, passes
from tests.models.text_problems import Built, talk
from tests.tiny import tiny_model

DIALOGUES = [[("which block?", "the pink block is inside")], [("lit?", "no")]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return tiny_model(tmp_path_factory.mktemp("model"))


def prepared(built: Built, objective: str, **knobs: object) -> TextTask:
    job = Job()
    job.training.text_objective = objective  # type: ignore[assignment]
    job.block_diffusion.block_size = job.text_mdm.canvas_multiple = 4
    for name, value in knobs.items():
        setattr(job.text_diffusion, name, value)
    model, prompter = built
    return text_objective(job).prepare(model.vocab, prompter.system_ids, talk(built, DIALOGUES), SampleRng(3))


@pytest.mark.parametrize(
    ("objective", "knobs"),
    [
        ("ar", {}),
        ("mdm", {}),
        ("mdm", {"prediction": "aligned"}),
        ("bd", {}),
        ("bd", {"prediction": "aligned"}),
        ("bd", {"weighting": "uniform"}),
        ("bd", {"ar_aux_weight": 0.5}),
    ],
    ids=str,
)
def test_a_pass_per_view_with_full_logits_has_the_same_loss_and_gradients(
    built: Built, objective: str, knobs: dict[str, object]
) -> None:
    model, prompter = built
    task = prepared(built, objective, **knobs)
    naive = passes(model, prompter.system_ids, talk(built, DIALOGUES), task)
    gradients = []
    for value in (model.text_loss(task)[0].mean, loss(model, naive)):
        model.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert value > 0
    torch.testing.assert_close(model.text_loss(task)[0].mean, loss(model, naive), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_the_reference_reads_every_view_in_a_pass_of_its_own(built: Built) -> None:
    model, prompter = built
    task = prepared(built, "bd")
    naive = passes(model, prompter.system_ids, talk(built, DIALOGUES), task)
    assert naive.ids.shape[0] == 4, "two conversations, two views"
    assert naive.ids.numel() > 2 * task.sequence.ids.numel()


def test_a_reference_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(text_layout, "loss", lambda model, naive: 1.001 * loss(model, naive))
    with pytest.raises(SystemExit, match="do not compute the same"):
        text_layout.main([*TINY, "--out", str(tmp_path / "never.json")])
    assert not (tmp_path / "never.json").exists()


SMALL = {"prefix": 40, "patches": 4, "answer": 12, "block-size": 4, "hidden": 32, "layers": 1, "words": 50}
TINY = ["--objectives=bd", *(f"--{name}={value}" for name, value in SMALL.items())]


def test_the_command_writes_its_figures_with_their_circumstances(tmp_path: Path) -> None:
    out = tmp_path / "deep/layout.json"
    text_layout.main([*TINY, "--rounds", "2", "--out", str(out)])
    record = json.loads(out.read_text())
    assert record["command"].startswith("python -m benchmarks.text_layout --objectives=bd --prefix=40")
    assert record["hardware"]["threads"] == 1
    assert {"date", "commit", "software"} <= record.keys()
    found = record["results"]["bd"]
    assert found["same"]["loss_difference"] < 1e-5
    assert found["times_faster"]["count"] == 2
    assert found["memory_mb"]["package"]["peak"] > found["memory_mb"]["package"]["before"] > 0
    assert [file.name for file in out.parent.iterdir()] == ["layout.json"], "no temporary file is left"


def test_a_prefix_that_cannot_hold_the_image_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        text_layout.main(["--prefix", "600"])
    assert "--prefix 600" in capsys.readouterr().err


@pytest.mark.slow
def test_at_real_lengths_block_diffusion_is_two_and_a_half_times_faster_in_a_third_of_the_memory(
    tmp_path: Path,
) -> None:
    """A prefix of 620, an answer of 100, 58,498 ids, hidden 256."""
    found = text_layout.main(["--objectives", "bd", "--rounds", "3", "--out", str(tmp_path / "layout.json")])
    result = found["results"]["bd"]
    assert result["times_faster"].median >= 2.5
    assert result["memory_share"]["above"] <= 1 / 3


def test_the_text_of_a_batch_costs_the_host_about_a_hundredth_of_a_gpu_step(tmp_path: Path) -> None:
    """Prompts with 576 patches, answers of 256 tokens, batch 16: 0.7 % on the machine of the results."""
    sizes = ["--batch", "16", "--answer", "256", "--block-size", "32"]
    found = text_layout.main(["--host", *sizes, "--rounds", "9", "--out", str(tmp_path / "host.json")])
    shares = {name: one["share_of_gpu_step"] for name, one in found["results"].items()}
    assert [*shares] == ["bd", "mdm", "ar"]
    assert max(shares.values()) < 0.02, "twice of what is allowed on an idle machine, because others load this one"
    assert shares["ar"] < shares["bd"]
