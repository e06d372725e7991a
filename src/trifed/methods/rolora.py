"""RoLoRA: A and B train in alternate rounds, so that their average is exact and half of the numbers are sent.

Chen, Guo, Ju, Dalal, Zhu, Khisti, "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA",
NeurIPS 2025 (arXiv 2502.01755).

In odd rounds B and the head train and are sent, in even rounds A and the head; the other factor stays as it was
received. It is then equal at all clients, so that mean(B_j) A = mean(B_j A) in an odd round, and B mean(A_j) =
mean(B A_j) in an even one. The server averages by example count and sends back what the round has changed. A
client that missed a round gets both factors. LayerNorms stay frozen.

That the head is in both kinds of rounds is our choice.
"""

from __future__ import annotations

from dataclasses import replace

from trifed.methods.base import is_head
from trifed.methods.fedavg_lora import METHOD as FEDAVG_LORA

METHOD = replace(
    FEDAVG_LORA,
    name="rolora",
    citation="Chen et al., RoLoRA, NeurIPS 2025, arXiv 2502.01755",
    turns=(
        lambda name: ".lora_B." in name or is_head(name),
        lambda name: ".lora_A." in name or is_head(name),
    ),
)
