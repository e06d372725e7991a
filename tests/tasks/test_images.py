"""Images in: from tables, paths and folders; broken ones named, or left out and counted."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from trifed.common.errors import DataError
from trifed.data import IMAGES, DataSettings, as_png, make_clients, open_image, open_rgb, read_table


def settings(source, **more):
    return DataSettings(source=str(source), clients={"split": "iid", "count": 1, "min_examples": 1}, **more)


def test_a_folder_a_list_of_paths_and_a_table_hold_the_same_images(image_folder, paths_table):
    folder = read_table(settings(image_folder), IMAGES)
    listed = read_table(settings(paths_table, image="file"), IMAGES)
    assert folder.labels == listed.labels == [label for label in ("amber", "green", "violet") for _ in range(6)]
    assert folder.inputs["image"] == listed.inputs["image"]
    assert folder.inputs["image"][7] == (image_folder / "green" / "1.jpg").read_bytes()


def test_embedded_images_are_files_bytes(images_table):
    table = read_table(settings(images_table), IMAGES)
    assert len(table) == 72
    assert open_image(table.inputs["image"][0]).format == "PNG"


def test_other_columns_of_an_image_folder_are_refused(image_folder):
    by_site = DataSettings(source=str(image_folder), clients={"split": "column", "column": "site"})
    with pytest.raises(DataError, match=r"photos: .*'site'.*'image', 'label'"):
        read_table(by_site, IMAGES)


def broken(image_folder, what):
    path = image_folder / "green" / "3.jpg"
    if what == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif what == "no image":
        path.write_text("a text")
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("cut", r"is no image that can be read \(.+\)"),
        ("no image", r"is no image that can be read \(cannot identify image file\)"),
        ("missing", r"cannot be read \(No such file or directory\)"),
    ],
)
def test_a_broken_image_is_named_with_its_row(paths_table, image_folder, what, said):
    broken(image_folder, what)
    place = r"photos\.csv, row 10: .*green/3\.jpg "
    with pytest.raises(DataError, match=place + said + r".*data\.skip_broken = true"):
        read_table(settings(paths_table, image="file"), IMAGES)


def test_broken_images_are_left_out_and_counted(paths_table, image_folder):
    broken(image_folder, "cut")
    data = make_clients(settings(paths_table, image="file", skip_broken=True), 0, IMAGES)
    assert sum(len(part) for c in data.clients for part in (c.train, c.valid, c.test)) == 17
    assert any("1 row " in note and "data.skip_broken" in note for note in data.notes)


def test_with_no_image_left_there_is_no_table(image_folder):
    for path in image_folder.rglob("*.jpg"):
        path.write_text("a text")
    with pytest.raises(DataError, match=r"\(18 such rows"):
        read_table(settings(image_folder, skip_broken=True), IMAGES)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (3, "holds a int, expected an image"),
        (None, "is missing"),
        (" ", "is missing"),
        ("a\0.png", r"embedded null byte\)"),
        (".", r"Is a directory\)"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, cell, said):
    pq.write_table(pa.table({"image": [cell, cell], "label": ["a", "b"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=rf"t\.parquet, row 1: .*{said} .*\(2 such rows"):
        read_table(settings(tmp_path / "t.parquet"), IMAGES)


def test_the_same_image_twice_is_dropped_and_another_one_changes_the_hash(image_folder):
    whole = make_clients(settings(image_folder), 0, IMAGES)
    shutil.copy(image_folder / "amber" / "0.jpg", image_folder / "amber" / "9.jpg")
    again = make_clients(settings(image_folder), 0, IMAGES)
    assert again.notes == ["dropped 1 duplicate row"]
    assert sum(len(part) for c in again.clients for part in (c.train, c.valid, c.test)) == 18
    assert len(whole.clients[0].train) == len(again.clients[0].train)
    assert np.array_equal(whole.clients[0].train.labels, again.clients[0].train.labels)


def test_an_empty_folder_says_what_may_lie_in_it(tmp_path):
    with pytest.raises(DataError, match=rf"{tmp_path}.*subfolder a label"):
        read_table(settings(tmp_path), IMAGES)


RAMP = np.linspace(0, 255, 20 * 30).reshape(20, 30).astype(np.uint8)


def file_of(pixels, kind="PNG", **options):
    made = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(made, kind, **options)
    return made.getvalue()


def of_file(tmp_path, content):
    """What a table with one image holds."""
    pq.write_table(pa.table({"image": [content], "label": ["a"]}), tmp_path / "t.parquet")
    return read_table(settings(tmp_path / "t.parquet"), IMAGES).inputs["image"][0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_reduced_to_their_upper_eight(tmp_path, kind):
    read = of_file(tmp_path, file_of(RAMP.astype(np.uint16) * 256 + 77, kind))
    assert np.array_equal(np.asarray(open_rgb(read)), np.repeat(RAMP[..., None], 3, -1))
    assert np.array_equal(np.asarray(open_image(as_png(open_image(read)))), np.asarray(open_rgb(read)))


@pytest.mark.parametrize("pixels", [RAMP / np.float32(255), RAMP.astype(np.int32)], ids=["fractions", "32 bits"])
def test_pixels_of_unknown_range_are_refused(tmp_path, pixels):
    with pytest.raises(DataError, match=r"row 1: .*'[FI]'.* expected 8 or 16 bits"):
        of_file(tmp_path, file_of(pixels, "TIFF"))


def test_a_photo_is_turned_as_the_camera_was_held(tmp_path):
    upright = np.dstack([RAMP, RAMP[::-1], RAMP[:, ::-1]])
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side: to be turned by 90 degrees clockwise
    read = of_file(tmp_path, file_of(np.rot90(upright).copy(), "PNG", exif=exif))
    assert np.array_equal(np.asarray(open_rgb(read)), upright)
    assert np.array_equal(np.asarray(open_rgb(as_png(open_image(read)))), upright)
    assert np.array_equal(np.asarray(open_rgb(as_png(open_rgb(read)))), upright)


def test_what_pillow_warns_about_is_read_without_a_warning(tmp_path):
    palette = Image.fromarray(np.dstack([RAMP] * 3)).quantize(16)
    damaged = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01"
    for content in (
        file_of(palette, transparency=bytes([0, 100] + [255] * 14)),
        file_of(np.dstack([RAMP] * 3), "JPEG", exif=damaged),
    ):
        read = of_file(tmp_path, content)
        assert abs(np.asarray(open_rgb(read)).astype(int) - RAMP[..., None]).max() < 16


def test_files_that_a_mac_adds_are_no_images(image_folder):
    (image_folder / "green" / "._1.jpg").write_bytes(b"no image")
    (image_folder / "green" / ".DS_Store").write_bytes(b"no image")
    assert len(read_table(settings(image_folder), IMAGES)) == 18
