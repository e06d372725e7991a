"""Tables in memory: what people have in a notebook is data like a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pytest

from trifed import make_config
from trifed.common.errors import ConfigError
from trifed.config.run import to_toml
from trifed.data import make_clients

COLUMNS = {"text": [f"t{i}" for i in range(40)], "label": ["yes", "no"] * 20, "site": ["a", "a", "b", "b"] * 10}
ROWS = [dict(zip(COLUMNS, values, strict=True)) for values in zip(*COLUMNS.values(), strict=True)]
KINDS: dict[str, Any] = {
    "frame": pd.DataFrame(COLUMNS),
    "frame with an index": pd.DataFrame(COLUMNS, index=range(7, 47)),
    "dataset": datasets.Dataset.from_dict(COLUMNS),
    "arrow": pa.table(COLUMNS),
    "rows": ROWS,
    "columns": COLUMNS,
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_table_is_read(kind: str, tmp_path: Path) -> None:
    config = make_config(
        {"data": {"source": KINDS[kind], "test": KINDS[kind], "clients": {"split": "column", "column": "site"}}}
    )
    path = Path(str(config.data.source))
    assert path.parent == tmp_path / "runs" / "tables" and config.data.test == config.data.source
    data = make_clients(config.data.model_copy(update={"test": None}), 0)
    assert [client.name for client in data.clients] == ["a", "b"] and data.label_names == ["no", "yes"]
    assert str(path) in to_toml(config)  # a run goes on from its settings


def test_equal_tables_are_one_file(tmp_path: Path) -> None:
    for _ in range(2):
        make_config({"data": {"source": ROWS}})
    assert len(list((tmp_path / "runs" / "tables").iterdir())) == 1


def test_class_labels_keep_their_names() -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    table = datasets.Dataset.from_dict({"text": COLUMNS["text"], "label": [0, 1] * 20}, features=features)
    config = make_config({"data": {"source": table, "clients": {"split": "iid", "count": 2}}})
    assert make_clients(config.data, 0).label_names == ["no", "yes"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (5, "got a int, expected a file"),
        ([1, 2], "got a list, expected a file"),
        ([{"text": "a", "label": 1}, {"text": 2, "label": "b"}], "values of one type"),
        (["a.csv", {"text": "a"}], "got a list, expected a file"),
    ],
)
def test_what_is_no_table_is_refused(source: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"data.source.*{says}"):
        make_config({"data": {"source": source}})
    assert not (tmp_path / "runs").exists()
