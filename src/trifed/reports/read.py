"""Read a folder as a `Source`: a run with its baselines, or a comparison with its runs."""

from __future__ import annotations

import shlex
from pathlib import Path

from pydantic import ValidationError

from trifed.common.errors import RunError
from trifed.federation.run_folder import RunFolder
from trifed.reports.results import Details, Source, Study
from trifed.reports.run.read import OnProgress, read_details, read_run

COMPARISON, SETTINGS = "comparison.json", "comparison.toml"


def silent(text: str) -> None:
    """Ignore progress."""


def read_source(path: Path, on_progress: OnProgress = silent) -> Source:
    """Read the folder of a run or a comparison.

    Raises:
        RunError: Neither is there, or a file in it is damaged.
    """
    if (path / COMPARISON).is_file():
        return _read_comparison(path, on_progress)
    if (path / "config.toml").is_file():
        return read_run(path, on_progress)
    if (path / SETTINGS).is_file():
        raise RunError(
            f"{path}: this comparison has no {COMPARISON} yet, which is written when it ends or is stopped; "
            f"to go on with it: {_resume_command(path)}"
        )
    inside = sorted(p.name for p in path.iterdir() if (p / "config.toml").is_file()) if path.is_dir() else []
    hint = f"; inside are {', '.join(inside[:5])}" if inside else ""
    kind = "a file" if path.is_file() else "a folder with neither" if path.is_dir() else "nothing that exists"
    raise RunError(
        f"{path}: got {kind}, expected the folder of a run, as runs/NAME (it has a config.toml), of a "
        f"comparison (it has a {COMPARISON}) or of an audit (it has an audit.json){hint}"
    )


def _read_comparison(path: Path, on_progress: OnProgress) -> Source:
    file = path / COMPARISON
    try:
        study = Study.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole file"
        raise RunError(
            f"{file}: {place}: {first['msg']}; expected what a comparison writes; make the comparison again, or "
            f"read it with the version of trifed that wrote it"
        ) from error
    details = {}
    for number, name in enumerate(study.results, 1):
        on_progress(f"reading {name} ({number} of {len(study.results)})")
        details[name] = _details(path / "runs" / name, study)
    resumable = not study.finished and (path / SETTINGS).is_file()
    return Source(path, "comparison", study, details, _resume_command(path) if resumable else "")


def _resume_command(path: Path) -> str:
    return f"trifed compare {shlex.quote(str(path / SETTINGS))} --runs {shlex.quote(str(path.parent))}"


def _details(folder: Path, study: Study) -> Details:
    """Read details from each method's first seed that has a folder."""
    seeds = [
        (method, folder / method / f"seed-{seed}") for method in study.methods for seed in reversed(study.seeds)
    ]
    return read_details({m: RunFolder(path) for m, path in seeds if (path / "config.toml").is_file()})
