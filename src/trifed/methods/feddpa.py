"""FedDPA: a global LoRA that is averaged, a local one that stays at home, and a weight of both for each input.

Yang, Long, Shen, Jiang, Blumenstein, "Dual-Personalizing Adapter for Federated Foundation Models", NeurIPS 2024
(arXiv 2403.19211), in the form FedDPA-T: both LoRAs train in each round.

Trains A, B, the head, and a local LoRA A_l, B_l. Sends A, B and the head. The server averages them by example
count and sends the one average back. A round has two trainings on the same batches, each over all of the round's
steps: first the local LoRA, with y = W0 x + s (½ B A x + ½ B_l A_l x) and the received A, B and head frozen; then
A, B and the head without the local LoRA. A client uses the received average with its local LoRA:
y = W0 x + s ((1 - a) B A x + a B_l A_l x), where a is `scale` times the mean cosine similarity of the input to the
client's training examples, for each input. LayerNorms stay frozen.

As we read it, ½ is the paper's weight in training, and the default of `scale` too. Ours: the similarity is that to
all training examples, where the authors' code draws five, and of the mean over the tokens of the frozen base's
last hidden states, where that code takes the last token with the local LoRA; it is limited to [0, 1]. The paper
has language models; here the task needs a linear head, which is common. The local LoRA starts like the global one,
and trains in round 1 too.
"""

from __future__ import annotations

from typing import cast

from pydantic import Field

from trifed.methods.base import Method, Options, Phase, is_factor, is_head, is_local, is_share


class DualOptions(Options):
    """Options of the two LoRAs."""

    scale: float = Field(
        0.5, ge=0, le=1, description="Share of the local LoRA for an input that is like the training examples."
    )


def _common(name: str) -> bool:
    return is_factor(name) or is_head(name)


METHOD = Method(
    name="feddpa",
    citation="Yang et al., FedDPA, NeurIPS 2024, arXiv 2403.19211",
    adapter="lora-dual",
    trains=lambda name: _common(name) or is_local(name) or is_share(name),
    sends=_common,
    options=DualOptions,
    phases=(Phase(is_local, 0.5), Phase(_common, 0.0)),
    local_share=lambda options: cast(DualOptions, options).scale,
)
