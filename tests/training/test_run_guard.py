"""What stops a run before its end, and what it leaves then."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.runs import Outcome, same
from training.build import Components
from training.checkpointing import checkpointer
from training.checkpointing.manifest import list_checkpoints, open_checkpoint
from training.failure.loss_monitor import EARLY, HISTORY, LASTING, LossMonitor, has_finite_weights
from training.failure.run_guard import RunGuard
from training.metrics.logger import JsonLinesWriter
from training.trainer import Trainer

Start = Callable[..., Outcome]


def watched(losses: list[float], factor: float | None = 10.0, norms: list[float] | None = None) -> LossMonitor:
    watch = LossMonitor(factor, torch.device("cpu"))
    for number, loss in enumerate(losses):
        watch.update(number + 1, torch.tensor(loss), None if norms is None else torch.tensor(norms[number]))
    return watch


def test_a_loss_that_falls_and_jitters_is_fine() -> None:
    assert watched([10 / (1 + step) + step % 3 for step in range(300)]).failure() is None


def test_a_single_outlier_is_fine_and_a_lasting_one_is_an_explosion_since_its_first_step() -> None:
    calm = [1.0] * 30
    assert watched([*calm, 100.0, 100.0, 1.0, 100.0, 1.0]).failure() is None
    verdict = watched([*calm, *[100.0] * LASTING]).failure()
    assert verdict is not None
    assert verdict.step == len(calm) + 1
    assert "more than 10 times its running median" in verdict.reason


def test_what_the_run_began_with_is_no_explosion() -> None:
    assert watched([5.0] * EARLY + [0.01] * 50 + [4.0] * 5).failure() is None
    assert watched([5.0] * EARLY + [0.01] * 50 + [6.0] * 5).failure() is not None


def test_without_a_factor_only_numbers_that_are_none_stop_a_run() -> None:
    assert watched([1.0] * 30 + [1e30] * 9, factor=None).failure() is None
    verdict = watched([1.0, float("nan"), 1.0, float("inf")], factor=None).failure()
    assert verdict is not None
    assert (verdict.step, verdict.reason) == (2, "the loss of step 2 is not finite")


def test_the_gradient_is_watched_too() -> None:
    verdict = watched([1.0] * 3, norms=[1.0, float("inf"), 1.0]).failure()
    assert verdict is not None
    assert verdict.reason == "the gradient of step 2 is not finite"
    exploding = watched([1.0] * 40, norms=[1.0] * 30 + [50.0] * 10).failure()
    assert exploding is not None
    assert exploding.reason.startswith("the gradient has exploded: from step 31 on")
    scaled = LossMonitor(10.0, torch.device("cpu"), scaled=True)
    scaled.update(1, torch.tensor(1.0), torch.tensor(float("inf")))
    assert scaled.failure() is None


@pytest.mark.parametrize("stop", [5, EARLY, HISTORY + 7])
def test_a_resumed_watch_sees_what_the_uninterrupted_one_sees(stop: int) -> None:
    losses = [1.0 + step % 7 for step in range(HISTORY + 20)] + [200.0] * 3
    whole = watched(losses).failure()
    first, second = watched(losses[:stop]), LossMonitor(10.0, torch.device("cpu"))
    second.restore(json.loads(json.dumps(first.state())))
    for number, loss in enumerate(losses[stop:], start=stop + 1):
        second.update(number, torch.tensor(loss), None)
    assert whole is not None
    assert second.failure() == whole


def test_weights_are_numbers_or_not() -> None:
    model = torch.nn.Linear(2, 2)
    assert has_finite_weights(model)
    with torch.no_grad():
        model.weight[0, 1] = float("nan")
    assert not has_finite_weights(model)
    assert has_finite_weights(torch.nn.Identity())


def test_an_exploding_run_names_the_last_good_checkpoint_and_its_samples(
    run: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.failure.loss_monitor.EARLY", 2)
    original = Trainer.update

    def update(self: Trainer) -> None:
        original(self)
        if self.step >= 4:
            self._total = self._total * 1e4

    monkeypatch.setattr(Trainer, "update", update)
    with pytest.raises(SystemExit) as stop:
        run(training__max_train_steps=8, experiment__save_every=1, training__explosion_factor=20)
    message = str(stop.value)
    assert "the loss has exploded: from step 4 on it is more than 20 times its running median" in message
    assert "/run/checkpoint-3;" in message
    assert "experiment.resume_from_checkpoint=3" in message
    file = Path(message.split("its samples are named in ")[1].split(". A lower")[0])
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["step"] == 4
    assert list(record["samples"][0]["steps"]) == ["4", "5", "6"]
    assert len(record["samples"][0]["steps"]["4"][0]["robot"]) == 2
    assert len(record["samples"][0]["steps"]["4"][0]["mmu"]) == 2
    status = json.loads((file.parent / "status.json").read_text())
    assert status["state"] == "stopped"
    assert status["checkpoint"].endswith("checkpoint-3")


def test_no_checkpoint_of_weights_that_are_not_numbers_is_written(
    run: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = Trainer.update

    def update(self: Trainer) -> None:
        original(self)
        if self.step == 2:
            with torch.no_grad():
                next(self.components.model.parameters()).fill_(float("nan"))

    monkeypatch.setattr(Trainer, "update", update)
    with pytest.raises(SystemExit, match=r"the weights are not finite after step 2.*checkpoint-1;.*bad_batch-2\.json"):
        run(training__max_train_steps=5, experiment__save_every=1)
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == ["checkpoint-1"]
    assert not list((tmp_path / "run").glob(".checkpoint-*"))


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_cannot_be_written_leaves_those_before_it(
    run: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = run("whole", training__max_train_steps=3)
    save = Components.save_model

    def saving(self: Components, path: Path, **more: Any) -> None:
        if "checkpoint-2" in str(path):
            (path.parent / "half").write_text("written")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(self, path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Components, "save_model", saving)
        with pytest.raises(SystemExit) as stop:
            run(training__max_train_steps=3, experiment__save_every=1)
    message = str(stop.value)
    assert "\n" not in message
    assert "checkpoint-2 cannot be written" in message
    assert "No space left on device" in message
    assert f"{tmp_path / 'run' / 'checkpoint-1'} is unchanged" in message
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == ["checkpoint-1"]
    assert not list((tmp_path / "run").glob(".checkpoint-*"))
    assert open_checkpoint(tmp_path / "run" / "checkpoint-1").step == 1
    resumed = run(training__max_train_steps=3, experiment__save_every=1, experiment__resume_from_checkpoint="latest")
    assert same(expected.weights(), resumed.weights())


def test_a_line_of_metrics_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = JsonLinesWriter(tmp_path / "metrics.jsonl", step=0)
    writer.scalars({"x": 1.0}, step=1)
    inner = writer._file

    class Full:
        """A disk with room for five bytes."""

        room = 5

        def write(self, data: bytes) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.room = 0
            return inner.write(data[:5])

        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

    monkeypatch.setattr(writer, "_file", Full())
    with pytest.raises(OSError, match="No space left on device") as caught:
        writer.scalars({"x": 2.0}, step=2)
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "x": 1.0}\n'


def test_metrics_that_cannot_be_written_stop_the_run_before_a_checkpoint_without_them(
    run: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scalars = JsonLinesWriter.scalars

    def full(self: JsonLinesWriter, values: Any, step: int) -> None:
        if step == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        scalars(self, values, step)

    monkeypatch.setattr(JsonLinesWriter, "scalars", full)
    with pytest.raises(SystemExit, match=r"metrics\.jsonl cannot be written \(No space left.*checkpoint-1"):
        run(training__max_train_steps=3, experiment__save_every=1)
    assert [p.name for p in list_checkpoints(tmp_path / "run")] == ["checkpoint-1"]


def test_old_checkpoints_go_only_when_the_new_one_is_in_place(
    run: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[list[str]] = []
    from common.files import retire

    def retiring(path: Path) -> str | None:
        seen.append(sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*")))
        return retire(path)

    monkeypatch.setattr(checkpointer, "retire", retiring)
    run(training__max_train_steps=3, experiment__save_every=1, experiment__checkpoints_total_limit=1)
    assert seen == [["checkpoint-1", "checkpoint-2"], ["checkpoint-2", "checkpoint-3"]]


# --- the data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_stops_the_run_with_its_name(run: Start, world: Path, tmp_path: Path, workers: int) -> None:
    data = tmp_path / "robot"
    shutil.copytree(world / "robot", data)
    for frame in sorted(data.rglob("*.npz"))[1:]:
        frame.write_bytes(frame.read_bytes()[:100])
    with pytest.raises(SystemExit, match=r"stopped before step \d: .*\.npz cannot be read") as stop:
        run(dataset__params__train_pre_shards_path_or_url=data, dataset__params__num_workers=workers)
    assert "\n" not in str(stop.value)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "stopped"


def children() -> set[int]:
    """Processes that this one has started, the tests' own helpers among them."""
    return {
        int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text(encoding="utf-8").split()
    }


