"""Files of words and tags, one word a line, as in the shared tasks of CoNLL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from trifed.common.errors import DataError


def conll_columns(
    path: Path, text: str, wanted: Mapping[str, str]
) -> tuple[dict[str, list[list[str]]], list[int]]:
    """Return the columns of a CoNLL file, and the line at which each sentence begins.

    Each line has a word, and its tag as the last of several columns that white space separates. Empty lines
    separate sentences. Lines with -DOCSTART- and lines of comments, "# ...", between sentences are left out.

    Args:
        path: The file, for messages.
        text: Its content.
        wanted: Names for the two columns, by the dotted name of the setting that names them.

    Raises:
        DataError: A line has one column alone although tags are wanted, or other columns are wanted too.
    """
    settings = {setting.rpartition(".")[2].strip("-").removesuffix("-column"): setting for setting in wanted}
    names = {key: wanted[setting] for key, setting in settings.items()}
    if other := sorted(set(names) - {"text", "label"}):
        raise DataError(
            f"{path}: a CoNLL file has words and tags alone, but {settings[other[0]]} names the column "
            f"'{names[other[0]]}'. Leave it out, or write the sentences as JSON lines."
        )
    sentences: list[list[list[str]]] = []
    lines: list[int] = []
    inside, columns = False, 2
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        cells = re.split(r"[ \t]+", line.strip(" \t"))  # other white space may belong to a word
        if cells == [""] or cells[0] == "-DOCSTART-" or (not inside and _is_comment(line, cells, columns)):
            inside = False
            continue
        if "label" in names and len(cells) < 2:
            raise DataError(f"{path}, line {number}: got {line.strip()!r:.60}, expected a word and its tag.")
        if not inside:
            sentences.append([])
            lines.append(number)
            inside = True
        columns = len(cells)
        sentences[-1].append(cells)
    places = {"text": 0, "label": -1}
    return {name: [[c[places[key]] for c in one] for one in sentences] for key, name in names.items()}, lines


def _is_comment(line: str, cells: list[str], columns: int) -> bool:
    """Return whether the first line of a sentence is a comment, such as `# text = …`, and not the word "#".

    Words have as many columns as the last one, or two at the beginning of the file.
    """
    return line.startswith("# ") and (len(cells) != columns or cells[1] in ("newdoc", "newpar"))
