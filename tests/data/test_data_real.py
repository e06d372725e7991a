"""The same laws on real data sets; skipped where they are absent."""

from __future__ import annotations

from pathlib import Path

from trifed.data import ClientSettings, DataSettings, make_clients, read_table, render_split_text, split_table


def test_banking77(real_data: Path) -> None:
    folder = real_data / "banking77"
    settings = DataSettings(source=str(folder / "train.parquet"), test=str(folder / "test.parquet"))
    data = make_clients(settings, 0)
    assert len(data.label_names) == 77 and len(data.clients) == 10
    assert data.global_test is not None
    # counted on its own: 4 exact duplicates in train, 6 texts of test that are also in train
    assert len(data.global_test) == 3080 - 6
    assert data.notes[0].startswith("dropped 4 duplicate rows")
    assert sum(row.train + row.valid + row.test for row in split_table(data)) == 10_003 - 4
    seen = {text for client in data.clients for part in (client.train, client.valid) for text in part.texts}
    assert not seen & {text for client in data.clients for text in client.test.texts}
    assert not seen & set(data.global_test.texts)
    assert "77 labels" in render_split_text(data)


def test_clinc150_by_domain(real_data: Path) -> None:
    source = str(real_data / "clinc150" / "train.parquet")
    clients = ClientSettings(split="column", column="domain")
    data = make_clients(DataSettings(source=source, clients=clients), 0)
    assert len(data.clients) == 10 and len(data.label_names) == 150
    assert all(sum(count > 0 for count in row.counts) == 15 for row in split_table(data))
    assert "banking" in [client.name for client in data.clients]


def test_pairs_of_mrpc(real_data: Path) -> None:
    table = read_table(DataSettings(source=str(real_data / "glue_mrpc" / "train.parquet"), text_pair="text_pair"))
    assert len(table.inputs["text_pair"]) == len(table)
    assert set(table.labels) == {"equivalent", "not_equivalent"}
