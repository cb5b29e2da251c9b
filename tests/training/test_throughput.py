"""Model operations are counted as torch counts them, and rates follow from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.sequence import Work
from models.upvla import RobotTask
from tests.models.test_upvla import KINDS, future
from tests.tiny import tiny_model
from training.metrics import throughput
from training.metrics.throughput import WORK, ModelFlops, Throughput, work_metrics

CPU = torch.device("cpu")
ONE = torch.ones(())


def sizes(work: Work) -> dict[str, float]:
    return {name: float(value.mean) for name, value in work_metrics(work, ONE).items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", [False, True])
def test_operations_are_those_that_torch_counts(kind: str, frozen: bool, tmp_path: Path) -> None:
    model, prompter = tiny_model(tmp_path, kind, num_view=2)
    model.backbone.set_attn_implementation("eager")
    if frozen:  # as with LoRA: gradients pass through frozen matrices
        for module in model.backbone.modules():
            if isinstance(module, nn.Linear):
                module.requires_grad_(False)
    task = future(model, prompter, ["open the drawer"] * 3)  # rows of one length: torch counts padding, we do not
    with FlopCounterMode(display=False) as counter:
        losses = model(task)
        losses.image.sum.backward()
    count = ModelFlops.of(model).count(sizes(losses.work))
    assert count == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_padding_is_no_work_and_pairs_are_squares(tmp_path: Path) -> None:
    model, prompter = tiny_model(tmp_path)
    texts = ["open", "push the blue block to the left, then turn on the light"]

    def work(task: RobotTask) -> dict[str, float]:
        with torch.no_grad():
            return sizes(model(task).work)

    alone = [work(future(model, prompter, [text])) for text in texts]
    together = work(future(model, prompter, texts, pad_to=60))
    assert together == {name: alone[0][name] + alone[1][name] for name in WORK}
    assert alone[0]["speed/pairs"] == alone[0]["speed/tokens"] ** 2


def test_rates_are_of_all_devices_and_the_utilisation_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny_model(tmp_path)
    monkeypatch.setattr(throughput, "device_peak", lambda device, precision: (1e9, "a test"))
    meter = Throughput(model, CPU, "no", world=4)
    values = {"speed/tokens": 1000.0, "speed/pairs": 50_000.0, "speed/scored": 100.0}
    rates = meter.rates(values, steps_per_s=2.0)
    assert rates["speed/step_s"] == 0.5
    assert rates["speed/tokens_per_s"] == 2000.0
    flops = ModelFlops.of(model).count(values) * 2 / 4
    assert rates["speed/model_tflops"] == pytest.approx(flops / 1e12)
    assert rates["speed/mfu"] == pytest.approx(flops / 1e9)
    assert 0.01 < meter.peak_memory_gb() < 1000


def test_the_peak_is_the_data_sheet_of_known_gpus_and_a_measurement_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert throughput.device_peak(torch.device("cuda"), "bf16") == (756e12, "the data sheet of H100 PCIe")
    speed, source = throughput.device_peak(CPU, "bf16")
    assert 1e8 < speed < 1e14
    assert source == "a matrix product of 512 x 512 on this device"
