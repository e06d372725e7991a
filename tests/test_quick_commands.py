"""A command answers at once: it imports nothing that takes long, before it has checked what it was given."""

from __future__ import annotations

import ast
import gc
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

import trifed
from trifed.cli import runs
from trifed.common.imports import quick_imports
from trifed.config.roles import ACCURACY, ROLES
from trifed.config.settings import TrackerName
from trifed.tasks import TASKS

SOURCE = Path(trifed.__file__).parent
KEPT = Path(__file__).parent / "fixtures" / "kept_runs" / "0.1.0"

HEAVY = {
    "accelerate", "bitsandbytes", "datasets", "flwr", "flwr_datasets", "matplotlib", "mlflow", "ot", "pandas",
    "peft", "scipy", "sklearn", "tensorboard", "torch", "transformers", "wandb",
}  # fmt: skip
"""Packages whose import takes from tenths of a second to seconds."""
SETTINGS = {"numpy", "pydantic"}
"""Packages that the settings of a run need, and `--help` does not."""
TABLES = {"PIL", "pyarrow"}
"""Packages that only tables with images, and Parquet files, need."""

PROBE = """
import contextlib, io, json, sys
from trifed.cli import main
for line in sys.stdin:
    sys.argv, code = ["trifed", *json.loads(line)], 0
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps([code, out.getvalue(), sorted({name.partition(".")[0] for name in sys.modules})]), flush=True)
"""


def modules_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {modules_of(path): path for path in SOURCE.rglob("*.py")}


