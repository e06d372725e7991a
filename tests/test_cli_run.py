"""Whole runs from the command line, in this process: what they print, and what they leave."""

from __future__ import annotations

import json
import re
import tomllib

import pytest
import tomli_w

from test_cli_help import call, tree

ESCAPE = "\x1b"


@pytest.fixture
def toml(toy_values, tmp_path):
    """A configuration file of two rounds, in an otherwise empty folder."""
    path = tmp_path / "my.toml"
    path.write_text(tomli_w.dumps(toy_values(rounds=2)), encoding="utf-8")
    return path


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """`run(ARGS)`: `trifed run ARGS` in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *args: call(capsys, monkeypatch, "run", *args)


def summary(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


@pytest.mark.draws
def test_from_a_file(run, toml, tmp_path):
    said = run(toml)
    assert said.code == 0
    assert said.err == ""
    folder = tmp_path / "runs" / "toy"
    found = tree(folder)
    assert {"config.toml", "events.jsonl", "summary.json", "curves.png", "split.json"} <= found
    assert {f"clients/{site}/adapter_config.json" for site in ("amber", "basil", "coral")} <= found
    assert {"matrices/round-0001.safetensors", "matrices/round-0002.safetensors"} <= found
    assert not [name for name in found if name.endswith(".tmp")]
    for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines():
        assert "event" in json.loads(line)
    sent = summary(folder)["bytes"]
    assert f"{sent['fedavg_lora_would_send'] / 1000:.1f} KB" in said.out
    assert f"Everything is in {folder.relative_to(tmp_path)}" in said.out


def test_plain_lines_and_tables_where_nobody_watches(run, toml):
    said = run(toml, "--set", "controls=true")
    assert ESCAPE not in said.out
    lines = said.out.splitlines()
    rounds = [line for line in lines if re.search(r" round \d/2 ", line)]
    assert [re.findall(r"round (\d)/2", line)[0] for line in rounds] == ["1", "2"]
    for line in rounds:
        number = r"[\d.]+"
        facts = [
            "own-prior", r"round \d/2", f"loss {number}", rf"accuracy {number} \(worst {number}\)",
            f"up and down {number} KB", r"left \d+:\d\d",
        ]  # fmt: skip
        assert re.fullmatch("  ".join(facts), line)
    for word in ("client", "train", "test", "own-prior", "mean", "worst", "best", "up a round"):
        assert word in said.out
    tables = [line for line in lines if set("│┃┏└") & set(line)]
    assert max(map(len, tables)) <= 80
    assert "probe, all" in said.out


@pytest.mark.draws
def test_baseline_local_stands_beside_the_run_and_alone(run, toml, tmp_path):
    said = run(toml, "--baseline", "local")
    assert said.code == 0
    header = next(line for line in said.out.splitlines() if "train" in line and "┃" in line)
    assert [cell.strip() for cell in re.split("[┃│]", header)[1:-1]] == [
        "client", "train", "test", "before", "own-prior", "alone", "local",
    ]  # fmt: skip
    assert re.search(r"Federating (gained|lost)|No clear gain from federating", said.out)
    folder = tmp_path / "runs" / "toy"
    alone = summary(folder / "baselines" / "local")
    assert alone["bytes"]["total"] == 0
    for client in (*summary(folder)["clients"], *alone["clients"]):
        row = next(line for line in said.out.splitlines() if line.startswith(f"│ {client['name']}"))
        assert f"{100 * client['now']['accuracy']:.1f}" in row
    for client in summary(folder)["clients"]:  # the main method's start, which knows the client's label shares
        row = next(line for line in said.out.splitlines() if line.startswith(f"│ {client['name']}"))
        assert [cell.strip() for cell in row.split("│")][4] == f"{100 * client['before']['accuracy']:.1f}"


def test_without_baselines_nothing_runs_beside(run, toml, tmp_path):
    said = run(toml, "--no-baselines", "--rounds", 1)
    assert said.code == 0 and not (tmp_path / "runs" / "toy" / "baselines").exists()
    said = run(toml, "--no-baselines", "--baseline", "local")
    assert said.code == 2 and "--no-baselines" in said.err + said.out


def test_from_flags_alone(run, tiny_encoder, toy_table, tmp_path):
    said = run(
        "--data", toy_table, "--split", "dirichlet", "--clients", 2, "--alpha", 5, "--model", tiny_encoder,
        "--rank", 4, "--rounds", 1, "--seed", 3, "--learning-rate", 0.01, "--method", "fedavg-lora",
        "--name", "by-hand", "--no-baselines", "--set", "controls=false", "--set", "training.device=cpu",
    )  # fmt: skip
    assert said.code == 0
    config = tomllib.loads((tmp_path / "runs" / "by-hand" / "config.toml").read_text(encoding="utf-8"))
    assert config["method"]["name"] == "fedavg-lora"
    assert config["data"]["clients"]["count"] == 2
    assert (config["seed"], config["adapter"]["rank"]) == (3, 4)
    assert "fedavg-lora would send" not in said.out


def test_flags_win_over_the_file_and_set_reaches_every_setting(run, toml, tmp_path):
    said = run(
        toml, "--rounds", 1, "--name", "other", "--runs", tmp_path / "kept here", "--set", "training.epochs=2",
        "--set", "method.smoothing=0.5", "--set", 'data.clients.column="site"',
    )  # fmt: skip
    assert said.code == 0
    config = tomllib.loads((tmp_path / "kept here" / "other" / "config.toml").read_text(encoding="utf-8"))
    assert (config["rounds"], config["training"]["epochs"]) == (1, 2)
    assert config["training"]["batch_size"] == 8
    assert config["method"] == {"name": "own-prior", **config["method"], "smoothing": 0.5}


def test_the_resolved_configuration_runs_again_to_the_same_numbers(run, toml, tmp_path):
    run(toml)
    first = tmp_path / "runs" / "toy"
    assert run(first / "config.toml", "--name", "again").code == 0
    again = summary(tmp_path / "runs" / "again")
    for part in ("accuracy", "bytes", "curve"):
        assert again[part] == summary(first)[part]


@pytest.mark.draws
def test_paths_and_names_with_spaces_brackets_and_accents(run, tiny_encoder, toy_table, tmp_path):
    odd = tmp_path / "dossier été [x]"
    odd.mkdir()
    table = toy_table.read_text(encoding="utf-8").replace("amber", "[/b] Zoë").replace("basil", "../../up")
    (odd / "t é.csv").write_text(table, encoding="utf-8")
    (odd / "model").symlink_to(tiny_encoder)
    said = run(
        "--data", odd / "t é.csv", "--split", "column", "--column", "site", "--model", odd / "model",
        "--rounds", 1, "--rank", 4, "--name", "x", "--runs", odd / "runs", "--set", "controls=false",
    )  # fmt: skip
    assert said.code == 0
    assert {path.split("/")[0] for path in tree(tmp_path)} == {odd.name}
    assert len([path for path in (odd / "runs" / "x" / "clients").iterdir() if path.is_dir()]) == 3


@pytest.mark.draws
def test_a_client_with_one_label_or_without_data_can_be_kept_on_purpose(run, toml, toy_table, tmp_path):
    rows = toy_table.read_text(encoding="utf-8").splitlines()
    one_label = [row for row in rows if "basil" not in row or ",delivery," in row]
    (tmp_path / "t.csv").write_text("\n".join([*one_label, "a lonely invoice,billing,dust", "a reset,login,sand"]))
    said = run(
        toml, "--data", tmp_path / "t.csv", "--set", "data.allow_single_class=true",
        "--set", "data.allow_empty_clients=true",
    )  # fmt: skip
    assert said.code == 0
    assert "kept without data" in said.out
    clients = {client["name"]: client for client in summary(tmp_path / "runs" / "toy")["clients"]}
    assert clients["dust"]["rounds"] == clients["sand"]["rounds"] == 0
    assert clients["basil"]["rounds"] == 2
    dust = next(line for line in said.out.splitlines() if line.startswith("│ dust"))
    assert [cell.strip() for cell in dust.split("│")[1:-1]] == ["dust", "0", "0", "-", "-"]


def test_some_clients_a_round(run, toml, tmp_path):
    assert run(toml, "--set", "participation=0.34").code == 0
    assert sum(client["rounds"] for client in summary(tmp_path / "runs" / "toy")["clients"]) == 2


def test_resuming_a_finished_run_shows_it_again_and_changes_nothing(run, toml, tmp_path):
    first = run(toml)
    folder = tmp_path / "runs" / "toy"
    before = (folder / "summary.json").read_bytes(), (folder / "events.jsonl").read_bytes()
    said = run("--resume", folder)
    assert said.code == 0
    assert ((folder / "summary.json").read_bytes(), (folder / "events.jsonl").read_bytes()) == before
    table = first.out[first.out.index("Test accuracy") :].replace("runs/toy", str(folder))
    assert said.out == table
