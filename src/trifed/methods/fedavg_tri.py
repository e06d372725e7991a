"""The ablation of CE-LoRA without personalisation: the same cores, averaged evenly for all clients.

After Li et al., CE-LoRA (arXiv 2503.23869), whose tables compare with it.

Trains A, C, B and the head. Sends C. The server sends all clients the plain mean of the cores of a round; A, B and
the head stay with the client. LayerNorms stay frozen.
"""

from __future__ import annotations

from trifed.methods.base import Method, average_evenly, is_core, is_factor, is_head

METHOD = Method(
    name="fedavg-tri",
    citation="Li et al., CE-LoRA without personalisation, arXiv 2503.23869",
    adapter="tri-matrix",
    trains=lambda name: is_core(name) or is_factor(name) or is_head(name),
    sends=is_core,
    evaluated_model="trained",
    aggregate=average_evenly,
)
