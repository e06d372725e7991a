"""Fed-RoD on plain LoRA: a common model trained as if labels were balanced, and a head of each client's own.

Chen, Chao, "On Bridging Generic and Personalized Federated Learning for Image Classification", ICLR 2022
(arXiv 2107.00778); the balanced loss is that of Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual
Recognition", NeurIPS 2020 (arXiv 2007.10740).

Trains A, B, the head g and a personal head p on the sum of two losses. The first is −log softmax(g(x) + log π)_y
with the client's label shares π, for A, B and g. The second is −log softmax(g(x) + p(x))_y, for p alone: the
features and g(x) are constants in it. Sends A, B and g. The server averages by example count and sends the one
average back; p stays with the client. A client uses g + p, which is one linear head. LayerNorms stay frozen.

Changed here: p is linear and starts at 0, in place of the paper's copy of g and its variant by a hypernetwork; a
tenth of an example is added to each label before π is taken, so that log π is finite.
"""

from __future__ import annotations

from trifed.methods.aggregation import BIAS
from trifed.methods.base import Labels, Method, Options, is_factor, is_head
from trifed.methods.packing import Tensors
from trifed.methods.personalization import LabelPrior

PRIOR = "prior.bias"


def _prior(options: Options, labels: Labels, n_labels: int) -> Tensors:
    """log π, (n_labels,), of the client's labels."""
    return {PRIOR: LabelPrior(0.1)(options, labels, n_labels)[BIAS]}


METHOD = Method(
    name="fedrod-lora",
    citation="Chen and Chao, Fed-RoD, ICLR 2022, arXiv 2107.00778",
    adapter="lora",
    trains=lambda name: is_factor(name) or is_head(name) or name.startswith(("personal.", "prior.")),
    sends=lambda name: is_factor(name) or is_head(name),
    evaluated_model="trained",
    personal_head=True,
    local_init=_prior,
    turns=(lambda name: name != PRIOR,),
)
