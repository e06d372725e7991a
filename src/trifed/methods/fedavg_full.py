"""Federated averaging of the whole model: no adapter, all weights train and all are sent.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017
(arXiv 1602.05629); as "FedFT" in Zhang et al., FedPETuning (arXiv 2212.10025).

Trains every weight of the base model, embeddings and LayerNorms included, and the head. Sends all of it. The
server averages by example count and sends the one average back. An upper bound of the bytes.
"""

from __future__ import annotations

from trifed.methods.base import Method

METHOD = Method(
    name="fedavg-full",
    citation="McMahan et al., FedAvg, AISTATS 2017, arXiv 1602.05629",
    adapter="none",
    trains=lambda name: True,
    sends=lambda name: True,
)
