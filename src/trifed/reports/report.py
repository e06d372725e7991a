"""`report`: a run, a comparison or an audit, for people (HTML, Markdown) or for machines (JSON, CSV)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trifed.common.errors import RunError
from trifed.common.files import whole_file
from trifed.reports.audit.findings import read_findings
from trifed.reports.audit.report import audit_document
from trifed.reports.document import Document, make_document
from trifed.reports.formats import render_csv, render_json, render_markdown
from trifed.reports.page import render_html
from trifed.reports.read import COMPARISON, read_source, silent
from trifed.reports.run.read import Say

AUDIT = "audit.json"
FORMATS: dict[str, Callable[[Document, Say], str]] = {
    "html": render_html,
    "md": lambda document, say: render_markdown(document),
    "json": lambda document, say: render_json(document),
    "csv": lambda document, say: render_csv(document),
}


def report(
    path: str | Path,
    out: str | Path | None = None,
    format: str | None = None,  # noqa: A002 - the word that people look for
    say: Say = silent,
) -> Path:
    """Write a report of the run, comparison or audit in the folder `path`; returns where it is.

    `path`: a run's folder, finished or broken off, a comparison's, an audit's, or an audit's file, `audit.json`.
    `out`: where to, `report.FORMAT` in that folder unless given; what is there is replaced. `format`: "html",
    "md", "json" or "csv"; unless given, what `out` ends with, else "html". `say` is told what is being done.

    Raises:
        RunError: no run, comparison or audit there, files in it are damaged, or nothing can be written to `out`.
    """
    audit = audit_in(Path(path))
    folder = audit.parent if audit is not None else Path(path)
    chosen = _format(format, out)
    target = Path(out) if out is not None else folder / f"report.{chosen}"
    if out is not None and (target.is_dir() or not target.absolute().parent.is_dir()):
        what = "is a folder" if target.is_dir() else "would lie in a folder that does not exist"
        raise RunError(f"out: got {target}, which {what}; expected a file's path, as report.{chosen}")
    document = make_document(read_source(folder, say)) if audit is None else audit_document(read_findings(audit))
    text = FORMATS[chosen](document, say)
    try:
        with whole_file(target) as partial:
            partial.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise RunError(f"{target}: the report cannot be written ({error.strerror}); give another --out") from error
    return target


def audit_in(path: Path) -> Path | None:
    """An audit's file: the path itself, or what lies in a folder that is no run's and no comparison's."""
    if path.is_file():
        return path if path.suffix == Path(AUDIT).suffix else None
    other = any((path / name).is_file() for name in ("events.jsonl", COMPARISON))
    return path / AUDIT if (path / AUDIT).is_file() and not other else None


def _format(given: str | None, out: str | Path | None) -> str:
    suffix = Path(out).suffix.removeprefix(".") if out is not None else ""
    chosen = given or {"htm": "html", "markdown": "md"}.get(suffix, suffix) or "html"
    if chosen not in FORMATS:
        where = "format" if given else f"the ending of {out}"
        raise RunError(f"{where}: got '{chosen}', expected one of {', '.join(FORMATS)}")
    return chosen
