"""FedPer on plain LoRA: the adapters are common to all clients, and each keeps a head of its own.

Arivazhagan, Aggarwal, Singh, Choudhary, "Federated Learning with Personalization Layers" (arXiv 1912.00818).

Trains A, B and the head. Sends A and B, the paper's base layers. The server averages them by example count and
sends the one average back; the head, its personalization layer, stays with the client. LayerNorms stay frozen.
A client's model is the average with its own head; `personalization.interpolate = 0` uses the model as trained.

A preset: `fedavg-lora` with `personalization.keep = ["head."]`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trifed.methods.aggregation import AggregationSettings
from trifed.methods.fedavg_lora import METHOD as FEDAVG_LORA
from trifed.methods.personalization import PersonalizationSettings, compose

PARTS: dict[str, Any] = {"keep": ["head."]}

METHOD = compose(
    replace(
        FEDAVG_LORA,
        name="fedper-lora",
        citation="Arivazhagan et al., FedPer, arXiv 1912.00818",
        defaults={"personalization": PARTS},
    ),
    PersonalizationSettings(**PARTS),
    AggregationSettings(),
)
