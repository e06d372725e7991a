"""`report`: write a report on a run, a comparison or an audit, for people or for programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trifed.common.errors import RunError, damage_in
from trifed.common.files import whole_file
from trifed.reports.audit.findings import read_findings
from trifed.reports.audit.report import audit_document
from trifed.reports.comparison.report import comparison_document
from trifed.reports.document import TEMPLATES, Document, render_html, render_json, render_markdown
from trifed.reports.read import AUDIT, COMPARISON, OnProgress, read_source, silent
from trifed.reports.results import Source
from trifed.reports.tables import to_csv

FORMATS: dict[str, Callable[[Document, OnProgress], str]] = {
    "html": render_html,
    "md": lambda document, _: render_markdown(document),
    "json": lambda document, _: render_json(document),
    "csv": lambda document, _: to_csv(document.main),
}
BRIEF = ("method", "mean", "interval", "worst", "best", "up_per_round", "total_bytes")


def report(
    path: str | Path,
    out: str | Path | None = None,
    format: str | None = None,  # noqa: A002 - the word that people look for
    say: OnProgress = silent,
) -> Path:
    """Write a report on the run, comparison or audit in a folder.

    Args:
        path: Folder of a run, finished or broken off, of a comparison or of an audit; or a file `audit.json`.
        out: File to write, `report.FORMAT` in the folder by default; an existing file is replaced.
        format: "html", "md", "json" or "csv"; by default the ending of `out`, else "html".
        say: Called with a line of text before each step.

    Returns:
        The file that was written.

    Raises:
        RunError: No run, comparison or audit is there, a file is damaged, or `out` cannot be written.
    """
    audit = _audit_in(Path(path))
    folder = audit.parent if audit is not None else Path(path)
    chosen = _format(format, out)
    target = Path(out) if out is not None else folder / f"report.{chosen}"
    if out is not None and (target.is_dir() or not target.absolute().parent.is_dir()):
        what = "is a folder" if target.is_dir() else "would lie in a folder that does not exist"
        raise RunError(f"out: got {target}, which {what}; expected a file's path, as report.{chosen}")
    with damage_in(audit or folder, "put the file back, or make it again"):
        document = (
            comparison_document(read_source(folder, say))
            if audit is None
            else audit_document(read_findings(audit))
        )
        text = FORMATS[chosen](document, say)
        text.encode()
    try:
        with whole_file(target) as partial:
            partial.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise RunError(f"{target}: the report cannot be written ({error.strerror}); give another --out") from error
    return target


def render_brief(source: Source) -> str:
    """Render verdict, first caution and the main numbers as an HTML fragment."""
    document = comparison_document(source)
    table = document.main.only(*BRIEF).without_empty()
    return TEMPLATES.get_template("brief.html").render(document=document, table=table)


def _audit_in(path: Path) -> Path | None:
    """Return the file of an audit: the path itself, or audit.json in a folder of no run and no comparison."""
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
