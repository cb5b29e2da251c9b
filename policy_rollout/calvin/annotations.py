"""CALVIN's validation instructions, which no demonstration is annotated with.

They are read from the user's copy of CALVIN (``calvin_models/conf/annotations/new_playtable_validation.yaml``).
"""

from __future__ import annotations

from pathlib import Path

from policy_rollout.calvin.installation import package_folder
from policy_rollout.calvin.tasks import TASK_NAMES

IN_CALVIN = Path("calvin_models") / "conf" / "annotations" / "new_playtable_validation.yaml"


def find_annotations() -> Path | None:
    """Return the file in the checkout of CALVIN that has the installed calvin_env; None without one."""
    package = package_folder()
    file = None if package is None else package.parent / IN_CALVIN
    return file if file is not None and file.is_file() else None


def read_annotations(file: Path) -> dict[str, str]:
    """Return CALVIN's instruction for each of the 34 tasks: the first one listed.

    Raises ``FileNotFoundError`` or ``ValueError`` in one line naming the file.
    """
    import yaml

    if not file.is_file():
        raise FileNotFoundError(f"annotations={file}: no such file; give CALVIN's {IN_CALVIN}")
    try:
        table = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"annotations={file} cannot be read: {' '.join(str(error).split())}") from error
    instructions: dict[str, str] = {}
    for task in TASK_NAMES:
        listed = table.get(task) if isinstance(table, dict) else None
        instruction = listed[0] if isinstance(listed, list) and listed else listed
        if not isinstance(instruction, str) or not instruction.strip():
            raise ValueError(f"annotations={file} has no instruction for the task {task}")
        instructions[task] = instruction
    return instructions
