"""The server of every method that has one average for all: FederatedAveraging, and its parts.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017
(arXiv 1602.05629). A global average is the personalised mix with equal rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trifed.methods.base import Options, ServerContext, State, Upload
from trifed.methods.packing import Vector
from trifed.similarity import mix


def start_empty(options: Options, context: ServerContext) -> State:
    """Nothing is known before the first uploads."""
    return {}


def average_by_examples(
    options: Options, context: ServerContext, state: State, uploads: Sequence[Upload]
) -> State:
    """w_j = n_j / Σ n over this round's uploads; mean = Σ w_j θ_j, shape (n_values,)."""
    return average(context, state, uploads, [upload.examples for upload in uploads])


def average_evenly(options: Options, context: ServerContext, state: State, uploads: Sequence[Upload]) -> State:
    """w_j = 1 / number of this round's uploads; mean = Σ w_j θ_j, shape (n_values,)."""
    return average(context, state, uploads, [1] * len(uploads))


def average(context: ServerContext, state: State, uploads: Sequence[Upload], counts: Sequence[int]) -> State:
    """The mean of the uploads in proportion to `counts`, (n_uploads,); no uploads change nothing."""
    if not uploads:
        return state
    share = np.array(counts, np.float64) / sum(counts)
    mean = mix(share[None, :], np.stack([upload.values for upload in uploads]))[0]
    row = np.zeros(context.clients)
    row[[upload.client for upload in uploads]] = share
    return {"mean": mean.astype(np.float32), "weights": np.tile(row, (context.clients, 1))}


def download_mean(state: State, client: int) -> Vector | None:
    """The one average, (n_values,), for whoever asks; None before there is one."""
    return state["mean"].astype(np.float32) if "mean" in state else None
