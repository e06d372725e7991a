"""Sealed sums at the server, between sites: which sites are ready in a round, and the list of each sum.

The server does not check signatures; each site checks them itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trifed.common.errors import MessageError
from trifed.config.run import RunConfig
from trifed.config.sealing import sealing_notes
from trifed.deployment.protocol import Reply
from trifed.federation.context import RunContext
from trifed.federation.messages import decode
from trifed.federation.sealed.rules import KEY, SIGNATURE, SumTerms

MOST_FINGERPRINT = 200
"""Characters of the fingerprint of a list of sites."""


@dataclass(frozen=True)
class ReadySite:
    """A site's key of one round, (32,), its signature, (64,), and the fingerprint of its list of keys."""

    key: NDArray[np.uint8]
    signature: NDArray[np.uint8]
    sites: str


@dataclass
class ReadySites:
    """The sites that are ready in one round.

    Attributes:
        found: The sites by index.
        sent_before: Number of sites that have sent a sum of this round before, to a server that ended since.
    """

    number: int
    found: dict[int, ReadySite] = field(default_factory=dict)
    sent_before: int = 0

    def note_refusal(self, kind: str, code: str) -> None:
        """Count a site that does not train, because it has sent."""
        self.sent_before += kind == "train" and code == "sum_sent"

    def read(self, context: RunContext, client: int, reply: Reply) -> None:
        """Read that a site is ready; MessageError if its reply does not say so."""
        header, sizes = context.header("ready", self.number, client), {"key": KEY, "signature": SIGNATURE}
        _, arrays = decode(reply.part("ready"), header, sizes, sum(sizes.values()))
        for name, size in sizes.items():
            if arrays[name].dtype != np.uint8 or arrays[name].shape != (size,):
                raise MessageError(
                    f"{header}: '{name}' is {arrays[name].dtype} {arrays[name].shape}, expected uint8 of {size} "
                    f"values; it is refused"
                )
        key, signature = (arrays[name].astype(np.uint8) for name in sizes)
        self.found[client] = ReadySite(key, signature, reply.text("sites", MOST_FINGERPRINT))

    def others(self) -> list[int]:
        """Remove the sites whose list of keys is not that of most, which a sum needs, and return them."""
        votes = Counter(site.sites for site in self.found.values())
        most = max(sorted(votes), key=votes.__getitem__, default="")
        others = [client for client, site in self.found.items() if site.sites != most]
        for client in others:
            del self.found[client]
        return others

    def with_keys(self, sum_terms: SumTerms, names: Sequence[str]) -> SumTerms:
        """Return the terms of a sum with names, keys and signatures of its sites.

        Args:
            sum_terms: The terms; every client of them is ready.
            names: All clients' names, by index.
        """
        sites = [self.found[client] for client in sum_terms.clients]
        return replace(
            sum_terms,
            keys=np.stack([site.key for site in sites]),
            signatures=np.stack([site.signature for site in sites]),
            names=tuple(names[client] for client in sum_terms.clients),
        )


def notes_of_sums(config: RunConfig, names: Sequence[str]) -> Iterator[str]:
    """Yield what is to be known at the start of a sealed run: who is in a sum, and which checks are off.

    Args:
        config: The settings.
        names: Names of the run's sites.
    """
    if not config.sealing.on:
        return
    yield (
        f"sealed: the server sees sums of at least {config.sealing.at_least} sites, of these: {', '.join(names)}; "
        "each takes part only with sites of its own list of keys"
    )
    yield from sealing_notes(config, len(names))
    yield from notes_of_settings(config)
    yield (
        "off at the server, which sees no single upload: aggregation.rule, screen, norm_bound and most_examples; "
        "the guards of each site stay on"
    )


def notes_of_settings(config: RunConfig) -> Iterator[str]:
    """Yield what `[deployment]` means for a sealed run: too few sites before round 1, or in a round."""
    least, needed = config.sealing.at_least, config.deployment
    if needed.clients < least:
        yield (
            f"deployment.clients: got {needed.clients}, and a sum needs {least} sites; how many sites hold each "
            "label is summed once, with the sites that are there before round 1. Set it to the number of all sites"
        )
    if needed.quorum < least:
        yield (
            f"deployment.quorum: got {needed.quorum}, and a sum needs {least} sites; while sites are missing, "
            f"rounds can pass without a sum. With {least} or more the run stops instead, and can be continued"
        )


def notes_of_going_back(logged: Iterable[Mapping[str, Any]], number: int) -> Iterator[str]:
    """Yield what is to be known when a sealed run goes back: which rounds will have no sum.

    Args:
        logged: The run's events before it goes back.
        number: The round to whose end it goes back.
    """
    summed = [event["round"] for event in logged if event["event"] == "sum" and event["round"] > number]
    if summed:
        rounds = f"round {summed[0]}" if min(summed) == max(summed) else f"rounds {min(summed)} to {max(summed)}"
        yield (
            f"{rounds}: will have no sum, because each site has sent for them, and sends once for a round; "
            f"sharing continues with round {max(summed) + 1}"
        )
