"""What `--help` prints: how to start a run, and every key with its default and its one line."""

from __future__ import annotations

from config.build import keys
from config.files import CONFIG_DIR, presets
from config.knob import MISSING
from config.schema import Framework, Objective
from config.values import choices, shown

SCRIPTS: dict[Objective, str] = {"ar": "train_upvla.py", "mdm": "train_mdm_vla.py", "bd": "train_blockdiff_vla.py"}
"""The entry point of each text objective."""
OBJECTIVE_OF: dict[Framework, Objective] = {"upvla": "ar", "arvla": "ar", "mdmvla": "mdm", "bdvla": "bd"}
"""The text objective that a recipe acts with."""

TRAINS = {"ar": "autoregressive", "mdm": "masked-diffusion", "bd": "block-diffusion"}


FRAGMENTS = ("base", "embedded")
"""Files of `config/` that are composed into runs and are none themselves."""


def help_text(objective: Objective | None) -> str:
    """The whole manual page of an entry point."""
    which: Objective = objective or "ar"
    script, tiny = SCRIPTS[which], f"tiny_{which}vla"
    runs = ", ".join(sorted(p.stem for p in CONFIG_DIR.glob("*.yaml") if p.stem not in FRAGMENTS))
    head = f"""usage: python {script} config=<file.yaml> [preset=<name>] [section.key=value ...]
       python {script} --multirun config=<file.yaml> section.key=value1,value2 [...]

Train a vision-language-action model with the {TRAINS[which]} text objective ({which}).

  config=       a file of config/ or a copy of one anywhere; its keys win over the files in its `defaults:` list
  preset=       settings for a card, read over the file: {", ".join(presets())} (config/presets/)
  section.key=  any key below; wins over the file. Quote values with spaces: "question=What is open?"
  -m --multirun one run for every combination of the values given with commas, each in a folder of its own, and a table
                of them at the end: docs/training.md

examples:
  python {script} config=./config/{tiny}.yaml
  python {script} config=./config/{tiny}.yaml training.max_train_steps=20 "experiment.output_dir=$(pwd)/outputs/mine"
  python {script} -m config=./config/{tiny}.yaml training.seed=0,1,2 training.text_objective=ar,mdm,bd
  accelerate launch --config_file ./accelerate_configs/4_gpus_deepspeed_zero2.yaml --main_process_port=8888 \\
      {script} config=./config/<file>.yaml

run configs in config/: {runs}

keys (default in brackets; a file may change it):"""
    return "\n".join([head, *_key_lines()])


def _key_lines() -> list[str]:
    lines, section = [], None
    for key in sorted(keys().values(), key=lambda k: "." in k.name):
        here = key.name.rpartition(".")[0]
        if here != section:
            section = here
            lines += ["", f"{here or 'top level'}:"]
        words = choices(key.annotation)
        options = "; one of " + ", ".join(words) if len(words) > 1 else ""
        default = "has to be given" if key.default == MISSING else shown(key.default)
        lines.append(f"  {key.name}  [{default}]\n      {key.metadata['doc']}{options}")
    return lines
