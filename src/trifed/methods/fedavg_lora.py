"""Federated averaging of plain LoRA adapters and heads: one global model.

Zhang et al., "FedPETuning", Findings of ACL 2023 (arXiv 2212.10025); Zhang et al., "FedIT", ICASSP 2024
(arXiv 2305.05644); after McMahan et al., AISTATS 2017 (arXiv 1602.05629), equation of FederatedAveraging.

Trains A, B and the head. Sends all of them. The server averages by example count over the round's uploads and
sends the one average back to all clients. LayerNorms stay frozen.
"""

from __future__ import annotations

from trifed.methods.base import Method, is_factor, is_head

METHOD = Method(
    name="fedavg-lora",
    citation="Zhang et al., FedPETuning, Findings of ACL 2023, arXiv 2212.10025",
    adapter="lora",
    trains=lambda name: is_factor(name) or is_head(name),
    sends=lambda name: is_factor(name) or is_head(name),
)
