"""The manifest of a finished run: size and SHA-256 of each of its files, so that later damage can be found.

::

    RUN/manifest.json   {"summary.json": {"bytes": 4210, "sha256": "9f…"}, "clients/berlin/adapter_model…": …}
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trifed.federation.run_folder import RunFolder, json_text

MANIFEST, SUMMARY = "manifest.json", "summary.json"
FOLDERS = ("checkpoints", "clients", "matrices", "privacy")
NOT_LISTED = (MANIFEST, SUMMARY, "mlflow.json", "wandb.json")
"""Files that are written later."""


def finish(run: RunFolder, summary: Mapping[str, Any]) -> None:
    """Write a run's manifest, and then summary.json, which makes the run a finished one."""
    text = json_text(summary)
    files = {str(path.relative_to(run.path)): entry_of(path.read_bytes()) for path in _files(run.path)}
    run.write_json(MANIFEST, {**files, SUMMARY: entry_of(text.encode())}, durable=True)
    run.write_text(SUMMARY, text, durable=True)


def entry_of(content: bytes) -> dict[str, Any]:
    """Return what the manifest says of a file with this content."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def changed_files(run: RunFolder) -> list[str]:
    """Return the files of a finished run that are missing, or are not as the manifest says.

    Raises:
        RunError: The manifest is damaged.
    """
    found = []
    for name, entry in run.read_json(MANIFEST).items():
        path = run.path / name
        if not path.is_file():
            found.append(f"{name} (missing)")
        elif entry_of(path.read_bytes()) != entry:
            found.append(f"{name} (changed)")
    return found


def _files(run: Path) -> Iterator[Path]:
    """Yield the files of a run, without those of trackers, audits, exports and other runs inside it."""
    names = ("config.toml", "*.json", "*.jsonl", "*.safetensors", *(f"{folder}/**/*" for folder in FOLDERS))
    for path in sorted({path for name in names for path in run.glob(name)}):
        if path.is_file() and path.name not in NOT_LISTED and not path.name.startswith("."):
            yield path
