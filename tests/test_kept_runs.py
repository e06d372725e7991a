"""Runs and settings that earlier versions wrote: they can still be resumed, reported, exported, and used."""

from __future__ import annotations

import importlib
import json
import os
import runpy
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from test_cli_help import call
from trifed import export_client, load_client, load_comparison, load_result, make_config, report, resume
from trifed.common.errors import BudgetError

TESTS = Path(__file__).resolve().parent
KEPT = TESTS / "fixtures" / "kept_runs"
RECORD = TESTS.parent / "benchmarks" / "same_numbers" / "record.py"
VERSIONS = sorted(path.name for path in KEPT.iterdir() if (path / "expected.json").is_file())

NEAR = {"rel": 1e-3, "abs": 1e-3}
DRAWN = ("loss", "accuracy", "mean", "worst", "best")
"""Ends of the names of scores, which depend on the draws of the last round."""
"""Another processor rounds differently. What has to be equal to the last bit is benchmarks/same_numbers."""

REPORTED = [
    "runs/finished",
    "runs/stopped",
    "runs/private",
    "runs/rivals",
    "runs/finished/audit",
    "sites-finished/server",
]

DOCUMENTED = {
    "trifed": (
        "Classifier CompareConfig ComparisonResult Matcher RunConfig RunResult TriLoraConfig TrifedError Writer "
        "compare export_client export_plain_lora load_client load_comparison load_matcher load_result load_writer "
        "make_comparison make_config report resume run"
    ),
    "trifed.adapters": (
        "TriLoraConfig TriLoraModel adapted_layers export_plain_lora frames_hash load_adapter to_plain_lora"
    ),
    "trifed.similarity": (
        "SimilarityError Summary combine component_distances cosine denoise different_rows linear_cka mix "
        "mixing_weights noise_floor pairwise_distances pooled_moments project shared_label_ratio "
        "similarity_from_distances summarise summary_distance two_sample_ratio"
    ),
    "trifed.methods": "METHODS Method Options Setting State Upload",
    "trifed.methods.interface": (
        "SummarySeeds Options Proximal Gradient Upload Setting Method is_core is_factor is_head"
    ),
    "trifed.privacy": (
        "CLIENT RECORD SENSITIVITY Book Entry Ledger Noise Sampled Spent clipped epsilon_of epsilon_with_steps "
        "facts_of noise_multiplier noised_summary promised read_ledger secure_noise seeded_noise spent "
        "steps_multiplier unit"
    ),
    "trifed.federation.cost": "estimate_cost Cost MethodCost Once",
    "trifed.tracking": "track Tracked",
    "trifed.errors": "TrifedError ConfigError DataError ModelError AdapterError RunError MessageError nearest",
    "trifed.cli": "app main",
    "trifed.engines.flower": "client_app server_app",
}
"""By module, what version 0.1.0 had documented, or had written into apps."""


