"""Which clients are alike, and how much of each goes into whose average: pure functions on arrays.

- Data: `project` → `summarise` (at the client) → `pairwise_distances` → `denoise` →
  `similarity_from_distances`.
- Data, in multiples of the noise between samples: `pooled_moments` → `two_sample_ratio`, or by label
  `shared_label_ratio`.
- Models: `linear_cka` or `cosine` of the change of the cores.
- Both: `combine` → `mixing_weights` → `mix`; who shares alike has one average, `different_rows`.
"""

from trifed.similarity.checks import SimilarityError
from trifed.similarity.kernel_alignment import cosine, linear_cka
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