def test_a_killed_data_worker_is_reported_with_its_likely_cause(run: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    read, before = RunGuard.read, children()

    def reading(self: RunGuard, batches: Any, count: int, step: int) -> Any:
        if step == 2:
            worker = next(iter(children() - before))  # of one flow; torch raises once for each that dies
            os.kill(worker, signal.SIGKILL)
        return read(self, batches, count, step)

    monkeypatch.setattr(RunGuard, "read", reading)
    with pytest.raises(SystemExit, match="a data worker was killed, which the system does when memory runs out"):
        run(training__max_train_steps=30, dataset__params__num_workers=1)


def test_workers_leave_a_signal_to_the_job_to_the_run(run: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run("whole", training__max_train_steps=4)
    read, before = RunGuard.read, children()

    def reading(self: RunGuard, batches: Any, count: int, step: int) -> Any:
        if step == 2:
            workers = children() - before
            assert len(workers) == 2  # one of each flow
            for worker in workers:
                os.kill(worker, signal.SIGTERM)
                os.kill(worker, signal.SIGUSR1)
        return read(self, batches, count, step)

    monkeypatch.setattr(RunGuard, "read", reading)
    message = run("told", training__max_train_steps=4, dataset__params__num_workers=1)
    assert same(whole.weights(), message.weights())


def test_late_data_is_reported_with_the_remedy(
    run: Start, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.metrics.reporter.MIN_WINDOW_S", 0.0)
    monkeypatch.setattr("training.metrics.reporter.MAX_DATA_WAIT", 0.0)
    run(training__max_train_steps=3)
    output = capfd.readouterr().out
    assert output.count("of the time is spent waiting for data: raise dataset.params.num_workers (now 0)") == 1
