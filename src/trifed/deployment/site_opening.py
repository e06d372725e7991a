"""The number of holders of each label: a site of a sealed run computes it from the signed parts of all sites.

The numbers of holders decide which rows of the head a site sends. A site takes them from no server: it checks the
signature of each part, adds the parts up, and keeps the result, which no later terms may change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trifed.deployment.protocol import RefusedError
from trifed.deployment.site_keys import SiteKeys
from trifed.federation.sealed.proof import OpeningProof, part_bytes
from trifed.federation.sealed.rules import SumTerms
from trifed.privacy.masking import part_statement, verify


@dataclass(frozen=True)
class KnownHolders:
    """The numbers of label holders that a site has computed once for a run.

    Attributes:
        sites: Names of the sites of the sum of label holders, by index.
        holders: How many of them hold each label, (n_labels,).
    """

    sites: Mapping[int, str]
    holders: list[int]


def known_holders(sites: SiteKeys, run: str, sum_terms: SumTerms) -> KnownHolders:
    """Return the holders of labels that a proof shows.

    Args:
        sites: The public keys of all sites by name, as this site has them.
        run: The run's name.
        sum_terms: Terms of a sum, with the proof.

    Raises:
        RefusedError: There is no proof; a name in it is there twice, is not that of a known site, or its signature
            is not one on this list and part.
    """
    proof = sum_terms.proof
    if proof is None:
        raise RefusedError(
            "other_holders",
            "the terms name holders of labels, without the sites' signed parts to check them; refused",
        )
    if len(set(proof.names)) != len(proof.names):
        raise RefusedError("other_holders", "the sites' signed parts: a name occurs twice; refused")
    for place, name in enumerate(proof.names):
        _check_signature(sites, run, proof, place, name)
    return KnownHolders(
        dict(zip(sum_terms.opening, proof.names, strict=True)), [int(count) for count in proof.holders()]
    )


def check_holders(known: KnownHolders, index: int, sum_terms: SumTerms, labels: str, labels_sent: str) -> None:
    """Check that the terms of a sum have the holders of labels that this site has computed.

    Args:
        known: What it has computed.
        index: This site's index.
        sum_terms: The terms.
        labels: Digest of the labels that this site holds now.
        labels_sent: Digest of those in its part of the sum of label holders; empty if it sent none.

    Raises:
        RefusedError: They are others, or of other sites, or this site's labels have changed and the terms do not
            say so. A row of the head could then be a sum of fewer sites than it seems.
    """
    if known.holders != sum_terms.holders.tolist() or list(known.sites) != list(sum_terms.opening):
        raise RefusedError(
            "other_holders",
            "the numbers of holders of the labels are not those of the sites' signed parts; refused",
        )
    for client, name in zip(sum_terms.clients, sum_terms.names, strict=True):
        if known.sites.get(client, name) != name:
            raise RefusedError(
                "other_holders", f"{name} has the place of {known.sites[client]} in the list of the sum; refused"
            )
    said = index not in sum_terms.opening or index in sum_terms.changed
    if labels_sent and labels != labels_sent and not said:
        raise RefusedError(
            "other_holders", "the labels here have changed, and the terms of the sum do not say so; refused"
        )


def _check_signature(sites: SiteKeys, run: str, proof: OpeningProof, place: int, name: str) -> None:
    statement = part_statement(run, proof.names, proof.members.tobytes(), part_bytes(proof.parts[place]))
    public = sites.get(name)
    if public is None or not verify(public, statement, proof.signatures[place].tobytes()):
        found = "is not in this site's list" if public is None else "has not signed its part"
        raise RefusedError(
            "unknown_site",
            f"{name} {found} of the sum of label holders; get the newest list from the server, compare its "
            f"fingerprint, and run `trifed flower trust`. If {name} has left, a site that joins later takes part "
            f"in the next run",
        )
