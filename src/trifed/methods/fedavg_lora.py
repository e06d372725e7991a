"""Federated averaging of plain LoRA adapters and heads: one global model.

Zhang et al., "FedPETuning", Findings of ACL 2023 (arXiv 2212.10025); Zhang et al., "FedIT", ICASSP 2024
(arXiv 2305.05644); after McMahan et al., AISTATS 2017 (arXiv 1602.05629), equation of FederatedAveraging.

Trains A, B and the head. Sends all of them. The server averages by example count over the round's uploads and
sends the one average back to everybody: the personalised case with equal rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trifed.methods.interface import Method, Options, Setting, State, Upload, Vector, is_factor, is_head
from trifed.similarity import mix


def _start(options: Options, setting: Setting) -> State:
    return {}


def _aggregate(options: Options, setting: Setting, state: State, uploads: Sequence[Upload]) -> State:
    """w_j = n_j / Σ n over this round's uploads; mean = Σ w_j θ_j, shape (n_values,)."""
    if not uploads:
        return state
    examples = np.array([upload.examples for upload in uploads], np.float64)
    share = examples / examples.sum()
    mean = mix(share[None, :], np.stack([upload.values for upload in uploads]))[0]
    row = np.zeros(setting.clients)
    row[[upload.client for upload in uploads]] = share
    return {"mean": mean.astype(np.float32), "weights": np.tile(row, (setting.clients, 1))}


def _download(state: State, client: int) -> Vector | None:
    return state["mean"].astype(np.float32) if "mean" in state else None


METHOD = Method(
    name="fedavg-lora",
    citation="Zhang et al., FedPETuning, Findings of ACL 2023, arXiv 2212.10025",
    adapter="lora",
    trains=lambda name: is_factor(name) or is_head(name),
    sends=lambda name: is_factor(name) or is_head(name),
    scored="received",
    options=Options,
    start=_start,
    aggregate=_aggregate,
    download=_download,
)
