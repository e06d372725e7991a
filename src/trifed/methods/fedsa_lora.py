"""FedSA-LoRA: A, which learns what clients have in common, is averaged; B stays at the client.

Guo, Zeng, Wang, et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning", ICLR 2025
(arXiv 2410.01463).

Trains A, B and the head. Sends A. The server averages A by example count and sends the one average back; B and
the head stay with the client, so each ends with a model of its own. LayerNorms stay frozen.
"""

from __future__ import annotations

from trifed.methods.base import Method, is_factor, is_head

METHOD = Method(
    name="fedsa-lora",
    citation="Guo et al., FedSA-LoRA, ICLR 2025, arXiv 2410.01463",
    adapter="lora",
    trains=lambda name: is_factor(name) or is_head(name),
    sends=lambda name: ".lora_A." in name,
    evaluated_model="trained",
)
