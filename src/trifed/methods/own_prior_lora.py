"""`own-prior` with the factors of plain LoRA in the place of cores between public frames.

Made here; everything but what trains and travels is that of `own_prior`. A core can only move what the frames
span, which are the directions in which W0 is large; A and B find their own. Where a task asks for something that
the base does not do yet, as the relation of two texts, this learns more, for twice the bytes on a small model.
The larger the model the more it costs: r (d_in + d_out) numbers a layer, against r² of a core.

A and B are averaged as they are, although the product is what counts: from the start that all clients have in
common, and in a few steps a round, they stay near enough to each other.
"""

from __future__ import annotations

from dataclasses import replace

from trifed.methods.base import is_factor, is_head
from trifed.methods.own_prior import HEAD
from trifed.methods.own_prior import METHOD as IN_FRAMES

METHOD = replace(
    IN_FRAMES,
    name="own-prior-lora",
    adapter="lora",
    trains=lambda name: is_factor(name) or is_head(name),
    sends=lambda name: is_factor(name) or name == HEAD,
    defaults={"adapter": {"rank": 4, "alpha": 8}, "wire": {"bits": 1}},
)
