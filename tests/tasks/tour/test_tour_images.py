"""Images, with labels or captions, as people bring them: from files to predictions, or one message."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from tour_cases import (
    BY_SITE,
    HUES,
    Case,
    Rows,
    changed,
    csv_of,
    encoded,
    jsonl_of,
    odd_pictures,
    parquet_of,
    picture,
    sets,
    without,
)

LABELS = tuple(HUES)
TWO = ("--split", "iid", "--clients", "2")
DEALT = ("client-00", "client-01")
PICTURES = {
    f"photos/{hue}/{number}.png": picture(hue, 10 * place + number)
    for place, hue in enumerate(HUES)
    for number in range(8)
}
"""24 images in a folder for each label."""
ROWS = [
    {"file": name, "label": name.split("/")[1], "site": "elm" if number % 2 else "oak"}
    for number, name in enumerate(PICTURES)
]
EMBEDDED = [{"image": {"bytes": PICTURES[row["file"]], "path": None}, **without([row], "file")[0]} for row in ROWS]
BROKEN = PICTURES["photos/green/3.png"][:200]
BY_FILE = (*BY_SITE, "--image", "file")
FEW = {name: content for name, content in PICTURES.items() if name.endswith(("0.png", "1.png"))}
NEW = {name.replace("photos", "new"): content for name, content in FEW.items()}


def folder(name: str, files: dict[str, bytes], *flags: str, **more: Any) -> Case:
    """A folder with a subfolder for each label, dealt out to two clients."""
    usual = {"clients": DEALT, "labels": LABELS, "kept": len(files), "rows": len(files)}
    new = more.pop("beside", {})
    return Case(name, {**files, **new}, "photos", (*TWO, *flags), **{**usual, **more})


def table(name: str, file: str, content: bytes, **more: Any) -> Case:
    """A table of paths beside the images."""
    usual = {"labels": LABELS, "kept": 24, "rows": 24}
    return Case(name, {**PICTURES, file: content}, file, BY_FILE, **{**usual, **more})


def refused(name: str, files: dict[str, bytes], *says: str, data: str = "photos", flags=TWO) -> Case:
    return Case(name, files, data, flags, refused="run", says=says)


PHOTOS = [
    folder("a folder a label", PICTURES),
    Case(
        "a folder a site, with a folder a label",
        {
            f"sites/{row['site']}/{row['label']}/{n}.jpg": picture(row["label"], n, "JPEG")
            for n, row in enumerate(ROWS)
        },
        "sites",
        (),
        labels=LABELS,
        kept=24,
        new="sites/elm",
        rows=12,
    ),
    table("paths in a CSV file", "t.csv", csv_of(ROWS)),
    table("paths in JSON lines", "t.jsonl", jsonl_of(ROWS)),
    Case(
        "images in a Parquet file",
        {"t.parquet": parquet_of(EMBEDDED)},
        "t.parquet",
        BY_SITE,
        labels=LABELS,
        rows=24,
    ),
    folder(
        "images of every kind",
        {**PICTURES, **{f"photos/green/{name}": content for name, content in odd_pictures().items()}},
    ),
    folder(
        "an image that is there twice", {**PICTURES, "photos/green/9.png": PICTURES["photos/green/3.png"]}, kept=24
    ),
    folder(
        "what a Mac and Windows add", PICTURES, beside={"photos/green/._3.png": b"", "photos/amber/Thumbs.db": b""}
    ),
    folder(
        "a broken image that is left out",
        {**PICTURES, "photos/green/3.png": BROKEN},
        *sets(data__skip_broken="true"),
        kept=23,
        beside=NEW,
        new="new",
        rows=6,
    ),
    refused("a broken image", {**PICTURES, "photos/green/3.png": BROKEN}, "green/3.png", "data.skip_broken"),
    refused("an empty image", {**PICTURES, "photos/green/3.png": b""}, "green/3.png", "data.skip_broken"),
    refused(
        "pixels of no known range",
        {**PICTURES, "photos/green/3.tiff": encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF")},
        "green/3.tiff",
        "8 or 16",
    ),
    refused(
        "a file that is not there",
        {**PICTURES, "t.csv": csv_of(changed(ROWS, 5, file="photos/none.png"))},
        "t.csv, row 5",
        "none.png",
        data="t.csv",
        flags=BY_FILE,
    ),
    refused(
        "a column that is not there",
        {**PICTURES, "t.csv": csv_of(ROWS)},
        "'image'",
        "data.image",
        data="t.csv",
        flags=BY_SITE,
    ),
    refused("a folder without images", {"photos/green/notes.txt": b"none"}, "photos", "a subfolder a label"),
    refused(
        "one label",
        {name: content for name, content in PICTURES.items() if "green" in name},
        "data.label",
        flags=("--split", "iid", "--clients", "1", *sets(data__clients__min_examples=5)),
    ),
    folder(
        "a new label",
        PICTURES,
        beside={**NEW, "new/red/0.png": picture("amber", 70)},
        new="new",
        rows=7,
        refused="evaluate",
        says=("'red'",),
    ),
    folder(
        "a broken new image",
        PICTURES,
        beside={**NEW, "new/green/0.png": BROKEN},
        new="new",
        refused="predict",
        says=("green/0.png",),
    ),
]
SENTENCES = {
    "a folder a label", "a folder a site, with a folder a label", "paths in a CSV file", "a broken image",
    "images in a Parquet file", "images of every kind", "an image that is there twice", "a file that is not there",
    "one label", "a new label",
}  # fmt: skip
"""Which of them models of images and texts are shown too."""


def a_label(case: Case) -> Any:
    def check(row: dict[str, Any]) -> None:
        assert row["label"] in case.labels
        assert 1 / len(case.labels) - 1e-3 <= row["probability"] <= 1

    return check


def scores(one: dict[str, Any]) -> None:
    assert one["loss"] > 0 and 0 <= one["macro_f1"] <= 1


@pytest.mark.parametrize("case", PHOTOS, ids=lambda case: case.name)
def test_a_vision_model_classifies(tour, tiny_vision, case):
    tour(case, ("--task", "image-classification", "--model", tiny_vision()), a_label(case), scores)


@pytest.mark.tour
@pytest.mark.parametrize("case", [case for case in PHOTOS if case.name in SENTENCES], ids=lambda case: case.name)
def test_sentences_classify(tour, tiny_towers, case):
    tour(case, ("--task", "image-text", "--model", tiny_towers()), a_label(case), scores)


CAPTIONED = [
    {**row, "text": f"a {row['label']} thing {'of' if n % 3 else 'photo'} ."} for n, row in enumerate(ROWS)
]


def captions(name: str, pairs: Rows, file: str = "t.csv", write: Any = csv_of, **more: Any) -> Case:
    files = {**PICTURES, file: write(without(pairs, "label"))}
    return Case(name, files, file, BY_FILE, **{"rows": 24, "kept": 24, **more})


PAIRS = [
    captions("captions in a CSV file", CAPTIONED),
    captions("captions in JSON lines", CAPTIONED, "t.jsonl", jsonl_of),
    captions("captions in tabs", CAPTIONED, "t.tsv", lambda rows: csv_of(rows, "\t", "\r\n")),
    Case(
        "images in a Parquet file",
        {"t.parquet": parquet_of([{**row, "text": f"a photo of {row['label']}"} for row in EMBEDDED])},
        "t.parquet",
        BY_SITE,
        rows=24,
    ),
    captions("a caption that is too long", changed(CAPTIONED, 2, text="a violet thing " * 40)),
    captions("a caption of an emoji", changed(CAPTIONED, 2, text="\U0001f600")),
    captions("pairs that are there twice", [*CAPTIONED, *CAPTIONED[:4]], rows=28),
    captions("an empty caption", changed(CAPTIONED, 2, text=""), refused="run", says=("t.csv, row 2", "'text'")),
    captions("no captions", without(CAPTIONED, "text"), refused="run", says=("t.csv", "'text'", "data.text")),
    captions(
        "a file that is not there", changed(CAPTIONED, 2, file="x.png"), refused="run", says=("row 2", "x.png")
    ),
]


@pytest.mark.parametrize("case", PAIRS, ids=lambda case: case.name)
def test_captions_are_matched(tour, tiny_towers, case):
    texts = ("a photo of amber", "a violet thing")

    def check(row: dict[str, Any]) -> None:
        assert row["label"] in texts and 0.5 <= row["probability"] <= 1

    def score(one: dict[str, Any]) -> None:
        assert one["accuracy"] == pytest.approx((one["caption_found"] + one["image_found"]) / 2)

    flags = ("--task", "image-text-pairs", "--model", tiny_towers(), "--set", "model.max_length=16")
    tour(case, flags, check, score, [word for text in texts for word in ("--text", text)])
