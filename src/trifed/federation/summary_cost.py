"""Bytes of the one-time summary of a client's data, from its shape alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trifed.federation.messages import Header, encode_summary
from trifed.methods.base import Options, Summarise, SummarySeeds
from trifed.similarity.summary import MOST_COMPONENTS

MIN_COMPONENT_EXAMPLES = 20
"""The fewest examples behind a component of a summary; smaller groups send only their counts."""

RAW_COMPONENT_EXAMPLES = 2
"""The fewest examples behind a component of a summary of raw features."""


@dataclass(frozen=True)
class SummarySizes:
    """Bytes of a one-time summary: a fixed part, and one per label and per component of a client.

    Attributes:
        fixed: Bytes of the part that every summary has.
        label: Bytes of a label.
        component: Bytes of a component.
        envelope: Approximate bytes of names, shapes and header around them.
    """

    fixed: int
    label: int
    component: int
    envelope: int

    def total(self, labels: int, components: int) -> int:
        """Return the bytes of a summary without the envelope."""
        return self.fixed + self.label * labels + self.component * components


def most_components(labels: int, examples: int, least: int) -> int:
    """Return the largest number of components in the summary of a client.

    Args:
        labels: Number of labels.
        examples: The client's training examples.
        least: The fewest examples behind a component.
    """
    return min(MOST_COMPONENTS * labels, examples // least)


def summary_sizes(summarise: Summarise, options: Options, features: int = 8) -> SummarySizes:
    """Measure the sizes on summaries of random features, which have the same sizes as real ones.

    Args:
        summarise: The method's function.
        options: The method's options.
        features: Number of the base's features.
    """

    def measure(*labels: int) -> tuple[int, int, int]:
        noise = np.random.default_rng(0).standard_normal((len(labels), features)).astype(np.float32)
        summary = summarise(options, noise, np.array(labels), SummarySeeds(0, 0))
        message = encode_summary(Header("summary", "0" * 12, "0" * 16, 0, 10, len(labels)), summary)
        return summary.nbytes, len(summary.counts), len(message)

    (one, *_), (two, *_), (whole, count, sent) = (
        measure(0),
        measure(0, 1),
        measure(*[0] * MIN_COMPONENT_EXAMPLES),
    )
    component = (whole - one) // max(1, count)
    return SummarySizes(fixed=2 * one - two, label=two - one, component=component, envelope=sent - whole)
