"""A folder or a list that shows sites: they are the clients unless the settings say otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trifed.common.errors import DataError
from trifed.config.run import make_config, to_toml
from trifed.data import IMAGES, DataSettings, make_clients
from trifed.data.sites import visible_sites


def write(path: Path, count: int = 20) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("text,label\n" + "".join(f"{path.stem} {i},{i % 2}\n" for i in range(count)))
    return path


def clients_of(source: Any, **values: Any) -> list[str]:
    settings = DataSettings.model_validate({"source": source, **values})
    return [client.name for client in make_clients(settings, 0).clients]


def test_a_file_or_a_folder_for_each_site(tmp_path: Path) -> None:
    files = [str(write(tmp_path / "files" / f"{site}.csv")) for site in ("berlin", "paris")]
    for site in ("berlin", "st. gallen"):
        write(tmp_path / "folders" / site / "one.csv")
        write(tmp_path / "folders" / site / "two.csv")
    write(tmp_path / "folders" / ".hidden" / "one.csv")
    assert clients_of(str(tmp_path / "files")) == ["berlin", "paris"]
    assert clients_of(files) == ["berlin", "paris"]
    assert clients_of(str(tmp_path / "folders")) == ["berlin", "st.-gallen"]


def test_it_is_said_and_a_split_that_is_given_holds(tmp_path: Path) -> None:
    for site in ("berlin", "paris"):
        write(tmp_path / f"{site}.csv")
    found = make_clients(DataSettings.model_validate({"source": str(tmp_path)}), 0)
    assert "each file or subfolder is a client (data.clients.split)" in found.notes[0]
    dealt = {"split": "iid", "count": 3, "min_examples": 1}
    assert clients_of(str(tmp_path), clients=dealt) == ["client-00", "client-01", "client-02"]
    assert clients_of(str(tmp_path), clients={"min_examples": 1}) == ["berlin", "paris"]


def test_the_configuration_of_the_run_names_the_split(tmp_path: Path) -> None:
    for site in ("berlin", "paris"):
        write(tmp_path / f"{site}.csv")
    assert 'split = "files"' in to_toml(make_config({"data": {"source": str(tmp_path)}}))


@pytest.mark.parametrize(
    "names",
    [
        ["part-0001", "part-0002"],
        ["train-00000-of-00002", "train-00001-of-00002"],
        ["0", "1"],
        ["train", "test"],
        ["one"],
    ],
)
def test_parts_of_one_table_are_no_sites(names: list[str], tmp_path: Path) -> None:
    for name in names:
        write(tmp_path / f"{name}.csv")
    assert visible_sites(str(tmp_path)) == []


def test_images_of_sites_by_label(tmp_path: Path) -> None:
    for site in ("north", "south"):
        for label in ("cat", "dog"):
            for number in range(10):
                path = tmp_path / site / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 4), (number, 20 if label == "cat" else 90, 30)).save(path)
    found = make_clients(DataSettings.model_validate({"source": str(tmp_path)}), 0, IMAGES)
    assert [client.name for client in found.clients] == ["north", "south"]
    assert found.label_names == ["cat", "dog"]
    assert visible_sites(str(tmp_path / "north")) == []  # subfolders of images are labels


@pytest.mark.parametrize(
    "names",
    [
        ["train/a.csv", "test/a.csv"],
        ["berlin/train.csv", "berlin/test.csv", "paris/train.csv", "paris/test.csv"],
    ],
)
def test_splits_in_subfolders_are_not_mixed(names: list[str], tmp_path: Path) -> None:
    for name in names:
        write(tmp_path / name)
    with pytest.raises(DataError, match="holds the splits of one data set"):
        clients_of(str(tmp_path))
