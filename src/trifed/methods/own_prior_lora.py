"""own-prior-lora: the parts of `own-prior` on plain LoRA instead of cores between public projections.

A core changes only what the projections span, the directions in which W0 is large; A and B find their own. On a
task that the base model cannot do yet, such as the relation of two texts, this learns more, for twice the bytes
on a small model. The larger the model, the more it costs: r (d_in + d_out) numbers a layer against r² of a core.

A and B are averaged separately, although their product is what counts: they start equal at all clients, and in a
few steps a round they stay close to each other.
"""

from __future__ import annotations

from trifed.methods.fedavg_lora import METHOD as FEDAVG_LORA
from trifed.methods.own_prior import preset

METHOD = preset(FEDAVG_LORA, "own-prior-lora", adapter={"rank": 4, "alpha": 8})
