"""Every shipped run configuration describes a network that can be built: real sizes, on the meta device, no weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.real_size.folders import END_OF_TEXT, write_language_models, write_words
from common.files import CONFIG_DIR, PROJECT_DIR
from config.loading import load_job
from config.schema import MMU_INDEX, ROBOT_INDEX
from models.pretrained.model_io import build
from models.vocabulary import SPECIAL_TOKENS

PHI_WORDS, QWEN_WORDS = 50295, 151669
PARAMETERS = {"phi": 1_525_947_592, "qwen3": 1_814_598_726}
RUNS = sorted(path.stem for path in CONFIG_DIR.glob("*.yaml") if path.stem not in ("base", "embedded"))
EMBEDDED = [run for run in RUNS if run.startswith(("tiny", "debug"))]
FULL_SIZE = [run for run in RUNS if run not in EMBEDDED]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as the released models and data sets have them, without weights."""
    root = tmp_path_factory.mktemp("real sizes")
    for name in ("phi", "qwen3", "clip", "magvit", "showo", "robot", "mmu"):
        (root / name).mkdir()
    write_language_models(root)
    (root / "clip" / "config.json").write_text(json.dumps({"vision_config": {"hidden_size": 1024}}))
    (root / "robot" / ROBOT_INDEX).write_text("[]")
    (root / "mmu" / MMU_INDEX).write_text("[]")
    return root


@pytest.mark.parametrize("run", FULL_SIZE)
def test_a_full_size_run_builds_the_released_network_on_the_meta_device(run: str, given: Path) -> None:
    kind = "qwen3" if "qwen3" in run else "phi"
    argv = [
        f"config=config/{run}.yaml",
        f"model.showo.llm_model_path={given / kind}",
        f"model.showo.clip_model_path={given / 'clip'}",
        f"model.vq_model.vq_model_name={given / 'magvit'}",
        f"dataset.params.train_pre_shards_path_or_url={given / 'robot'}",
        f"dataset.params.train_mmu_shards_path_or_url={given / 'mmu'}",
    ]
    if kind == "phi":
        argv.append(f"model.showo.pretrained_model_path={given / 'showo'}")
    built = build(load_job(argv), device="meta")
    words = QWEN_WORDS if kind == "qwen3" else PHI_WORDS
    assert all(parameter.is_meta for parameter in built.model.parameters())
    assert sum(parameter.numel() for parameter in built.model.parameters()) == PARAMETERS[kind]
    assert built.model.vocab.size == words + len(SPECIAL_TOKENS) + 8192 + 1
    assert built.model.backbone.lm.get_input_embeddings().weight.shape[0] == built.model.vocab.size
    assert built.model.action_head.out.weight.shape[0] == 10 * 7
    assert (built.spec.num_image_tokens, built.spec.clip_width, built.spec.bos) == (1024, 1024, END_OF_TEXT)


@pytest.mark.parametrize("run", EMBEDDED)
def test_an_embedded_run_builds_on_the_meta_device(run: str) -> None:
    if not (PROJECT_DIR / "assets" / "tiny_phi").is_dir():
        pytest.skip("the embedded models are not made yet (python -m preprocess_data.tiny_assets)")
    built = build(load_job([f"config=config/{run}.yaml"]), device="meta")
    assert all(parameter.is_meta for parameter in built.model.parameters())
    ids = built.prompter.instruction("open the drawer")
    assert max(ids) < built.model.vocab.words + len(SPECIAL_TOKENS)


def test_a_tokenizer_of_another_size_than_the_configuration_says_is_refused(given: Path, tmp_path: Path) -> None:
    (tmp_path / "phi").mkdir()
    (tmp_path / "phi" / "config.json").write_bytes((given / "phi" / "config.json").read_bytes())
    write_words(tmp_path / "phi", PHI_WORDS + 1)
    argv = [
        "config=config/arvla_action_tuning.yaml",
        f"model.showo.llm_model_path={tmp_path / 'phi'}",
        f"model.showo.clip_model_path={given / 'clip'}",
        f"dataset.params.train_pre_shards_path_or_url={given / 'robot'}",
        f"dataset.params.train_mmu_shards_path_or_url={given / 'mmu'}",
    ]
    with pytest.raises(
        ValueError, match=r"model\.showo\.llm_vocab_size is 50295, but the tokenizer of .* makes it 50296"
    ):
        build(load_job(argv), device="meta")
    assert torch.empty(0).device.type == "cpu"  # building on the meta device leaves no default device behind
