"""Entry points, shipped run configurations and presets, and the text of `--help`."""

from __future__ import annotations

from common.files import CONFIG_DIR
from config.parsing import keys, shown
from config.schema import MISSING, Framework, Objective

PRESET_DIR = CONFIG_DIR / "presets"
SCRIPTS: dict[Objective, str] = {"ar": "train_upvla.py", "mdm": "train_mdm_vla.py", "bd": "train_blockdiff_vla.py"}
"""The entry point of each text objective."""
OBJECTIVE_OF: dict[Framework, Objective] = {"upvla": "ar", "arvla": "ar", "mdmvla": "mdm", "bdvla": "bd"}
"""The text objective of each recipe's policy."""
DESCRIPTIONS = {"ar": "autoregressive", "mdm": "masked-diffusion", "bd": "block-diffusion"}
FRAGMENTS = ("base", "embedded")
"""Files of `config/` for `defaults:` lists; they are not run configurations."""


def presets() -> list[str]:
    """Return the names of `config/presets`."""
    return sorted(path.stem for path in PRESET_DIR.glob("*.yaml"))


def help_text(objective: Objective | None) -> str:
    """Return what an entry point prints for `--help`."""
    which: Objective = objective or "ar"
    script, tiny = SCRIPTS[which], f"tiny_{which}vla"
    runs = ", ".join(sorted(p.stem for p in CONFIG_DIR.glob("*.yaml") if p.stem not in FRAGMENTS))
    head = f"""usage: python {script} config=<file.yaml> [preset=<name>] [section.key=value ...]
       python {script} --multirun config=<file.yaml> section.key=value1,value2 [...]

Train a vision-language-action model with the {DESCRIPTIONS[which]} text objective ({which}).

  config=       a file of config/, or a copy of one anywhere; its keys override the files in its `defaults:` list
  preset=       settings for a GPU size, which override the file: {", ".join(presets())} (config/presets/)
  section.key=  any key below; overrides the file. Quote values with spaces: "question=What is open?"
  -m --multirun one run for each combination of comma-separated values, each in its own folder, and a final table of
                results: docs/training.md

examples:
  python {script} config=./config/{tiny}.yaml
  python {script} config=./config/{tiny}.yaml training.max_train_steps=20 "experiment.output_dir=$(pwd)/outputs/mine"
  python {script} -m config=./config/{tiny}.yaml training.seed=0,1,2 training.text_objective=ar,mdm,bd
  accelerate launch --config_file ./accelerate_configs/4_gpus_deepspeed_zero2.yaml --main_process_port=8888 \\
      {script} config=./config/<file>.yaml

run configs in config/: {runs}

keys (default in brackets; a file may override it):"""
    return "\n".join([head, *_key_lines()])


def _key_lines() -> list[str]:
    lines, section = [], None
    for key in sorted(keys().values(), key=lambda k: "." in k.name):
        above = key.name.rpartition(".")[0]
        if above != section:
            section = above
            lines += ["", f"{above or 'top level'}:"]
        options = "; one of " + ", ".join(key.choices) if len(key.choices) > 1 else ""
        default = "has to be given" if key.default == MISSING else shown(key.default)
        lines.append(f"  {key.name}  [{default}]\n      {key.metadata['doc']}{options}")
    return lines
