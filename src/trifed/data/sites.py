"""Sites that a folder or a list of files shows: a file of rows, or a subfolder, for each."""

from __future__ import annotations

import re
from pathlib import Path

from trifed.data.images import image_folder
from trifed.data.readers import READERS

HELD_OUT = frozenset({"test", "validation", "valid", "val", "dev"})
"""Names of parts of a data set that are not for training."""
NOT_DATA = re.compile(r"^[._~]|^(readme|licen[cs]e)\b", re.IGNORECASE)
"""Names of files and folders that hold no data."""
_PART = re.compile(r"(part|shard|chunk|fold|batch|data|train|test)?[-_.]?\d+([-_.]of[-_.]\d+)?", re.IGNORECASE)
"""Names of the parts of one table, such as `part-0001` or `train-00000-of-00002`."""


def tables_in(folder: Path) -> list[Path]:
    """Return the files of rows directly in a folder, sorted by name."""
    files = (file for file in folder.iterdir() if file.suffix.lower() in READERS and not NOT_DATA.match(file.name))
    return sorted(file for file in files if file.is_file())


def site_folders(folder: Path) -> list[Path]:
    """Return the subfolders with a site's data each: files of rows, or images in a subfolder for each label.

    There are none if the folder itself has files of rows, or images in subfolders, whose names are then labels.
    """
    if tables_in(folder) or image_folder(folder):
        return []
    inner = sorted(sub for sub in folder.iterdir() if sub.is_dir() and not NOT_DATA.match(sub.name))
    return [sub for sub in inner if tables_in(sub) or image_folder(sub)]


def visible_sites(source: str | list[str]) -> list[str]:
    """Return the names of the sites whose files or subfolders `source` names; empty if it does not show several.

    Parts of one table and splits of one data set are no sites.
    """
    if isinstance(source, list):
        names = [Path(name).stem for name in source]
    else:
        folder = Path(source).expanduser()
        saved = any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
        if saved or not folder.is_dir():
            return []
        names = [path.stem if path.is_file() else path.name for path in tables_in(folder) or site_folders(folder)]
    parts = any(_PART.fullmatch(name) or name.lower() in {"train", *HELD_OUT} for name in names)
    return names if len(set(names)) == len(names) > 1 and not parts else []
