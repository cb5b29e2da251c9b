"""CALVIN's own sentences, which its evaluation gives and no demonstration was annotated with: they come from the
user's copy of CALVIN (``calvin_models/conf/annotations/new_playtable_validation.yaml``), not from this project.
"""

from __future__ import annotations

from pathlib import Path

from policy_rollout.calvin.installation import package_folder
from policy_rollout.calvin.tasks import TASK_NAMES

IN_CALVIN = Path("calvin_models") / "conf" / "annotations" / "new_playtable_validation.yaml"


def find_annotations() -> Path | None:
    """The file in the checkout of CALVIN that the installed calvin_env lies in, if it lies in one."""
    package = package_folder()
    file = None if package is None else package.parent / IN_CALVIN
    return file if file is not None and file.is_file() else None


def read_annotations(file: Path) -> dict[str, str]:
    """The sentence that CALVIN's evaluation gives for each of the 34 tasks: the first that is listed.

    Raises ``FileNotFoundError`` or ``ValueError`` in one line naming the file.
    """
    import yaml

    if not file.is_file():
        raise FileNotFoundError(f"annotations={file}: no such file; give CALVIN's {IN_CALVIN}")
    try:
        table = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"annotations={file} cannot be read: {' '.join(str(error).split())}") from error
    sentences: dict[str, str] = {}
    for task in TASK_NAMES:
        listed = table.get(task) if isinstance(table, dict) else None
        sentence = listed[0] if isinstance(listed, list) and listed else listed
        if not isinstance(sentence, str) or not sentence.strip():
            raise ValueError(f"annotations={file} has no sentence for the task {task}")
        sentences[task] = sentence
    return sentences
