"""Read the data of `data.source` as one checked table.

A name that exists on this machine is a file or folder, and a list names files. Any other name in the form of a hub
name is loaded from the hub through the usual cache of `datasets` (HF_HOME): a second run needs no network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import DataError
from trifed.data import columns, images, tags
from trifed.data.readers import READERS, RawTable, TextFormat, from_arrow, read_file
from trifed.data.roles import TARGET, TEXTS, Roles
from trifed.data.settings import DataSettings
from trifed.data.sites import HELD_OUT, NOT_DATA, site_folders, tables_in

ONE_LABEL = "all"
"""The label of every row of a table without labels."""

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_FILE_LIKE = re.compile(r"\.[A-Za-z]{2,8}$")


@dataclass(frozen=True)
class Table:
    """All n rows of a source.

    Attributes:
        inputs: Values by role, (n,) each.
        labels: (n,); `ONE_LABEL` for each row if the labels are `targets`.
        groups: Each row's client, from the client column or the file's stem, (n,).
        group_names: All clients, including those without a row.
        skipped: Number of rows that were skipped because they cannot be read.
        targets: Labels that are no classes, (n,): numbers, or tuples of labels, and later rows of an array. None
            if the labels are classes.
    """

    inputs: Mapping[str, list[Any]]
    labels: list[str] | list[int]
    groups: list[str] | None
    group_names: list[str] | None
    skipped: int = 0
    targets: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, rows: NDArray[np.int64]) -> Table:
        """Return the table of the given rows, (m,), with all client names."""

        def pick(values: Sequence[Any]) -> list[Any]:
            return [values[row] for row in rows]

        inputs = {role: pick(cells) for role, cells in self.inputs.items()}
        return replace(
            self,
            inputs=inputs,
            labels=pick(self.labels),
            groups=self.groups and pick(self.groups),
            targets=self.targets and pick(self.targets),
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
    by_file = settings.clients.split == "files"
    column = settings.clients.column
    wanted = _wanted(settings, roles) | ({} if column is None else {"data.clients.column": column})
    raw = _read_source(settings.source, wanted, settings)
    if by_file:
        _check_one_file_a_client(raw, settings)
    _check_not_empty(raw, allowed=by_file and settings.allow_empty_clients)
    if by_file:
        groups = [_client(table) for table in raw for _ in table.rows]
        return _table(raw, settings, roles, groups, list(dict.fromkeys(map(_client, raw))))
    if column is not None:
        groups = columns.read_groups(columns.cells(raw, column), column)
        return _table(raw, settings, roles, groups, sorted(set(groups)))
    return _table(raw, settings, roles)


def read_test(settings: DataSettings, roles: Roles = TEXTS) -> Table | None:
    """Return the separate test set of `settings.test`, or None; raises as `read_table` does."""
    if settings.test is None:
        return None
    raw = _read_source(settings.test, _wanted(settings, roles), settings, setting="data.test")
    _check_not_empty(raw, allowed=False)
    return _table(raw, settings, roles, known_labels=True)


def is_on_hub(source: str) -> bool:
    """Return whether a source is not on this machine and can be the name of a data set or model on the hub."""
    here = Path(source).expanduser().exists()
    return not here and bool(_HUB_NAME.fullmatch(source)) and not _FILE_LIKE.search(source)


def _wanted(settings: DataSettings, roles: Roles) -> dict[str, str]:
    """Return the needed columns by the dotted name of the setting that names them."""
    of_roles = {f"data.{role.setting}": role.column(settings) for role in roles}
    named = {"data.label": settings.label or None, **of_roles}
    return {name: column for name, column in named.items() if column is not None}


def _table(
    raw: Sequence[RawTable],
    settings: DataSettings,
    roles: Roles,
    groups: list[str] | None = None,
    group_names: list[str] | None = None,
    *,
    known_labels: bool = False,
) -> Table:
    """Return the usable rows, or raise `DataError` if the settings do not allow to skip the others.

    With `known_labels` another table says which labels there are.
    """
    named = [(role, role.column(settings)) for role in roles]
    inputs = {
        role.key: role.read(columns.cells(raw, column), column, **role.options(settings))
        for role, column in named
        if column is not None
    }
    if tags.TAGS in inputs:
        tags.check_lengths(columns.cells(raw, settings.label), inputs["text"], inputs[tags.TAGS])
    targets = inputs.pop(TARGET, None)
    labels: list[str] | list[int] = [ONE_LABEL for table in raw for _ in table.rows]
    if settings.label and tags.TAGS not in inputs and targets is None:
        known_labels = known_labels or settings.labels is not None
        labels = columns.read_labels(columns.cells(raw, settings.label), settings.label, fractions=known_labels)
    table = Table(inputs, labels, groups, group_names, targets=targets)
    bad = {
        row: cell
        for cells in inputs.values()
        for row, cell in enumerate(cells)
        if isinstance(cell, columns.Unusable)
    }
    if not bad:
        return table
    first = bad[min(bad)]
    others = f" ({len(bad)} such rows in all)" if len(bad) > 1 else ""
    problem = f"{first.location}: {first.reason}{others}"
    if not settings.skip_broken:
        raise DataError(f"{problem}. Correct or remove it, or set data.skip_broken = true to skip such rows.")
    if len(bad) == len(table):
        raise DataError(f"{problem}; no row remains. Correct them, or use other data.")
    return replace(table.subset(np.setdiff1d(np.arange(len(table)), list(bad))), skipped=len(bad))


def _check_not_empty(raw: Sequence[RawTable], *, allowed: bool) -> None:
    empty = [table.where for table in raw if not table.rows]
    if len(empty) == len(raw) or (empty and not allowed):
        raise DataError(
            f"{empty[0]}: no rows; expected at least one example. Add rows or remove the file"
            ' (with data.clients.split = "files", allow_empty_clients = true keeps its client).'
        )


def _check_one_file_a_client(raw: Sequence[RawTable], settings: DataSettings) -> None:
    if len(raw) < 2:
        raise DataError(
            f'data.clients.split = "files" needs one file a client, got data.source = {settings.source!r}; '
            "name a list of files or a folder of them, or choose another split."
        )
    first: dict[str, RawTable] = {}
    for table in raw:
        other = first.setdefault(_client(table), table)
        if other is not table and not table.client:
            raise DataError(
                f"two files for one client name {_client(table)!r}: {other.where} and {table.where}. "
                "The file's name without its ending names the client; rename one of them."
            )


def _client(table: RawTable) -> str:
    """Return the client whose rows a table holds: its folder's name, or its file's."""
    return table.client or Path(table.where).stem


def _read_source(
    source: str | list[str], wanted: Mapping[str, str], settings: DataSettings, setting: str = "data.source"
) -> list[RawTable]:
    form = TextFormat(settings.separator, settings.encoding, "data.encoding", sheet=settings.sheet)
    if isinstance(source, list):
        return [read_file(Path(name).expanduser(), wanted, form) for name in source]
    path = Path(source).expanduser()
    split = "test" if setting == "data.test" else settings.hub_split
    if path.is_dir():
        return _read_folder(path, split, wanted, form)
    if path.exists():
        return [read_file(path, wanted, form)]
    if not is_on_hub(source):
        raise DataError(
            f"{setting} = {source!r}: no such file or folder (looked in {Path.cwd()}). "
            "Correct the path, or give the name of a data set on the hub."
        )
    return [_read_hub(source, split, wanted, settings, setting)]


def _read_folder(path: Path, split: str, wanted: Mapping[str, str], form: TextFormat) -> list[RawTable]:
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return [_read_saved(path, split, wanted)]
    with_images = "data.image" in wanted
    if pictures := images.image_folder(path) if with_images else []:
        return [images.table_of(path, pictures, wanted)]
    if folders := [folder for folder in site_folders(path) if with_images or tables_in(folder)]:
        _refuse_splits(path, folders)
        return [table for folder in folders for table in _of_site(folder, wanted, form)]
    instead = ", or a subfolder a label with images in it" if with_images else ""
    return [read_file(file, wanted, form) for file in _files_of(path, instead)]


def _of_site(folder: Path, wanted: Mapping[str, str], form: TextFormat) -> list[RawTable]:
    """Read the data of one site from its own folder."""
    files = tables_in(folder)
    _refuse_splits(folder, files)
    tables = [read_file(file, wanted, form) for file in files]
    if not files:
        tables = [images.table_of(folder, images.image_folder(folder), wanted)]
    return [replace(table, client=folder.name) for table in tables]


def _files_of(folder: Path, instead: str) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.is_file() and not NOT_DATA.match(file.name))
    if not files:
        raise DataError(
            f"{folder}: the folder holds no data files; expected some of {', '.join(READERS)}{instead}."
        )
    _refuse_splits(folder, files)
    return files


def _refuse_splits(folder: Path, parts: Sequence[Path]) -> None:
    """Raise `DataError` for files or subfolders of which some are for training and others are held out."""
    stems = {part.stem.lower() for part in parts}
    if "train" in stems and stems & HELD_OUT:
        raise DataError(
            f"{folder}: the folder holds the splits of one data set "
            f"({', '.join(part.name for part in parts)}), expected parts of one table. "
            "Name the training part as data.source, and the test part as data.test."
        )


def _read_saved(path: Path, split: str, wanted: Mapping[str, str]) -> RawTable:
    import datasets
    import pyarrow as pa

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
    return from_arrow(str(path), saved.with_format("arrow")[:], wanted, saved.features.arrow_schema.metadata)


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
    metadata = loaded.features.arrow_schema.metadata
    return from_arrow(f"{name} ({split})", loaded.with_format("arrow")[:], wanted, metadata)


def demo_corpus_path() -> Path:
    """Return the path of the demo corpus, JSON lines with the keys text, label and site.

    Raises:
        DataError: The installation lacks the file.
    """
    path = Path(str(resources.files("trifed.data").joinpath("demo", "support.jsonl")))
    if not path.is_file():
        raise DataError(f"{path}: the demo corpus is missing from this installation. Install trifed again.")
    return path
