"""Tables in memory as data: a DataFrame, a `datasets.Dataset`, an Arrow table, rows, or columns.

A run is continued from its settings alone, so such a table is written to a file first, whose name is a hash of its
content: `runs/tables/HASH.parquet`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trifed.common.files import whole_file

FOLDER = Path("runs") / "tables"


def names_files(source: Any) -> bool:
    """Return whether a source names files, or data sets on the hub."""
    return isinstance(source, str) or (isinstance(source, list) and all(isinstance(name, str) for name in source))


def as_file(source: Any) -> str:
    """Write a table to a Parquet file, and return the file's absolute path.

    Args:
        source: A pandas DataFrame, a `datasets.Dataset`, a PyArrow table, a list of rows as dictionaries, or a
            dictionary of columns.

    Raises:
        ValueError: It is none of these, or its columns have values of mixed types.
    """
    import pyarrow.parquet as pq

    content = io.BytesIO()
    pq.write_table(_arrow_table(source), content)
    digest = hashlib.sha256(content.getvalue()).hexdigest()[:16]
    path = (FOLDER / f"{digest}.parquet").absolute()
    if not path.is_file():
        with whole_file(path) as partial:
            partial.write_bytes(content.getvalue())
    return str(path)


def _arrow_table(source: Any) -> Any:
    import pyarrow as pa

    try:
        if isinstance(source, pa.Table):
            return source
        if isinstance(source, list) and source and all(isinstance(row, Mapping) for row in source):
            return pa.Table.from_pylist([dict(row) for row in source])
        if isinstance(source, Mapping):
            return pa.table(dict(source))
        if hasattr(source, "with_format") and hasattr(source, "features"):  # datasets.Dataset
            table = source.with_format("arrow")[:]
            return table.replace_schema_metadata(source.features.arrow_schema.metadata)
        if hasattr(source, "to_records") and hasattr(source, "columns"):  # pandas.DataFrame
            return pa.Table.from_pandas(source, preserve_index=False)
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(f"cannot be written as a table ({error}); give each column values of one type") from error
    raise ValueError(
        f"got a {type(source).__name__}, expected a file, a folder, a hub name, or a table: a DataFrame, a "
        "datasets.Dataset, a PyArrow table, a list of dictionaries, or a dictionary of columns"
    )
