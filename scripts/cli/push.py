"""Publish a model on the Hugging Face hub, with its model card and the configuration of its run.

    blockdiff-vla push --checkpoint outputs/mine --repo my-name/my-model --dry-run
    blockdiff-vla push --checkpoint outputs/mine --repo my-name/my-model --private
    blockdiff-vla push --checkpoint outputs/mine/checkpoint-2000 --repo my-name/my-model --revision step-2000

Needs a token with write access (`hf auth login`, or HF_TOKEN). Every command then takes the model by its id, and by
id and revision: `--checkpoint my-name/my-model@step-2000`. The image tokenizer and the CLIP model are not uploaded;
config.yaml names them, so that it has to name hub ids or models of the project to be of use on other machines.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from common.arguments import command_parser
from common.command import print_next, report_errors, run_command
from config.model_folders import looks_like_hub_id
from policy_rollout.policies.model_yaml import local_checkpoint, run_config

SHOWN_PATHS = 5


@report_errors("push")
def main(argv: Sequence[str] | None = None) -> int:
    """Publish the model of a command line and return the exit code."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, help="output folder of a run, checkpoint-<step>, or a model folder")
    add("--repo", required=True, metavar="ORG/NAME", help="hub id; created if it is new")
    add("--revision", help="branch to write, created if it is new (default: main)")
    add("--private", action="store_true", help="a new repository is private")
    add("--message", help="message of the commit (default: Upload model)")
    add("--dry-run", action="store_true", help="print the files and their size, upload nothing")
    args = parser.parse_args(argv)
    if not looks_like_hub_id(args.repo) or "@" in args.repo:
        raise ValueError(f"--repo {args.repo}: expected a hub id, organisation/model")
    checkpoint = local_checkpoint(args.checkpoint)
    from models.pretrained import hub  # imports torch
    from models.pretrained.folders import model_folder

    folder = model_folder(checkpoint)
    upload = hub.prepare(folder, run_config(folder), args.repo)
    print(f"{folder}: {len(upload.names)} files, {upload.num_bytes / 1e6:.1f} MB")
    print("\n".join(f"  {name}" for name in upload.names))
    if local := upload.local_paths:
        more = "" if len(local) <= SHOWN_PATHS else f" and {len(local) - SHOWN_PATHS} more"
        shown = ", ".join(local[:SHOWN_PATHS]) + more
        print(f"warning: config.yaml or config.json publishes paths of this machine: {shown}", file=sys.stderr)
    if args.dry_run:
        print("nothing was uploaded (--dry-run)")
        print_next("the same command without --dry-run")
        return 0
    address = hub.push(
        upload, args.repo, private=args.private, revision=args.revision, message=args.message or "Upload model"
    )
    at = "" if args.revision is None else f"@{args.revision}"
    print(f"uploaded: {address}")
    print_next(f"use it anywhere as --checkpoint {args.repo}{at}")
    return 0


if __name__ == "__main__":
    run_command(main)
