"""What every package may use: files, locks, process ranks, constants. Imports no torch and no other package here."""

import os
import sys
from pathlib import Path

# OpenMP's threads wait for each other by spinning. On a busy machine a spinning thread takes the core that the one it
# waits for needs: a small operation of torch took 185 ms instead of 0.3 (docs/log.md). This limit is reached in
# microseconds and costs nothing on an idle machine. It has to be set before torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def _require_packages_of_main() -> None:
    """Exit with code 2 if the running script lies in another checkout than this package.

    Python finds a script by its path, but the packages that the script imports through the installed checkout. Files of
    the Python environment (pytest, Jupyter) are no scripts of a checkout, even if the environment lies in one.
    """
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    root, environment = Path(__file__).resolve().parents[1], Path(sys.prefix).resolve()
    folders = Path(file).resolve().parents if file else ()
    if environment in folders:
        return
    for folder in folders:
        if (folder / "common" / "__init__.py").is_file() and (folder / "train_upvla.py").is_file():
            if folder != root:
                print(
                    f"{file} imports the packages of another checkout, {root}: "
                    f"run pip install -e {folder}, or set PYTHONPATH={folder}",
                    file=sys.stderr,
                )
                sys.exit(2)
            return


_require_packages_of_main()
