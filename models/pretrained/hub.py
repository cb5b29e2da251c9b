"""Publish a model folder on the Hugging Face hub. ``weights_io.resolve_model_dir`` reads it from there."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from common.files import PROJECT_DIR
from models.pretrained.folders import CODE_FOLDER, CONFIG_FILE, TOKENIZER_FOLDER
from models.pretrained.model_card import CARD_FILE, with_hub_id
from models.pretrained.weights_io import find_weights, require_whole, weight_parts

RUN_CONFIG = "config.yaml"
_LOCAL = re.compile(r"(?<![\w.])(?:/[^\s'\",\]}]+|~/[^\s'\",\]}]*)")


@dataclass(frozen=True)
class Upload:
    """Files of a repository. ``files``: name in it -> local file; ``texts``: name -> content that is changed."""

    files: dict[str, Path]
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of all files in the repository."""
        return sorted([*self.files, *self.texts])

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.stat().st_size for file in self.files.values()) + sum(
            len(t.encode()) for t in self.texts.values()
        )

    @property
    def local_paths(self) -> list[str]:
        """Absolute paths in the texts, which other machines do not have."""
        return sorted({path for text in self.texts.values() for path in _LOCAL.findall(text)})


def prepare(folder: Path, run_config: Path | None, repo: str) -> Upload:
    """Return what is published of a model folder.

    That is its weights, ``config.json``, tokenizer, model card, code of its language model, and the ``config.yaml`` of
    its run (``run_config``). In the texts, paths in the project become relative to it, and the card names ``repo``.
    Raises ValueError if the folder has no weights.
    """
    weights = find_weights(folder)
    if weights is None or not (folder / CONFIG_FILE).is_file():
        raise ValueError(
            f"{folder} has no weights with a {CONFIG_FILE}; name a run's output folder or a checkpoint of it"
        )
    require_whole(weights)
    parts = dict.fromkeys([weights, *weight_parts(weights)])
    files = {file.name: file for file in parts}
    for name in (TOKENIZER_FOLDER, CODE_FOLDER):
        files |= {str(f.relative_to(folder)): f for f in sorted((folder / name).rglob("*")) if f.is_file()}
    texts = {file.name: _portable(file) for file in (folder / CONFIG_FILE, run_config) if file is not None}
    if (folder / CARD_FILE).is_file():
        texts[CARD_FILE] = with_hub_id((folder / CARD_FILE).read_text(encoding="utf-8"), repo)
    return Upload(files, texts)


def _portable(file: Path) -> str:
    return re.sub(rf"(?<![\w./-]){re.escape(str(PROJECT_DIR))}/", "./", file.read_text(encoding="utf-8"))


def push(upload: Upload, repo: str, *, private: bool, revision: str | None, message: str) -> str:
    """Create the repository if it is new, upload all files in one commit, and return the commit's address.

    The token is that of ``hf auth login`` or ``HF_TOKEN``. ``revision``: a branch, created if it is new. Raises
    ValueError in one line if the hub refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # isort: skip  # as in weights_io

    operations = [
        *(CommitOperationAdd(name, str(file)) for name, file in upload.files.items()),
        *(CommitOperationAdd(name, text.encode()) for name, text in upload.texts.items()),
    ]
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        commit = api.create_commit(repo, operations, commit_message=message, revision=revision)
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, HTTPError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"--repo {repo}: not uploaded ({reason}); hf auth login stores a token with write access"
        ) from error
    return str(commit.commit_url)
