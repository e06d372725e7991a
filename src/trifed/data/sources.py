"""Read the data of `data.source` as one checked table.

A name that exists on this machine is a file or folder, and a list names files. Any other name in the form of a hub
name is loaded from the hub through the usual cache of `datasets` (HF_HOME): a second run needs no network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trifed.common.errors import DataError
from trifed.data import columns, images
from trifed.data.readers import ENDINGS, RawTable, from_arrow, read_file
from trifed.data.roles import TEXTS, Roles, Unusable
from trifed.data.settings import DataSettings

UNLABELLED = "all"
"""The label of every row of a table without labels."""

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_FILE_LIKE = re.compile(r"\.[A-Za-z]{2,8}$")
_HELD_OUT = {"test", "validation", "valid", "val", "dev"}
_NOT_DATA = re.compile(r"^[._]|^(readme|licen[cs]e)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """All n rows of a source.

    Attributes:
        inputs: Values by role, (n,) each.
        labels: (n,).
        groups: Each row's client, from the client column or the file's stem, (n,).
        group_names: All clients, including those without a row.
        locations: Each row's file and its 1-based row (for JSON Lines, its line), (n,).
        skipped: Number of rows that were skipped because they cannot be read.
    """

    inputs: Mapping[str, list[Any]]
    labels: list[str] | list[int]
    groups: list[str] | None
    group_names: list[str] | None
    locations: list[tuple[str, int]]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> Table:
        """Return the table of the given rows, (m,), with all client names."""

        def pick(values: Sequence[Any]) -> list[Any]:
            return [values[row] for row in rows]

        return Table(
            {role: pick(cells) for role, cells in self.inputs.items()},
            pick(self.labels),
            None if self.groups is None else pick(self.groups),
            self.group_names,
            pick(self.locations),
            self.skipped,
        )


def read_table(settings: DataSettings, roles: Roles = TEXTS) -> Table:
    """Read and check the table of `settings.source`.

    Args:
        settings: The settings of the data.
        roles: The columns that a model reads.

    Raises:
        DataError: A source that cannot be found or reached, a file that cannot be read, a missing column, or rows
            without a usable cell, label or client. Each message names the file and the row.
    """
    wanted = _wanted(settings, roles)
    by_column = settings.clients.split == "column" and settings.clients.column is not None
    if by_column:
        wanted["data.clients.column"] = str(settings.clients.column)
    by_file = settings.clients.split == "files"
    if isinstance(settings.source, list):
        files = [Path(name).expanduser() for name in settings.source]
        raw = [read_file(file, wanted, settings.label or None) for file in files]
    else:
        files, raw = _read_source(settings.source, wanted, settings)
    if by_file:
        _check_one_file_a_client(files, settings)
    _check_not_empty(raw, allowed=by_file and settings.allow_empty_clients)
    groups: list[str] | None = None
    group_names: list[str] | None = None
    if by_file:
        groups = [file.stem for file, table in zip(files, raw, strict=True) for _ in table.rows]
        group_names = [file.stem for file in files]
    elif by_column:
        column = str(settings.clients.column)
        groups = columns.read_groups(columns.cells(raw, column), column)
        group_names = sorted(set(groups))
    return _table(raw, settings, roles, groups, group_names)


def read_test(settings: DataSettings, roles: Roles = TEXTS) -> Table | None:
    """Return the separate test set of `settings.test`, or None; raises as `read_table` does."""
    if settings.test is None:
        return None
    _, raw = _read_source(settings.test, _wanted(settings, roles), settings, setting="data.test")
    _check_not_empty(raw, allowed=False)
    return _table(raw, settings, roles, None, None)


def _wanted(settings: DataSettings, roles: Roles) -> dict[str, str]:
    """Return the needed columns by the dotted name of the setting that names them."""
    named = {f"data.{role.setting}": role.column(settings) for role in roles}
    return {
        name: column
        for name, column in {"data.label": settings.label or None, **named}.items()
        if column is not None
    }


def _table(
    raw: Sequence[RawTable],
    settings: DataSettings,
    roles: Roles,
    groups: list[str] | None,
    group_names: list[str] | None,
) -> Table:
    named = [(role, role.column(settings)) for role in roles]
    table = Table(
        inputs={
            role.setting: role.read(columns.cells(raw, column), column)
            for role, column in named
            if column is not None
        },
        labels=_labels(raw, settings.label or None),
        groups=groups,
        group_names=group_names,
        locations=[(part.where, row) for part in raw for row in part.rows],
    )
    return _usable(table, settings)


def _labels(raw: Sequence[RawTable], column: str | None) -> list[str] | list[int]:
    """Return the labels, or `UNLABELLED` for all rows if there is no label column."""
    if column is None:
        return [UNLABELLED for table in raw for _ in table.rows]
    return columns.read_labels(columns.cells(raw, column), column)


def _usable(table: Table, settings: DataSettings) -> Table:
    """Return the table without unusable rows, or raise `DataError` if the settings do not allow to skip them."""
    bad = {
        row: cell
        for cells in table.inputs.values()
        for row, cell in enumerate(cells)
        if isinstance(cell, Unusable)
    }
    if not bad:
        return table
    first = bad[min(bad)]
    others = f" ({len(bad)} such rows in all)" if len(bad) > 1 else ""
    if not settings.skip_broken:
        raise DataError(
            f"{first.place}: {first.reason}{others}. Correct or remove it, or set data.skip_broken = true to skip "
            f"such rows."
        )
    if len(bad) == len(table):
        raise DataError(f"{first.place}: {first.reason}{others}; no row remains. Correct them, or use other data.")
    kept = np.array([row for row in range(len(table)) if row not in bad], np.int64)
    return replace(table.take(kept), skipped=len(bad))


def _check_not_empty(raw: Sequence[RawTable], *, allowed: bool) -> None:
    empty = [table.where for table in raw if not table.rows]
    if len(empty) == len(raw) or (empty and not allowed):
        raise DataError(
            f"{empty[0]}: no rows; expected at least one example. Add rows or remove the file"
            ' (with data.clients.split = "files", allow_empty_clients = true keeps its client).'
        )


def _check_one_file_a_client(files: Sequence[Path], settings: DataSettings) -> None:
    if len(files) < 2:
        raise DataError(
            f'data.clients.split = "files" needs one file a client, got data.source = {settings.source!r}; '
            "name a list of files or a folder of them, or choose another split."
        )
    stems: dict[str, Path] = {}
    for file in files:
        if file.stem in stems:
            raise DataError(
                f"two files for one client name {file.stem!r}: {stems[file.stem]} and {file}. "
                "The file's name without its ending names the client; rename one of them."
            )
        stems[file.stem] = file


def _read_source(
    source: str, wanted: Mapping[str, str], settings: DataSettings, setting: str = "data.source"
) -> tuple[list[Path], list[RawTable]]:
    """Return the files of a source (none for saved and hub data) and their raw tables."""
    path = Path(source).expanduser()
    split = "test" if setting == "data.test" else settings.hub_split
    if path.is_dir():
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            return [], [_read_saved(path, split, wanted, settings)]
        pictures = images.image_folder(path) if "data.image" in wanted else []
        if pictures:
            return [], [images.table_of(path, pictures, wanted)]
        files = _files_of(path, ", or a subfolder a label with images in it" if "data.image" in wanted else "")
        return files, [read_file(file, wanted, settings.label or None) for file in files]
    if path.exists():
        return [path], [read_file(path, wanted, settings.label or None)]
    if not _HUB_NAME.fullmatch(source) or _FILE_LIKE.search(source):
        raise DataError(
            f"{setting} = {source!r}: no such file or folder (looked in {Path.cwd()}). "
            "Correct the path, or give the name of a data set on the hub."
        )
    return [], [_read_hub(source, split, wanted, settings, setting)]


def _files_of(folder: Path, instead: str) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.is_file() and not _NOT_DATA.match(file.name))
    if not files:
        raise DataError(
            f"{folder}: the folder holds no data files; expected some of {', '.join(ENDINGS)}{instead}."
        )
    stems = {file.stem.lower() for file in files}
    if "train" in stems and stems & _HELD_OUT:
        raise DataError(
            f"{folder}: the folder holds the splits of one data set "
            f"({', '.join(file.name for file in files)}), expected parts of one table. "
            "Name the training file as data.source, and the test file as data.test."
        )
    return files


def _read_saved(path: Path, split: str, wanted: Mapping[str, str], settings: DataSettings) -> RawTable:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable `save_to_disk` folder ({error}). Save it again.") from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            raise DataError(
                f"{path}: no split {split!r}; the splits are {', '.join(map(repr, saved))}. "
                "Set data.hub_split to one of them (data.test always reads the split 'test')."
            )
        saved = saved[split]
    return _from_dataset(str(path), saved, wanted, settings.label or None)


def _read_hub(name: str, split: str, wanted: Mapping[str, str], settings: DataSettings, setting: str) -> RawTable:
    import datasets

    try:
        loaded = datasets.load_dataset(name, settings.hub_subset, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{setting} = {name!r}: no file or folder of that name here ({Path.cwd()}), and it could not be "
            f"loaded from the hub ({type(error).__name__}: {reason}). Without a network, name a local file; "
            f"with one, check the name, hub_subset = {settings.hub_subset!r} and the split {split!r}."
        ) from error
    return _from_dataset(f"{name} ({split})", loaded, wanted, settings.label or None)


def _from_dataset(where: str, dataset: Any, wanted: Mapping[str, str], label: str | None) -> RawTable:
    import datasets

    feature = dataset.features.get(label)
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    return from_arrow(where, dataset.with_format("arrow")[:], wanted, names)
