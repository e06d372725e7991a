"""Carry out a comparison: what is missing is run, what was broken off is resumed, what is there is digested."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from trifed.common.dict_merge import deep_merge
from trifed.common.errors import RunError
from trifed.config.run import make_config, read_toml
from trifed.experiments.compare_config import CompareConfig, Job, make_comparison
from trifed.experiments.digest import digest
from trifed.experiments.pool import Listener, carry_out
from trifed.experiments.tuning import best_rate, read_grid, tune
from trifed.federation.run_folder import RunFolder

CONFIG, RESULT = "comparison.toml", "comparison.json"


@dataclass(frozen=True)
class ComparisonResult:
    """A comparison, finished or not. `data`: what comparison.json holds."""

    path: Path
    data: dict[str, Any]

    @property
    def results(self) -> dict[str, Any]:
        """By partition: methods, controls and differences."""
        found: dict[str, Any] = self.data["results"]
        return found

    def _repr_html_(self) -> str:
        """What a notebook shows: who is ahead, and methods and controls side by side."""
        from trifed.reports.page import render_brief
        from trifed.reports.results import Source, Study

        return render_brief(Source(self.path, "comparison", Study.model_validate(self.data), {}))


def _quiet(event: dict[str, Any]) -> None:
    """A listener that says nothing."""


def compare(
    config: CompareConfig, folder: str | Path | None = None, *, jobs: int = 1, listener: Listener = _quiet
) -> ComparisonResult:
    """Carry out a comparison in `folder` (`runs/NAME` unless given), `jobs` runs at a time.

    Called again with the same folder it runs what is missing. Methods, seeds and partitions may be added; a run
    that stands there with other settings is refused. Whatever ends it, comparison.json holds what is finished.

    Raises:
        TrifedError: whatever the user can mend.
    """
    root = Path(folder) if folder is not None else Path("runs") / config.name
    _open(root, config)

    def and_write(event: dict[str, Any]) -> None:
        listener(event)
        if event["event"] in (
            "phase",
            "job",
        ):  # so that a report shows a comparison that is running, or was killed
            _write(config, root)

    try:
        if config.tuning:
            tune(
                config,
                config.tuning,
                root,
                lambda wanted: carry_out(wanted, root, jobs, listener, "learning rates"),
            )
        carry_out(planned(config, root), root, jobs, and_write, "comparison")
    finally:
        result = _write(config, root)
    return result


def _open(root: Path, config: CompareConfig) -> None:
    if not (root / CONFIG).is_file():
        RunFolder.refuse_existing(root)
        root.mkdir(parents=True, exist_ok=True)
    RunFolder(root).write_text(CONFIG, tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))


def planned(config: CompareConfig, root: Path) -> list[Job]:
    """All reported runs, one seed after the other, with the learning rates that tuning chose so far."""
    grid = read_grid(config, root) if config.tuning else {}
    jobs = []
    for seed in config.seeds:
        for partition in config.partition_names():
            for method in config.methods:
                values = deep_merge(
                    config.run_values(partition, method),
                    {"name": method, "seed": seed, "controls": method == config.methods[0]},
                )
                tried = grid.get(config.tuned_on(partition) or "", {}).get(method)
                if tried:
                    values = deep_merge(values, {"training": {"learning_rate": best_rate(tried)}})
                place = Path("runs") / partition / method / f"seed-{seed}"
                jobs.append(Job(partition, method, make_config(values), place))
    return jobs


def _write(config: CompareConfig, root: Path) -> ComparisonResult:
    found = digest(config, planned(config, root), root)
    RunFolder(root).write_json(RESULT, found)
    return ComparisonResult(root, RunFolder(root).read_json(RESULT))


def load_comparison(folder: str | Path) -> ComparisonResult:
    """What a comparison's folder says now, also while it is running or after it was broken off.

    Raises:
        RunError: the folder holds no comparison, or its parts differ in their splits.
    """
    root = Path(folder)
    if not (root / CONFIG).is_file():
        raise RunError(f"{root}: no comparison here (it has no {CONFIG}); give runs/NAME of `trifed compare`")
    config = make_comparison(read_toml(root / CONFIG), str(root / CONFIG))
    return ComparisonResult(root, digest(config, planned(config, root), root))
