"""The record of the sealed sums that a site has sent its part of.

::

    FOLDER/RUN/sums.json     for each round in which this site has sent: a digest of the terms, the sites of the
                             sum, and a digest of its own numbers; and how many sites hold each label

A server could compute one site's numbers from two sums of the same numbers that differ by that site. Therefore a
site sends once in a round, and never the same numbers with other sites, in any of its runs. They are compared to
the last bit, before they are rounded: numbers that are only alike are not found. The record is on the disk before
anything leaves, and neither going back nor opening the run again removes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trifed.common.errors import RunError, damage_in
from trifed.deployment.protocol import RefusedError
from trifed.deployment.site_opening import KnownHolders
from trifed.deployment.site_store import SiteStore
from trifed.federation.run_folder import RunFolder

SUMS = "sums.json"


@dataclass(frozen=True)
class SentSum:
    """One sum that this site has sent its part of.

    Attributes:
        terms: Digest of the terms of the sum, with its list of sites and their keys.
        sites: Names of the sites of the sum, sorted.
        numbers: Digest of the site's own numbers, see `digest_of_change`; before the first round, of its labels.
    """

    terms: str
    sites: list[str]
    numbers: str


class SumRecord:
    """The record of one run, and of the others in the same site's folder."""

    def __init__(self, store: SiteStore) -> None:
        self._files = RunFolder(store.folder)

    def sent(self, number: int) -> SentSum | None:
        """Return what was sent in a round; None if nothing was."""
        return _rounds_of(self._files.path / SUMS).get(number)

    def of_all_runs(self) -> dict[str, dict[int, SentSum]]:
        """Return what was sent in each round of each run of this site, by the names of the runs.

        Raises:
            RefusedError: The record of a run is damaged.
        """
        paths = sorted(self._files.path.parent.glob(f"*/{SUMS}"))
        return {path.parent.name: _rounds_of(path) for path in paths}

    def holders(self) -> KnownHolders | None:
        """Return the holders of labels that this site has computed for the run; None before it has.

        Raises:
            RefusedError: The record is damaged.
        """
        found = self._read().get("holders")
        if found is None:
            return None
        with _readable(self._files.path / SUMS):
            sites = {int(index): str(name) for index, name in found["sites"].items()}
            return KnownHolders(sites, [int(count) for count in found["counts"]])

    def write_holders(self, known: KnownHolders) -> None:
        """Write down the holders of labels, once for the run; they are on the disk when this returns."""
        sites = {str(index): name for index, name in known.sites.items()}
        content = self._read() | {"holders": {"sites": sites, "counts": known.holders}}
        self._files.write_json(SUMS, content, durable=True)

    def check_numbers(self, numbers: str, sites: Sequence[str]) -> None:
        """Check that the same numbers were not sent with other sites, in any run of this site.

        Raises:
            RefusedError: They were.
        """
        for run, rounds in self.of_all_runs().items():
            for number, found in rounds.items():
                if found.numbers == numbers and found.sites != sorted(sites):
                    raise RefusedError(
                        "sum_sent",
                        f"the same numbers were sent in round {number} of {run} in a sum with other sites "
                        f"({', '.join(found.sites)}); the difference would show those of one site",
                    )

    def write(self, number: int, entry: SentSum) -> None:
        """Write down what is about to be sent; it is on the disk when this returns."""
        content = self._read()
        content.setdefault("rounds", {})[str(number)] = vars(entry)
        self._files.write_json(SUMS, content, durable=True)

    def _read(self) -> dict[str, Any]:
        return _content_of(self._files.path / SUMS)


def _rounds_of(path: Path) -> dict[int, SentSum]:
    """Return what a run's record says was sent, by round; what a later version has added is ignored."""
    rounds = _content_of(path).get("rounds", {})
    with _readable(path):
        return {
            int(number): SentSum(entry["terms"], sorted(entry["sites"]), entry["numbers"])
            for number, entry in rounds.items()
        }


def _content_of(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    with _readable(path):
        return dict(json.loads(path.read_text(encoding="utf-8")))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Refuse what needs a record that is damaged; the file's name is for the site's log."""
    way_out = "put it back from a backup: without it the same numbers could be sent in two sums"
    try:
        with damage_in(path, way_out, also=(AttributeError,)):
            yield
    except RunError as error:
        raise RefusedError("storage", str(error)) from error
