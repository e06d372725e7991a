"""`trifed doctor` on a machine, a run's file and a run's folder: every check with a good and a broken case."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from test_cli_help import call
from trifed.reports.doctor import attempt, diagnose, machine

REPOSITORY = Path(__file__).resolve().parents[2]


def states(checks):
    """Worst state by check."""
    order = ["ok", "skipped", "warning", "problem"]
    found = {}
    for check in checks:
        assert check.found and (check.mend or check.state in ("ok", "skipped")), check
        found[check.name] = max(found.get(check.name, "ok"), check.state, key=order.index)
    return found


def wrong(path):
    """All checks that are neither ok nor skipped."""
    return {name: state for name, state in states(diagnose(Path(path))).items() if state not in ("ok", "skipped")}


def mend(path, name):
    return next(check.mend for check in diagnose(Path(path)) if check.name == name and check.mend)


def content(folder):
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_mode, p.stat().st_size) for p in folder.rglob("*")}


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-10])


def edited(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


# -- the command


def test_the_command_says_whether_there_is_a_problem(kept, capsys, monkeypatch):
    before = content(kept)
    said = call(capsys, monkeypatch, "doctor", "runs/finished")
    assert said.code == 0 and "0 problems" in said.out
    assert content(kept) == before
    Path("runs/finished/checkpoint.safetensors").write_bytes(b"not a checkpoint")
    said = call(capsys, monkeypatch, "doctor", "runs/finished", "--json")
    found = json.loads(said.out)
    assert said.code == 1 and found["problems"] == 1
    (check,) = [check for check in found["checks"] if check["state"] == "problem"]
    assert "checkpoint.safetensors" in check["found"] and check["mend"]


@pytest.mark.parametrize("path", ["nothing", "runs", "runs/finished/clients"])
def test_a_path_that_is_no_subject_is_refused(kept, capsys, monkeypatch, path):
    said = call(capsys, monkeypatch, "doctor", path)
    assert said.code == 2 and "config.toml" in said.err


@pytest.mark.parametrize(
    ("path", "named"), [("runs/finishd", ["runs/finishd", "'finished'"]), ("no/such/folder", ["no/such/folder"])]
)
def test_a_path_that_does_not_exist_is_one_message_with_the_way_out(kept, capsys, monkeypatch, path, named):
    said = call(capsys, monkeypatch, "doctor", path)
    assert (said.code, said.out) == (2, "") and "Traceback" not in said.err
    for word in (*named, "no such file or folder", "config.toml", "app/run.toml", "node.toml", "this machine"):
        assert word in " ".join(said.err.split())


def test_how_to_mend_is_printed_on_one_line(kept, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    said = call(capsys, monkeypatch, "doctor", "runs/stopped")
    assert said.code == 0
    assert any("trifed run --resume runs/stopped" in line for line in said.out.splitlines())


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), ImportError("no torch")])
def test_what_cannot_be_read_or_imported_is_a_finding(kept, monkeypatch, error):
    def failing():
        yield from attempt("first", lambda: 1, "It is {}.", "")
        raise error

    monkeypatch.setattr(machine, "check_machine", failing)
    assert states(diagnose(None)) == {"first": "ok", "access": "problem"}


# -- this machine


def test_this_machine(capsys, monkeypatch):
    said = call(capsys, monkeypatch, "doctor", "--json")
    found = json.loads(said.out)
    assert said.code == (1 if found["problems"] else 0)
    named = {check["name"]: check["state"] for check in found["checks"]}
    assert {"trifed", "packages", "device", "current folder", "TMPDIR"} <= set(named)
    assert {f"extra {extra}" for extra in machine.EXTRAS} <= set(named)
    assert named["packages"] == "ok"


def test_every_extra_for_users_is_listed():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(machine.EXTRAS) == set(extras) - {"dev", "docs"}


@pytest.mark.parametrize(
    ("asked", "alone", "in_an_extra"),
    [("numpy>=1", "ok", "ok"), ("numpy<1", "problem", "warning"), ("no-such-package", "problem", "skipped")],
)
def test_versions_are_compared_with_what_is_asked_for(asked, alone, in_an_extra):
    (needed,) = machine.check_packages([Requirement("rich>=1"), Requirement(asked)])
    (extra,) = machine.check_packages([Requirement("rich>=1"), Requirement(asked)], "flower")
    assert (needed.state, extra.state) == (alone, in_an_extra)
    if alone != "ok":
        assert asked in needed.mend and "rich" not in needed.mend
        assert extra.mend.startswith("pip install '.[flower]'")


def test_without_an_installed_package_versions_are_not_compared(monkeypatch):
    def missing(name):
        raise machine.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(machine.metadata, "version", missing)
    assert states(machine.check_versions()) == {"trifed": "skipped"}


@pytest.mark.parametrize(("kilobytes", "state"), [(1_000_000, "warning"), (8_000_000, "ok")])
def test_memory(tmp_path, kilobytes, state):
    assert not list(machine.check_memory(tmp_path / "none"))
    (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:    {kilobytes} kB\n")
    assert states(machine.check_memory(tmp_path / "meminfo")) == {"memory": state}


@pytest.mark.parametrize(("free", "state"), [(1e12, "ok"), (1e9, "warning"), (1e6, "problem")])
def test_disks(tmp_path, monkeypatch, free, state):
    usage = namedtuple("usage", "total used free")
    assert states(machine.check_disk("here", tmp_path / "none")) == {"here": "problem"}
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: usage(2e12, 0, free))
    assert states(machine.check_disk("here", tmp_path)) == {"here": state}
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert states(machine.check_disk("here", tmp_path)) == {"here": "problem"}


@pytest.mark.parametrize(
    ("driver", "build", "heard", "state"),
    [
        (False, None, [], "ok"),
        (True, None, [], "warning"),
        (True, "12.8", ["The driver is old\nmore"], "warning"),
    ],
)
def test_without_a_gpu_the_reason_is_given(tmp_path, monkeypatch, driver, build, heard, state):
    monkeypatch.setattr(machine, "DRIVER", tmp_path if driver else tmp_path / "none")
    (check,) = machine.check_gpus(SimpleNamespace(device_count=lambda: 0), build, heard)
    assert check.state == state and all("The driver is old" in check.found for _ in heard)


def test_every_gpu_is_listed():
    cuda = SimpleNamespace(
        device_count=lambda: 2, get_device_name=lambda index: "Model X", mem_get_info=lambda index: (7e9, 8e9)
    )
    checks = list(machine.check_gpus(cuda, "12.8", []))
    assert states(checks) == {"cuda:0": "ok", "cuda:1": "ok"}
    assert "Model X" in checks[0].found and "7.0 GB" in checks[0].found


# -- a run's file


def changed(old, new):
    return lambda: edited(Path("run.toml"), old, new)


def model_type(name):
    config = json.loads(Path("base/config.json").read_text())
    Path("base/config.json").write_text(json.dumps({**config, "model_type": name}))


FILE_FAULTS = {
    "none": (lambda: None, {}),
    "no TOML": (lambda: Path("run.toml").write_text("rounds = ["), {"settings": "problem"}),
    "a wrong value": (changed("rounds = 3", "rounds = 0"), {"settings": "problem"}),
    "no table": (lambda: Path("table.csv").unlink(), {"data": "problem"}),
    "no column": (changed('"table.csv"', '"table.csv"\ntext = "no"'), {"data": "problem"}),
    "no test set": (changed('"table.csv"', '"table.csv"\ntest = "n.csv"'), {"test data": "problem"}),
    "data on the hub": (changed('"table.csv"', '"someone/something"'), {}),
    "no base": (lambda: shutil.rmtree("base"), {"base model": "warning"}),  # it may be a name on the hub
    "no base's folder": (changed('"base"', '"./none"'), {"base model": "problem"}),
    "no config": (lambda: Path("base/config.json").unlink(), {"base model": "problem"}),
    "a base cut off": (lambda: cut_off(Path("base/model.safetensors")), {"base model": "problem"}),
    "no weights": (lambda: Path("base/model.safetensors").unlink(), {"base model": "problem"}),
    "another kind of model": (lambda: model_type("vit"), {"base model": "problem"}),
    "another GPU": (changed('device = "cpu"', 'device = "cuda:99"'), {"device": "problem"}),
    "an existing run": (lambda: shutil.copytree("runs/finished", "runs/typed"), {"output": "warning"}),
}


@pytest.mark.parametrize("name", FILE_FAULTS)
def test_a_fault_of_a_file_is_found(kept, name):
    fault, expected = FILE_FAULTS[name]
    fault()
    assert wrong("run.toml") == expected


def test_a_tracker_that_is_not_installed_is_found(kept, monkeypatch):
    Path("run.toml").write_text('trackers = ["tensorboard"]\n' + Path("run.toml").read_text())
    monkeypatch.setattr("trifed.reports.tracking.trackers.find_spec", lambda name: True)
    assert wrong("run.toml") == {}
    monkeypatch.setattr("trifed.reports.tracking.trackers.find_spec", lambda name: None)
    assert wrong("run.toml") == {"trackers": "problem"}


def test_a_file_for_a_run_between_sites_needs_no_data(kept):
    pytest.importorskip("cryptography")
    Path("sites.toml").write_text('name = "s"\n[model]\nname = "base"\n[data]\nlabels = ["a", "b"]\n')
    assert wrong("sites.toml") == {}
    Path("sites.toml").write_text("rounds = 0\n[data]\nlabels = []\n")
    assert wrong("sites.toml") == {"settings": "problem"}


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ("[deployment]\nclients = 3\n", {}),
        ("[deployment]\nclients = 3\nquorum = 4\n", {"sites": "problem"}),
        ("[sealing]\non = true\n", {"sites": "problem"}),  # of two sites
        ('[aggregation]\ngroups = "given"\n', {"sites": "problem"}),
    ],
)
def test_what_flower_init_would_refuse_is_found_before(kept, more, found):
    pytest.importorskip("cryptography")
    Path("sites.toml").write_text(f'name = "s"\n[model]\nname = "base"\n[data]\nlabels = ["a", "b"]\n{more}')
    assert wrong("sites.toml") == found


@pytest.mark.parametrize(("hardware", "found"), [(True, {}), (False, {"precision": "warning"})])
def test_emulated_bfloat16_is_found(kept, monkeypatch, hardware, found):
    monkeypatch.setattr("trifed.federation.training.device_placement._cpu_has_bf16", lambda: hardware)
    edited(Path("run.toml"), 'precision = "fp32"', 'precision = "bf16"')
    assert wrong("run.toml") == found
