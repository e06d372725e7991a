"""The record at a site of everything that left it, one line for each reply, written before the reply leaves.

::

    FOLDER/releases.jsonl   {"time": "2026-03-01T12:00:00+00:00", "run": "tickets-1f", "round": 3, "kind": "train",
                             "facts": {"loss": 0.41, …}, "parts": {"upload": {"bytes": 1204, "tensors": [...]}},
                             "epsilon": 1.93}

Lines are only appended. `facts` are the numbers and names of a reply as they are sent; `parts` its messages. A
reply that cannot be written down is not sent.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trifed.common.errors import RunError
from trifed.deployment.protocol import Fact, Reply, Request

RELEASES = "releases.jsonl"
NOT_SHOWN = ("layout", "layers")
"""Facts of the run that are long and the same at every site; the record has their length."""


@dataclass(frozen=True)
class Part:
    """One message within a reply: its size, and the tensors in it."""

    bytes: int
    tensors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Release:
    """One reply that left the site.

    Attributes:
        time: When it was written down, ISO 8601, UTC.
        run: Name of the run.
        round: The round, 0 before the first.
        kind: Kind of the request.
        facts: The reply's numbers and names.
        parts: Its messages by name.
        error: The code of a refusal.
        epsilon: ε of one training example spent so far in this run; None without a ledger.
    """

    time: str
    run: str
    round: int
    kind: str
    facts: dict[str, Fact] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    error: str | None = None
    epsilon: float | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all messages."""
        return sum(part.bytes for part in self.parts.values())


def record_release(
    folder: Path, request: Request, reply: Reply, tensors: Mapping[str, Sequence[str]], epsilon: float | None
) -> None:
    """Append a reply to the record of a site; it is on the disk when this returns.

    Args:
        folder: The site's folder.
        request: The request.
        reply: The reply that is about to leave.
        tensors: Names of the tensors in each part.
        epsilon: ε that the run has spent, with this reply.

    Raises:
        OSError: The record cannot be written, so the reply must not leave.
    """
    number = request.facts.get("round", 0)
    facts = {n: f"{len(str(v))} characters" if n in NOT_SHOWN else v for n, v in reply.facts.items()}
    facts = {n: "none" if isinstance(v, float) and not math.isfinite(v) else v for n, v in facts.items()}
    release = Release(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        run=str(request.facts.get("run", ""))[:100],
        round=number if isinstance(number, int) and 0 <= number < 2**31 else 0,
        kind=request.kind[:100],
        facts=facts,
        parts={name: Part(len(part), list(tensors.get(name, []))) for name, part in reply.parts.items()},
        error=reply.error,
        epsilon=epsilon,
    )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / RELEASES).open("ab") as file:
        file.write(json.dumps(asdict(release)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_releases(folder: Path) -> list[Release]:
    """Return everything that left a site, in order; none if nothing has. Half a last line is ignored.

    Raises:
        RunError: A line is damaged.
    """
    path = folder / RELEASES
    content = path.read_bytes() if path.is_file() else b""
    found = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            values: dict[str, Any] = json.loads(line)
            parts = {name: Part(**part) for name, part in values.pop("parts").items()}
            found.append(Release(**values, parts=parts))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path}, line {number}: damaged ({error}); put it back from a backup") from error
    return found
