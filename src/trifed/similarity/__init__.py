"""Similarity between clients and personalised averages: pure functions on arrays, without torch.

- Similarity of data: `project` → `summarise` (at the client) → `pairwise_distances` → `denoise` →
  `similarity_from_distances`.
- Distance of data in multiples of the sampling noise: `pooled_moments` → `two_sample_ratio`, or per label
  `shared_label_ratio`.
- Agreement on the meaning of labels, also across domains: `label_meaning_ratio`.
- Similarity of models: `linear_cka` or `cosine` of the change of the cores.
- Averages: `combine` → `mixing_weights` → `mix`; `different_rows` finds clients with the same average.
"""

from trifed.similarity.checks import SimilarityError
from trifed.similarity.kernel_alignment import cosine, linear_cka
from trifed.similarity.label_meaning import label_meaning_ratio
from trifed.similarity.mixtures import noise_floor, project, summarise
from trifed.similarity.summary import Summary
from trifed.similarity.transport import (
    component_distances,
    denoise,
    pairwise_distances,
    similarity_from_distances,
    summary_distance,
)
from trifed.similarity.two_sample import pooled_moments, shared_label_ratio, two_sample_ratio
from trifed.similarity.weights import combine, different_rows, mix, mixing_weights

__all__ = [
    "SimilarityError",
    "Summary",
    "combine",
    "component_distances",
    "cosine",
    "denoise",
    "different_rows",
    "label_meaning_ratio",
    "linear_cka",
    "mix",
    "mixing_weights",
    "noise_floor",
    "pairwise_distances",
    "pooled_moments",
    "project",
    "shared_label_ratio",
    "similarity_from_distances",
    "summarise",
    "summary_distance",
    "two_sample_ratio",
]
