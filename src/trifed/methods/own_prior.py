"""own-prior: the clients whose labels have the same meaning share one model, and each keeps its own label prior.

A preset of parts, made for this package: `fed-xs` with a label prior, calibration and interpolation at the client
(`personalization`), and averages by label rows within agreeing groups at the server (`aggregation`). C between
public projections (see `fed_xs`) and the head train. C and the head's weight are sent, in one bit a number unless
`wire.bits` says otherwise; the bias stays. Before round 1 each client sends once how many examples of each label
it has, and mean and variances of the labels with twenty or more. LayerNorms stay frozen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import Field

from trifed.methods.aggregation import AggregationSettings
from trifed.methods.base import Method, Options
from trifed.methods.fed_xs import METHOD as FED_XS
from trifed.methods.personalization import PersonalizationSettings, compose


class OwnPriorOptions(Options):
    """Options of earlier versions, for which two settings of the parts stand now."""

    smoothing: float | None = Field(
        None, gt=0, description="Earlier name of the setting personalization.prior_smoothing."
    )
    apart: float | None = Field(None, ge=0, description="Earlier name of the setting aggregation.agreement.")


PARTS: dict[str, dict[str, Any]] = {
    "personalization": {"label_prior": True, "calibrate": True, "interpolate": 0.75},
    "aggregation": {"weights": "label-rows", "groups": "agreement"},
}


def preset(method: Method, name: str, **defaults: Any) -> Method:
    """Return a method with the parts of `own-prior`, under a name of its own."""
    named = replace(
        method,
        name=name,
        citation="trifed; bias as prior after Menon et al., ICLR 2021, arXiv 2007.07314",
        options=OwnPriorOptions,
        setting_names={"smoothing": "personalization.prior_smoothing", "apart": "aggregation.agreement"},
        defaults={**PARTS, "wire": {"bits": 1}, **defaults},
    )
    parts = (PersonalizationSettings(**PARTS["personalization"]), AggregationSettings(**PARTS["aggregation"]))
    return compose(named, *parts)


METHOD = preset(FED_XS, "own-prior", adapter={"rank": 32}, training={"learning_rate": 0.02})
