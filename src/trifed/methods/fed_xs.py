"""LoRA-XS, federated: cores between public projections, averaged exactly.

Bałazy, Banaei, Aberer, Tabor, "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters"
(arXiv 2405.17604), as the rival that Fed-SB (arXiv 2502.15436) compares itself with.

A = V_rᵀ and B = U_r Σ_r come from the SVD of the frozen weight, are equal at all clients, and stay frozen. Trains
C and the head. Sends both. The server averages by example count and sends the one average back; with common
projections mean(B C_j A) = B mean(C_j) A, so averaging loses nothing. LayerNorms stay frozen.
"""

from __future__ import annotations

from trifed.methods.base import Method, is_core, is_head

METHOD = Method(
    name="fed-xs",
    citation="Bałazy et al., LoRA-XS, arXiv 2405.17604",
    adapter="public-frames",
    trains=lambda name: is_core(name) or is_head(name),
    sends=lambda name: is_core(name) or is_head(name),
)
