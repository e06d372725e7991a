"""Images from cells of a table (embedded, or paths of files) or from a folder with one subfolder per label."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trifed.common.errors import DataError
from trifed.data.columns import Cell, Unusable, is_blank, location
from trifed.data.readers import RawTable, check_columns

if TYPE_CHECKING:
    from PIL import Image

# Functions import Pillow, because a table of texts need not wait for it.

ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})
TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
    8: "ROTATE_90",
}  # fmt: skip
"""Pillow's way to turn an image upright, by the orientation that a camera writes into its metadata (EXIF)."""


def read_images(column: Sequence[Cell], name: str) -> list[Any]:
    """Return the bytes of each cell's image file, (n,), or `Unusable` for a cell without a decodable image.

    A cell is a file's path (absolute, or relative to the table's folder), a file's bytes, or `{bytes, path}` as in
    `datasets`.
    """
    return [_checked(cell, name) for cell in column]


def _checked(cell: Cell, name: str) -> bytes | Unusable:
    from PIL import Image, UnidentifiedImageError

    table, _, value = cell
    if isinstance(value, Mapping) and "bytes" in value:
        value = value["bytes"] if value["bytes"] is not None else value.get("path")
    where = f"the image in column {name!r}"
    if is_blank(value):
        return Unusable(location(cell), f"{where} is missing")
    if isinstance(value, str | Path):
        path = Path(table.where).parent / value  # an absolute path is not changed
        where = str(path)
        try:
            value = path.read_bytes()
        except (OSError, ValueError) as error:  # a ValueError is of a path with a character that no path has
            return Unusable(location(cell), f"{path} cannot be read ({getattr(error, 'strerror', error)})")
    if not isinstance(value, bytes):
        reason = f"column {name!r} holds a {type(value).__name__}, expected an image or the path of one"
        return Unusable(location(cell), reason)
    try:
        with warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always")
            picture = open_rgb(value)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).replace(f"{io.BytesIO.__module__}.", "").split(" <")[0]
        return Unusable(location(cell), f"{where} is no image that can be read ({reason})")
    except DataError as error:
        return Unusable(location(cell), f"{where} is {error}")
    # An image that Pillow warns about, such as one with damaged metadata, is kept without what it warns about.
    return as_png(picture) if remarks else value


def open_image(encoded: bytes) -> Image.Image:
    """Open the image of a file's bytes."""
    from PIL import Image

    return Image.open(io.BytesIO(encoded))


def open_rgb(encoded: bytes) -> Image.Image:
    """Return the image of a file's bytes in three colors of 8 bits, as `as_rgb` does; raises as it does."""
    return as_rgb(open_image(encoded))


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an image in three colors of 8 bits, upright: turned as its camera was held.

    Of 16 bits the upper 8 are used; Pillow's own conversion would make nearly all of them white. Of an animation
    the first image is used.

    Raises:
        DataError: The image has pixels whose range is not known, of 32 bits or fractions.
    """
    import numpy as np
    from PIL import Image

    image.load()
    if (orientation := _orientation(image)) in TURNS:
        image = image.transpose(Image.Transpose[TURNS[orientation]])
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(
            f"an image with pixels of Pillow's mode '{image.mode}', whose range is not known; expected 8 or 16 "
            "bits for each color"
        )
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # otherwise Pillow warns
    plain = image.convert("RGB")  # a copy
    plain.info = {}  # with the orientation it would be turned again
    return plain


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(0x0112)
    except (SyntaxError, ValueError, TypeError, KeyError, struct.error):  # damaged metadata of a whole image
        return None


def as_png(image: Image.Image) -> bytes:
    """Return an image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    as_rgb(image).save(buffer, "PNG")
    return buffer.getvalue()


def image_folder(folder: Path) -> list[Path]:
    """Return the images of a folder with one subfolder per label, sorted by label and name."""
    return [
        file
        for label in sorted(folder.iterdir())
        if label.is_dir() and not label.name.startswith((".", "_"))
        for file in images_in(label)
    ]


def images_in(folder: Path) -> list[Path]:
    """Return the images directly in a folder, sorted by name."""
    files = (file for file in folder.iterdir() if not file.name.startswith("."))  # macOS adds ._NAME to NAME
    return sorted(file for file in files if file.suffix.lower() in ENDINGS)


def table_of(folder: Path, files: Sequence[Path], wanted: Mapping[str, str]) -> RawTable:
    """Return an image folder as a table of the images' paths and of their folders' names as labels.

    Raises:
        DataError: Another column is needed.
    """
    image, label = wanted["data.image"], wanted["data.label"]
    check_columns(str(folder), [image, label], wanted)
    columns: dict[str, list[Any]] = {
        image: [file.absolute() for file in files],
        label: [file.parent.name for file in files],
    }
    return RawTable(str(folder), columns, range(1, len(files) + 1), unit="image")


def encoded(image: Any) -> bytes:
    """Return a path's file, bytes or a PIL image as the bytes of a file."""
    from PIL import Image

    if isinstance(image, bytes):
        return image
    return as_png(image) if isinstance(image, Image.Image) else Path(image).read_bytes()
