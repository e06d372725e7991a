"""The demo corpus of the package: support requests of several sites."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from trifed.common.errors import DataError


def demo_corpus_path() -> Path:
    """Return the path of the demo corpus, JSON lines with the keys text, label and site.

    Raises:
        DataError: The installation lacks the file.
    """
    path = Path(str(resources.files("trifed.data").joinpath("demo", "support.jsonl")))
    if not path.is_file():
        raise DataError(f"{path}: the demo corpus is missing from this installation. Install trifed again.")
    return path
