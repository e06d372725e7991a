"""Run a comparison: start missing runs, resume unfinished ones, and summarise the finished ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from trifed.common.errors import RunError
from trifed.common.lock import held, is_held
from trifed.experiments.compare_config import CompareConfig, Job, read_comparison
from trifed.experiments.comparison_summary import summarise_comparison
from trifed.experiments.pool import run_jobs
from trifed.experiments.tuning import best_rate, deciding_metric, read_grid, tune
from trifed.federation.events import Listener
from trifed.federation.preparation import quiet
from trifed.federation.run_folder import RunFolder
from trifed.reports.format import plural

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from trifed.reports.results import Study

CONFIG, RESULT = "comparison.toml", "comparison.json"


@dataclass(frozen=True, repr=False)
class ComparisonResult:
    """A comparison, finished or not; printed, it is the verdict in a sentence.

    Attributes:
        path: The comparison's folder.
        data: Content of its comparison.json.
    """

    path: Path
    data: dict[str, Any]

    @property
    def results(self) -> dict[str, Any]:
        """Methods, controls and differences by partition."""
        return dict(self.data["results"])

    def table(self) -> pd.DataFrame:
        """Return all numbers: one row for each partition and method, and one for each control, in brackets.

        Accuracies lie in [0, 1]; an interval has the columns `interval_low` and `interval_high`; bytes are those
        of one client, but for `total_bytes`. Numbers that are not known are missing.
        """
        from trifed.reports.comparison.tables import main_table
        from trifed.reports.tables import to_frame

        return to_frame(main_table(self._study.results), "partition", "method")

    def differences(self) -> pd.DataFrame:
        """Return the paired differences between methods by partition, in shares, with their intervals."""
        from trifed.reports.comparison.tables import PARTITION, difference_table
        from trifed.reports.results import Partition
        from trifed.reports.tables import Table, to_frame

        rows = [
            {"partition": name, **row}
            for name, partition in self._study.results.items()
            for row in difference_table(partition).rows
        ]
        columns = (PARTITION, *difference_table(Partition()).columns)
        return to_frame(Table("", columns, rows), "partition", "difference")

    def figures(self) -> dict[str, Figure]:
        """Draw every figure of the report, by the title of its section and its own."""
        from trifed.reports.comparison.report import comparison_document, figures_of
        from trifed.reports.read import read_comparison_details
        from trifed.reports.results import Source

        study = self._study
        return figures_of(
            comparison_document(Source(self.path, "comparison", study, read_comparison_details(self.path, study)))
        )

    @property
    def _study(self) -> Study:
        from trifed.reports.results import Study

        return Study.model_validate(self.data)

    def __repr__(self) -> str:
        """Return the verdict in a sentence, and how many runs are missing."""
        from trifed.reports.comparison.verdict import study_verdict

        study = self._study
        missing = f" {plural(len(study.missing), 'run')} missing." if study.missing else ""
        return f"{study.name}: {study_verdict(study)}{missing} {self.path}"

    def _repr_html_(self) -> str:
        """Render for a notebook: the best method, and methods and controls side by side."""
        from trifed.reports.report import render_brief
        from trifed.reports.results import Source

        return render_brief(Source(self.path, "comparison", self._study, {}))


def compare(
    config: CompareConfig, folder: str | Path | None = None, *, jobs: int = 1, listener: Listener = quiet
) -> ComparisonResult:
    """Run a comparison in `folder` (`runs/NAME` unless given), `jobs` runs at a time.

    A repeated call with the same folder runs what is missing. Methods, seeds and partitions can be added; a run
    that is there with other settings is refused. However the call ends, comparison.json has all finished runs.

    Raises:
        TrifedError: The user can correct it; the message says how.
    """
    root = Path(folder) if folder is not None else Path("runs") / config.name
    if not (root / CONFIG).is_file():
        RunFolder.refuse_existing(root)

    def write_and_listen(event: dict[str, Any]) -> None:
        listener(event)
        if event["event"] in ("phase", "job"):  # a report shows a comparison that is running, or was killed
            _write(config, root, under_way=True)

    with held(root):
        settings = tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
        RunFolder(root).write_text(CONFIG, settings, durable=True)
        try:
            if config.tuning:
                start = partial(run_jobs, root=root, parallel=jobs, listener=listener, phase="learning rates")
                tune(config, config.tuning, root, start)
            run_jobs(planned(config, root), root, jobs, write_and_listen, "comparison")
        finally:
            result = _write(config, root)
    return result


def planned(config: CompareConfig, root: Path) -> list[Job]:
    """Return all reported runs, seed by seed, with the learning rates that tuning has chosen so far."""
    grid = read_grid(config, root)
    jobs = []
    for seed, partition, method in product(config.seeds, config.partition_names(), config.methods):
        tuned_on = config.tuned_on(partition) or ""
        tried, metric = grid.get(tuned_on, {}).get(method), deciding_metric(config, tuned_on)
        rate = {"training": {"learning_rate": best_rate(tried, metric)}} if tried else {}
        changes = {"name": method, "seed": seed, "controls": method == config.methods[0], **rate}
        jobs.append(config.job("runs", partition, method, f"seed-{seed}", changes))
    return jobs


def _write(config: CompareConfig, root: Path, under_way: bool = False) -> ComparisonResult:
    folder = RunFolder(root)
    folder.write_json(RESULT, summarise_comparison(config, planned(config, root), root, under_way))
    return ComparisonResult(root, folder.read_json(RESULT))


def load_comparison(folder: str | Path) -> ComparisonResult:
    """Summarise a comparison's folder as it is, finished or not.

    Raises:
        RunError: The folder holds no comparison, or its runs have different splits.
    """
    root = Path(folder)
    if not (root / CONFIG).is_file():
        raise RunError(f"{root}: no comparison here (it has no {CONFIG}); give runs/NAME of `trifed compare`")
    config = read_comparison(root / CONFIG)
    return ComparisonResult(root, summarise_comparison(config, planned(config, root), root, is_held(root)))
