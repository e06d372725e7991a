"""Real runs for reports: one with baselines and controls, one that was broken off, and a comparison's folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from browser import Browser
from studies import make_comparison, write_comparison

from trifed.config.run import make_config
from trifed.experiments import compare_config as comparing
from trifed.experiments.compare import planned
from trifed.experiments.comparison_summary import summarise_comparison
from trifed.experiments.runner import run
from trifed.federation.run_folder import RunFolder

STOP_IN_ROUND = 3


@pytest.fixture(scope="session")
def run_folder(toy_values, tmp_path_factory) -> Path:
    """A finished run with two baselines and controls. Do not write into it."""
    values = toy_values(name="beside", controls=True, baselines=["fedavg-lora", "local"], method="ce-lora")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    path = run(make_config(values), tmp_path_factory.mktemp("reports") / "beside").path
    torch.set_num_threads(before)
    return path


@pytest.fixture
def own_run(run_folder, tmp_path) -> Path:
    """A copy of it to damage."""
    return shutil.copytree(run_folder, tmp_path / "own")


@pytest.fixture(scope="session")
def broken_off(toy_values, tmp_path_factory) -> Path:
    """A run that was stopped while round 3 of 4 was scored, before its baseline. Do not write into it."""

    def stop(event):
        if event["event"] == "scores" and event["round"] == STOP_IN_ROUND and event["client"] == "basil":
            raise KeyboardInterrupt

    path = tmp_path_factory.mktemp("reports") / "broken"
    values = toy_values(name="broken", rounds=4, baselines=["local"], method="ce-lora")
    with pytest.raises(KeyboardInterrupt):
        run(make_config(values), path, stop)
    return path


@pytest.fixture(scope="session")
def comparison(tmp_path_factory) -> Path:
    """A comparison of three methods on two partitions, with two seeds. Do not write into it."""
    folder = tmp_path_factory.mktemp("reports") / "compared"
    return write_comparison(folder, make_comparison(("intents-0.5", "intents-0.1")))


@pytest.fixture(scope="session")
def real_comparison(toy_values, tmp_path_factory) -> Path:
    """The folder of a comparison that was really run: two methods, one seed, in this process."""
    settings = {k: v for k, v in toy_values(rounds=4).items() if k not in comparing.PLANNED}
    values = {"name": "real", "methods": ["local", "ce-lora"], "seeds": [0], "run": settings}
    root = tmp_path_factory.mktemp("reports") / "real"
    config = comparing.make_comparison(values)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for job in planned(config, root):
        run(job.config, root / job.folder)
    torch.set_num_threads(before)
    RunFolder(root).write_json("comparison.json", summarise_comparison(config, planned(config, root), root))
    return root


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[Browser]:
    """A real browser; skip where there is none."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no browser: install Chromium, as with apt-get install chromium")
    with Browser(program, tmp_path_factory.mktemp("profile")) as found:
        yield found