def statements(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that run when the module is imported: outside functions and `if TYPE_CHECKING`."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If):
            yield from statements(
                node.orelse if "TYPE_CHECKING" in ast.unparse(node.test) else node.body + node.orelse
            )
        elif isinstance(node, ast.Try | ast.With | ast.ClassDef):
            yield from statements(node.body)


@cache
def imported(module: str) -> frozenset[str]:
    """Modules of trifed, and packages, that one module imports at once."""
    names = set()
    for node in statements(ast.parse(MODULES[module].read_text(encoding="utf-8")).body):
        for alias in node.names:
            name = alias.name if isinstance(node, ast.Import) else f"{node.module}.{alias.name}"
            parts = name.split(".")
            steps = {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
            names |= steps & set(MODULES) or {parts[0]}
    return frozenset(names)


def reached(module: str) -> set[str]:
    """Everything that the import of one module imports, as far as this package's files say."""
    found, waiting = {module}, [module]
    while waiting:
        new = imported(waiting.pop()) - found
        found |= new
        waiting += new & set(MODULES)
    return found


COMMAND_LINE = ["trifed", *(name for name in MODULES if name.startswith("trifed.cli"))]
BEFORE_TORCH = [
    "trifed.attacks.audit",
    "trifed.deployment.checkpoint",
    "trifed.experiments.compare",
    "trifed.experiments.pool",
    "trifed.experiments.runner",
    "trifed.experiments.with_progress",
    "trifed.export.inference_inputs",
    "trifed.federation.preparation",
    "trifed.federation.run_folder",
    "trifed.reports.progress_bar",
    "trifed.reports.read",
    "trifed.reports.tracking",
]
"""Modules that check settings or data, or read a run's folder."""


@pytest.mark.parametrize("module", COMMAND_LINE)
def test_modules_of_the_command_line_import_nothing_heavy_at_the_top(module):
    assert reached(module) & (HEAVY | SETTINGS | TABLES) == set()


@pytest.mark.parametrize("module", BEFORE_TORCH)
def test_modules_that_check_import_nothing_heavy_at_the_top(module):
    assert reached(module) & (HEAVY | TABLES) == set()


def test_the_check_on_imports_sees_what_it_should():
    assert {"torch", "scipy", "transformers"} <= reached("trifed.federation.simulation")
    assert "trifed.federation.simulation" not in reached("trifed.experiments.runner")


def loaded(*commands: list[object]) -> list[tuple[int, str, set[str]]]:
    """Exit code, output and packages after each command, all in one new process."""
    lines = "".join(json.dumps(list(map(str, command))) + "\n" for command in commands)
    done = subprocess.run([sys.executable, "-c", PROBE], input=lines, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(commands)
    return [(code, text, set(names)) for code, text, names in found]


def test_help_loads_neither_settings_nor_anything_heavy():
    names = [
        "audit", "compare", "cost", "demo", "doctor", "evaluate", "export", "flower", "predict", "privacy",
        "report", "settings", "track", "watch",
    ]  # fmt: skip
    flower = [
        ["flower", name, "--help"] for name in ("init", "join", "log", "sites", "status", "trust", "withdraw")
    ]
    right = [["--help"], ["--version"], *([name, "--help"] for name in names), *flower]
    wrong = [["rnu"], ["run", "--dta", "x.csv"], ["report"], ["flower", "stat"]]
    found = loaded(*right, *wrong)
    assert [code for code, _, _ in found] == [0] * len(right) + [2] * len(wrong)
    assert found[-1][2] & (HEAVY | SETTINGS | TABLES) == set()


def test_help_of_run_and_the_list_of_settings_load_nothing_heavy():
    found = loaded(["run", "--help"], ["settings"])
    assert [code for code, _, _ in found] == [0, 0]
    assert found[-1][2] & (HEAVY | TABLES) == set()


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "tickets.csv"
    path.write_text("text,queue\n" + "".join(f"parcel {i} is late,{'ab'[i % 2]}\n" for i in range(40)), "utf-8")
    return path


def test_mistakes_in_settings_and_data_are_found_before_anything_heavy_is_loaded(tmp_path, table):
    lines = table.with_suffix(".jsonl")
    lines.write_text('{"text": "late", "queue": "a"}\n', "utf-8")
    toml = tmp_path / "run.toml"
    toml.write_text(f'[data]\nsource = "{table}"\nlabel = "quue"\n[model]\nname = "demo"\n', "utf-8")
    run = ["run", "--runs", tmp_path / "runs", "--data", table, "--label", "queue"]
    found = loaded(
        [*run, "--set", "training.stepz=1"],
        [*run, "--method", "own-pior"],
        [*run, "--text", "txt"],
        ["run", toml, "--runs", tmp_path / "runs"],
        ["run", "--runs", tmp_path / "runs", "--data", lines, "--label", "quue"],
        ["run", "--runs", tmp_path / "runs", "--data", tmp_path / "none.csv"],
        [*run, "--clients", "30"],
        ["audit", toml, "--into", tmp_path / "audit"],
        ["compare", toml],
    )
    assert [code for code, _, _ in found] == [2] * len(found)
    assert ["quue" in text for _, text, _ in found] == [False, False, False, True, True, False, False, True, False]
    assert found[-1][2] & (HEAVY | TABLES) == set()
    assert not (tmp_path / "runs").exists()


def test_commands_that_read_a_run_load_no_torch(tmp_path):
    kept = shutil.copytree(KEPT, tmp_path / "kept")
    finished = kept / "runs" / "finished"
    found = loaded(
        ["watch", finished, "--no-wait"],
        ["privacy", kept / "runs" / "private"],
        ["flower", "status", kept / "sites-finished" / "server"],
        ["predict", finished, "--client", "nobody", "--text", "x"],
        ["export", finished, "--client", "nobody"],
        ["evaluate", finished, tmp_path / "none.csv"],
        ["report", finished, "--out", tmp_path / "page.html"],
    )
    assert [code for code, _, _ in found] == [0, 0, 0, 2, 2, 2, 0]
    assert found[-2][2] & (HEAVY | TABLES) <= {"scipy"}  # of the accounts of privacy
    assert found[-1][2] & HEAVY <= {"matplotlib", "scipy"}


def test_what_is_known_of_tasks_is_what_the_tasks_say():
    assert {name: task.roles for name, task in TASKS.items()} == ROLES
    assert set(ACCURACY) == set(TASKS)


def test_a_server_between_sites_needs_no_torch():
    """It averages arrays; its process starts in a quarter of the time."""
    assert reached("trifed.deployment.site_transport") & HEAVY <= {"scipy"}


def test_every_tracker_has_a_command_to_view_its_logs():
    assert tuple(runs.VIEW) == get_args(TrackerName)


def test_public_names_are_listed_before_they_are_imported():
    assert set(trifed.__all__) <= set(dir(trifed))


def test_garbage_is_not_looked_for_during_imports():
    assert gc.isenabled()
    with pytest.raises(ImportError), quick_imports():
        assert not gc.isenabled()
        with quick_imports():
            pass
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()
