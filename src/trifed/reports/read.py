"""A folder, whatever it holds, as a `Source`: a run with its baselines, or a comparison with its runs."""

from __future__ import annotations

import shlex
from pathlib import Path

from pydantic import ValidationError

from trifed.common.errors import RunError
from trifed.federation.run_folder import RunFolder
from trifed.reports.results import Details, Source, Study
from trifed.reports.run.read import Say, read_details, read_run

COMPARISON, SETTINGS = "comparison.json", "comparison.toml"


def silent(text: str) -> None:
    """Says nothing."""


def read_source(path: Path, say: Say = silent) -> Source:
    """A run folder or a comparison folder.

    Raises:
        RunError: neither is there, or a file in it is damaged.
    """
    if (path / COMPARISON).is_file():
        return _read_comparison(path, say)
    if (path / "config.toml").is_file():
        return read_run(path, say)
    if (path / SETTINGS).is_file():
        raise RunError(
            f"{path}: this comparison has no {COMPARISON} yet, which is written when it ends or is stopped; "
            f"to go on with it: {_again(path)}"
        )
    inside = sorted(p.name for p in path.iterdir() if (p / "config.toml").is_file()) if path.is_dir() else []
    hint = f"; inside are {', '.join(inside[:5])}" if inside else ""
    raise RunError(
        f"{path}: got {_kind(path)}, expected the folder of a run, as runs/NAME (it has a config.toml), of a "
        f"comparison (it has a {COMPARISON}) or of an audit (it has an audit.json){hint}"
    )


def _kind(path: Path) -> str:
    if not path.exists():
        return "nothing that exists"
    return "a folder with neither" if path.is_dir() else "a file"


def _read_comparison(path: Path, say: Say) -> Source:
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
        say(f"reading {name} ({number} of {len(study.results)})")
        details[name] = _details(path / "runs" / name, study)
    go_on = _again(path) if not study.finished and (path / SETTINGS).is_file() else ""
    return Source(path, "comparison", study, details, go_on)


def _again(path: Path) -> str:
    """The command that goes on with a comparison."""
    return f"trifed compare {shlex.quote(str(path / SETTINGS))} --runs {shlex.quote(str(path.parent))}"


def _details(folder: Path, study: Study) -> Details:
    """From each method's first seed that has a folder."""
    found = {}
    for method in study.methods:
        seeds = [folder / method / f"seed-{seed}" for seed in study.seeds]
        first = next((seed for seed in seeds if (seed / "config.toml").is_file()), None)
        if first is not None:
            found[method] = RunFolder(first)
    return read_details(found)
