"""FFA-LoRA: A stays frozen at a common seed, so that the average of B is the average of the updates.

Sun, Li, Li, Ding, "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024 (arXiv 2403.12313).

Trains B and the head. Sends both. The server averages by example count and sends the one average back. With A
common and fixed, mean(B_j) A = mean(B_j A): nothing is lost between the factors. LayerNorms stay frozen.
"""

from __future__ import annotations

from trifed.methods.base import Method, is_head

METHOD = Method(
    name="ffa-lora",
    citation="Sun et al., FFA-LoRA, ICLR 2024, arXiv 2403.12313",
    adapter="lora",
    trains=lambda name: ".lora_B." in name or is_head(name),
    sends=lambda name: ".lora_B." in name or is_head(name),
)