@pytest.fixture(params=VERSIONS)
def kept(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of one version, copied; paths in it are relative, so the test works inside it."""
    shutil.copytree(KEPT / request.param, tmp_path / "kept")
    monkeypatch.chdir(tmp_path / "kept")
    return tmp_path / "kept"


@pytest.fixture
def expected(kept: Path) -> dict[str, Any]:
    """What the version itself reached."""
    found: dict[str, Any] = json.loads((kept / "expected.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def record() -> Any:
    """The script that can lead a run between sites in one process."""
    spec = spec_from_file_location("same_numbers_record", RECORD)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    with patch.dict(os.environ), patch.dict(sys.modules, {spec.name: module}):
        spec.loader.exec_module(module)
    return module


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and text in a JSON value, by its path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
        return
    for name, item in items:
        yield from leaves(item, f"{path}/{name}")


RENAMED = {f"/bytes/{name}": f"/bytes/{name}_at_32_bits" for name in ("fedavg_lora_would_send", "times_fewer")}
"""Fields of a summary that version 0.1.0 wrote for plain LoRA at 32 bits, whatever bits the run had."""


def assert_reached(summary: dict[str, Any], expected: dict[str, Any]) -> None:
    """All that the version's own summary holds; a later one may hold more.

    Scores are near those of that version alone: its last round had other dropout and another order of batches.
    """
    found = dict(leaves(summary))
    if "/bytes/bits" in found:  # a later version has summarised the run
        found |= {path: found.get(name) for path, name in RENAMED.items()}
    for path, wanted in leaves(expected):
        moved = path.endswith(DRAWN)
        near = pytest.approx(wanted, **({"abs": 0.25} if moved else NEAR)) if isinstance(wanted, float) else wanted
        assert found.get(path, "absent") == near, path


def kept_toml(path: str) -> dict[str, Any]:
    return tomllib.loads(Path(path).read_text(encoding="utf-8"))


# -- resumed


def test_a_stopped_run_is_resumed(kept: Path, expected: dict[str, Any]) -> None:
    heard: list[dict[str, Any]] = []
    result = resume("runs/stopped", heard.append)
    assert [event["round"] for event in heard if event["event"] == "resumed"] == [2]
    assert {event["round"] for event in heard if event["event"] == "trained"} == {3}
    assert_reached(result.summary, expected["summaries"]["stopped"])


def test_a_release_that_was_made_before_the_stop_is_not_made_again_with_other_draws(kept: Path) -> None:
    """The ledger holds round 3. This version draws other numbers, so its upload would be a new release."""
    with pytest.raises(BudgetError, match="3 releases"):
        resume("runs/private")


@pytest.mark.parametrize("name", ["sites-stopped", "sites-private"])
def test_a_stopped_run_between_sites_is_continued(
    name: str, kept: Path, expected: dict[str, Any], record: Any
) -> None:
    heard: list[dict[str, Any]] = []
    record.lead(kept_toml(f"{name}/server/config.toml"), False, heard.append, Path(name))
    assert [event["round"] for event in heard if event["event"] == "resumed"] == [2]
    assert {event["round"] for event in heard if event["event"] == "trained"} == {3}
    assert not [event for event in heard if event["event"] in ("left out", "refused", "opened again")]
    summary = json.loads(Path(name, "server", "summary.json").read_text(encoding="utf-8"))
    assert_reached(summary, expected["summaries"][name])
    for site in record.SITES:
        ledgers = Path(name, "sites", site).glob("*/privacy/ledger.json")
        entries = [e for path in ledgers for e in json.loads(path.read_text(encoding="utf-8"))["entries"]]
        # Nothing is released twice: a message that was sent before the stop is sent again as it was.
        assert [e["round"] for e in entries] == ([0, 1, 2, 3] if name == "sites-private" else [])


# -- reported, exported, used


@pytest.mark.parametrize("path", REPORTED)
@pytest.mark.parametrize("form", ["html", "md", "json", "csv"])
def test_it_is_reported(path: str, form: str, kept: Path) -> None:
    assert report(path, kept / f"report.{form}").stat().st_size > 100


def test_a_finished_run_has_its_result(kept: Path, expected: dict[str, Any]) -> None:
    result = load_result("runs/finished")
    assert_reached(result.summary, expected["summaries"]["finished"])
    assert list(result.baselines) == ["ce-lora"]
    assert set(load_comparison("runs/rivals").results["all"]["methods"]) == {"local", "ce-lora"}


def test_models_give_the_same_probabilities(kept: Path, expected: dict[str, Any]) -> None:
    for path, wanted in expected["predictions"].items():
        found = load_client(path).probabilities(expected["texts"])
        assert found == pytest.approx(np.array(wanted), **NEAR)


@pytest.mark.parametrize("form", ["tri-matrix", "lora", "merged"])
def test_a_client_is_exported(form: Any, kept: Path, expected: dict[str, Any]) -> None:
    folder = export_client("runs/finished", "clinic", form)
    found = load_client(folder).probabilities(expected["texts"])
    assert found == pytest.approx(np.array(expected["predictions"]["runs/finished/clients/clinic"]), **NEAR)


COMMANDS = [
    ["report", "runs/finished", "--out", "page.html"],
    ["predict", "runs/finished", "--client", "clinic", "--text", "When is my appointment?"],
    ["evaluate", "runs/finished", "clinic.csv", "--client", "clinic"],
    ["privacy", "runs/private"],
    ["watch", "runs/finished"],
    ["compare", "rivals.toml", "--show"],
    ["compare", "rivals.toml"],
    ["flower", "status", "sites-stopped/server"],
    ["flower", "status", "sites-finished/server"],
    ["flower", "withdraw", "sites-stopped/server", "--client", "transit"],
    ["flower", "withdraw", "flower-site"],
    ["run", "run.toml", "--name", "typed-again"],
    ["run", "--resume", "runs/finished"],
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.draws
def test_the_command_line_takes_it(
    words: list[str], kept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = call(capsys, monkeypatch, *words)
    assert said.code == 0, said.err


def test_the_installed_command_takes_it(kept: Path) -> None:
    command = Path(sys.executable).with_name("trifed")
    done = subprocess.run([command, "report", "runs/finished", "--format", "md"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path("runs/finished/report.md").is_file()


# -- settings, apps, modules


def test_settings_are_accepted(kept: Path, record: Any) -> None:
    for path in (Path("run.toml"), *Path().glob("**/config.toml"), *Path().glob("**/run.toml")):
        if path.parent.name != "flwr":
            make_config(kept_toml(str(path)), str(path))
    for name in ("node.toml", "flower-site/node.toml"):
        assert record.internals().SiteSettings.model_validate(kept_toml(name)).name == "clinic"


def test_the_identity_of_a_run_has_not_changed(kept: Path) -> None:
    """It is in every message between sites, and decides whether a run may be resumed."""
    for path in Path("runs").glob("**/environment.json"):
        known = json.loads(path.read_text(encoding="utf-8"))["run_id"]
        assert make_config(kept_toml(str(path.with_name("config.toml")))).run_id() == known


def test_the_app_that_flower_init_wrote_is_still_one(kept: Path) -> None:
    client_app = pytest.importorskip("flwr.clientapp").ClientApp
    server_app = pytest.importorskip("flwr.serverapp").ServerApp
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        client, server = (
            runpy.run_path(f"flower-server/app/typed/{name}.py")["app"] for name in ("client", "server")
        )
    assert isinstance(client, client_app) and isinstance(server, server_app)


@pytest.mark.parametrize("module", DOCUMENTED)
def test_documented_names_can_still_be_imported(module: str) -> None:
    if module == "trifed.engines.flower":
        pytest.importorskip("flwr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # an alias may say where the name has gone
        found = importlib.import_module(module)
        assert [name for name in DOCUMENTED[module].split() if not hasattr(found, name)] == []
