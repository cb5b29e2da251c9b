"""The command `blockdiff-vla`: one name for the commands of this project."""
