"""What the tables of the tour are made of: an input as a user has it, and files of the usual formats."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

HUES = {"amber": (200, 150, 40), "green": (60, 190, 70), "violet": (150, 60, 200)}
BY_SITE = ("--split", "column", "--column", "site")


@dataclass(frozen=True)
class Case:
    """One input of the tour, and what is right for it.

    Attributes:
        name: What is special about it.
        files: Content of each file, by its path in the folder of the test.
        data: What `--data` names.
        flags: Further flags of `trifed run`.
        clients: Names of the clients that are found.
        labels: Labels that are found, in order; empty for a task without labels.
        kept: Examples that are found in all of them.
        new: What is predicted and evaluated; `data` unless it is given.
        rows: Rows of that.
        refused: Command that refuses the input with exit code 2 and one message: "run", "predict" or "evaluate".
        says: What this message names.
    """

    name: str
    files: Mapping[str, bytes]
    data: str
    flags: tuple[str, ...] = ()
    clients: tuple[str, ...] = ("elm", "oak")
    labels: tuple[str, ...] = ()
    kept: int | None = None
    new: str = ""
    rows: int = 0
    refused: str = ""
    says: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.new:
            object.__setattr__(self, "new", self.data)


def sets(**values: object) -> tuple[str, ...]:
    """`sets(data__encoding="cp1252")`: flags for settings, with two underscores for a dot."""
    return tuple(
        word for name, value in values.items() for word in ("--set", f"{name.replace('__', '.')}={value}")
    )


Rows = Sequence[Mapping[str, Any]]


def csv_of(rows: Rows, separator: str = ",", line: str = "\n", encoding: str = "utf-8") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator, lineterminator=line)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(encoding)


def jsonl_of(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def array_of(rows: Rows) -> bytes:
    return json.dumps(list(rows), indent=1).encode()


def parquet_of(rows: Rows) -> bytes:
    made = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), made)
    return made.getvalue()


def changed(rows: Rows, row: int, **cells: Any) -> list[dict[str, Any]]:
    """The rows with other cells in one of them, which is counted from 1 as messages do."""
    return [{**cells_of, **cells} if number == row else dict(cells_of) for number, cells_of in enumerate(rows, 1)]


def without(rows: Rows, *columns: str) -> list[dict[str, Any]]:
    return [{name: cell for name, cell in row.items() if name not in columns} for row in rows]


def of_site(rows: Rows, site: str) -> list[dict[str, Any]]:
    return [dict(row) for row in rows if row["site"] == site]


def pixels(hue: str, seed: int, shape: tuple[int, int] = (18, 21)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.normal(HUES[hue], 60, (*shape, 3)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    made = io.BytesIO()
    image.save(made, kind, **options)
    return made.getvalue()


def picture(hue: str, seed: int, kind: str = "PNG") -> bytes:
    """The file of a noisy image of a hue."""
    return encoded(pixels(hue, seed), kind)


def odd_pictures() -> dict[str, bytes]:
    """Files of images as cameras, scanners and programs write them, by the ending of their names."""
    image, other = pixels("green", 90), pixels("green", 91)
    deep = Image.fromarray((np.asarray(image.convert("L")).astype(np.uint16) << 8) + 5)
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "gray.png": encoded(image.convert("L")),
        "print.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "clear.png": encoded(image.quantize(16), transparency=bytes([0, 90] + [255] * 14)),
        "moving.gif": encoded(image, "GIF", save_all=True, append_images=[other]),
        "deep.png": encoded(deep),
        "PHOTO.JPG": encoded(other, "JPEG", exif=turned),
        "scan.tiff": encoded(image.convert("1"), "TIFF"),
        "web.webp": encoded(image, "WEBP"),
        "one.bmp": encoded(image.resize((1, 1)), "BMP"),
    }
