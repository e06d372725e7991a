"""Tags of words between sites: the numbers are the simulator's, and every tag has to be named by the run."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from safetensors.numpy import load_file

from trifed import load_tagger, make_config, run
from trifed.common.errors import ConfigError
from trifed.config.run import to_toml
from trifed.deployment.folders import read_run

TAGS = ["B-TOPIC", "I-TOPIC", "O"]
SITES = ["amber", "basil", "coral"]


@pytest.fixture
def tagged_sites(site_tables):
    """The sites' tables with a tag for each word instead of a label; words of filler are outside."""
    for site in SITES:
        with (site_tables / f"{site}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row["label"] = " ".join("O" if word.startswith("word") else "B-TOPIC" for word in row["text"].split())
        with (site_tables / f"{site}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label", "site"])
            writer.writeheader()
            writer.writerows(rows)
    return site_tables


def test_sites_reach_what_the_simulator_reaches(tagged_sites, federation, toy_values):
    task = {"task": "token-classification", "data": {"labels": TAGS, "text": "text"}}
    coordinator, _ = federation("fedavg-lora", **task)
    coordinator.run()
    files = {"source": [str(tagged_sites / f"{site}.csv") for site in SITES], "clients": {"split": "files"}}
    values = toy_values(method="fedavg-lora", rounds=2, baselines=[], training={"clients_at_once": 1}, **task)
    values["data"] = {**task["data"], **files}
    done = run(make_config(values), tagged_sites / "simulated")
    assert done.split["label_names"] == TAGS
    for site in SITES:
        model = tagged_sites / "nodes" / site / coordinator.name / "model"
        for name in ("adapter_model.safetensors", "head.safetensors"):
            own, simulated = load_file(model / name), load_file(done.path / "clients" / site / name)
            for key in own:
                np.testing.assert_array_equal(own[key], simulated[key], err_msg=f"{site} {key}")
        assert load_tagger(model).labels == TAGS


def test_the_run_names_all_tags(tmp_path, toy_values):
    values = toy_values(task="token-classification", method="fedavg-lora")
    (tmp_path / "run.toml").write_text(to_toml(make_config(values)), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"data\.labels: missing"):
        read_run(tmp_path / "run.toml")
