"""Tables of single records (one episode, one answer) for analysis elsewhere: CSV or Parquet, with a version.

The first column, ``format``, names the kind of the table and the version of its columns in every row, so that tables
can be concatenated. A column is never renamed or reinterpreted within a version. docs/evaluation.md describes them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.files import atomic_path, write_text

SUFFIXES = (".csv", ".parquet")


def require_table_path(path: Path, option: str) -> None:
    """Raise ``ValueError`` naming ``option`` if the suffix is unknown, or is ``.parquet`` without pyarrow."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{option} {path}: a table of records ends in {' or '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise ValueError(f"{option} {path}: pip install pyarrow, or write .csv") from error


def write_record_table(path: Path, name: str, rows: Sequence[Mapping[str, str | int | float | None]]) -> None:
    """Write rows with equal keys, completely or not at all.

    The suffix of ``path`` selects CSV (None is an empty cell) or Parquet. ``name``: kind and version of the table, such
    as ``closed_loop/1``. Raises ``ValueError`` if rows have different columns.
    """
    require_table_path(path, "table")
    named = [{"format": name, **row} for row in rows]
    columns = list(named[0]) if named else ["format"]
    if any(list(row) != columns for row in named):
        raise ValueError(f"{path}: the rows of a table must have the same columns")
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        table = pyarrow.table({column: [row[column] for row in named] for column in columns})
        with atomic_path(path) as partial:
            parquet.write_table(table, partial)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(named)
    write_text(path, text.getvalue())
