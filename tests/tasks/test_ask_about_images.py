"""`trifed predict` and `trifed evaluate` of an image model: files, folders, tables and paths on standard input."""

from __future__ import annotations

import csv
import io
import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from trifed import export_client, make_config, run
from trifed.cli.app import app
from trifed.common.errors import DataError

COLORS = {"amber": (200, 150, 40), "green": (60, 190, 70), "violet": (150, 60, 200)}


@pytest.fixture(scope="module")
def model(tiny_vision, images_table, tmp_path_factory):
    """An exported client that knows the three colors."""
    values = {
        "baselines": [],
        "task": "image-classification",
        "rounds": 2,
        "controls": False,
        "method": "fedavg-lora",
        "model": {"name": str(tiny_vision("vit"))},
        "adapter": {"rank": 4, "alpha": 8},
        "data": {"source": str(images_table), "clients": {"split": "column", "column": "site"}},
        "training": {"batch_size": 8, "learning_rate": 1e-2, "precision": "fp32", "device": "cpu", "epochs": 3},
    }
    folder = tmp_path_factory.mktemp("images")
    return export_client(run(make_config(values), folder / "run").path, "north", "lora", folder / "north")


@pytest.fixture
def plain(tmp_path):
    """A folder with one plain image a color, without subfolders."""
    (tmp_path / "plain").mkdir()
    for name, color in COLORS.items():
        Image.new("RGB", (30, 20), color).save(tmp_path / "plain" / f"{name}.png")
    return tmp_path / "plain"


def call(*words, stdin=None):
    return CliRunner().invoke(app, [str(word) for word in words], input=stdin)


def rows(result):
    assert result.exit_code == 0, result.output
    return list(csv.DictReader(io.StringIO(result.stdout)))


def test_images_one_by_one_and_a_folder_of_them(model, plain):
    files = sorted(plain.iterdir())
    one_by_one = rows(call("predict", model, *(w for file in files for w in ("--image", file))))
    folder = rows(call("predict", model, plain))
    assert one_by_one == folder
    assert [row["label"] for row in folder] == list(COLORS)
    assert [row["image"] for row in folder] == [str(file) for file in files]


def test_paths_on_standard_input(model, plain, monkeypatch):
    monkeypatch.chdir(plain)
    found = call("predict", model, "--format", "jsonl", stdin="green.png\namber.png\n")
    assert found.exit_code == 0, found.output
    assert [json.loads(line)["label"] for line in found.stdout.splitlines()] == ["green", "amber"]


def test_a_table_of_embedded_images(model, images_table):
    found = rows(call("predict", model, images_table))
    assert len(found) == 72
    assert (found[0]["image"], found[0]["label"]) == ("row 1", "amber")


def test_a_folder_with_a_subfolder_a_label_is_evaluated(model, image_folder, paths_table):
    folder = call("evaluate", model, image_folder, "--format", "json")
    table = call("evaluate", model, paths_table, "--format", "json", "--image-column", "file")
    assert folder.exit_code == table.exit_code == 0, folder.output + table.output
    assert json.loads(folder.stdout)["clients"] == json.loads(table.stdout)["clients"]
    assert json.loads(folder.stdout)["clients"][0]["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--text", "a text"], "got --text, but this model reads images; give --image or a file"),
        (["--image", "nowhere.png"], "nowhere.png cannot be read (No such file or directory)"),
        (
            ["--text-column", "message", "--image", "x.png"],
            "got 'message', but this model reads images",
        ),
    ],
)
def test_what_is_no_image_is_refused(model, words, said):
    found = call("predict", model, *words)
    assert found.exit_code != 0
    assert said in " ".join(str(found.exception).split())


def test_a_folder_without_images_is_refused(model, tmp_path):
    found = call("predict", model, tmp_path)
    assert isinstance(found.exception, DataError) and str(found.exception).startswith(f"{tmp_path}: no images")
    found = call("evaluate", model, tmp_path)
    assert isinstance(found.exception, DataError) and "subfolder a label" in str(found.exception)
