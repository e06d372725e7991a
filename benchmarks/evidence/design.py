"""Arms, learning rates and tiers of the comparison; data sets are in `data_sets.py`, the runs in `evidence.py`.

Equal for all arms: data, splits, seeds, rounds, batches, one bit a number in both directions, and the way in which
a learning rate is chosen on validation data of the same set. Methods that share have the same client parts (label
prior, calibration, interpolation). Exceptions are `local`, which is plain training and has none of them,
`ce-lora-authors`, which also has its own optimiser settings, layers and pooling, `fedrod-lora`, `fedalt` and
`feddpa`, which make the shared model personal in their own way, and `fedavg-full`, whose model is the one that a
client has after its training. A client of `feddpa` takes the steps of a round twice, once for each of its LoRAs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_sets import ROUNDS

Json = dict[str, Any]
CLIENT_PARTS: Json = {"personalization": {"label_prior": True, "calibrate": True, "interpolate": 0.75}}
RATE_FACTOR, MOST_RATES = 3.0, 5
"""Tried are the arm's usual learning rate, a third of it and three times it, and up to two more: beyond the best
one while that is the lowest or the highest."""

RUN: Json = {
    "rounds": ROUNDS,
    "evaluate_every": 2,
    "controls": False,
    "baselines": [],
    "model": {"name": "demo", "max_length": 64},
    "data": {"valid_fraction": 0.1, "test_fraction": 0.4, "allow_single_class": True},
    "training": {"batch_size": 32, "eval_batch_size": 64},
    "wire": {"bits": 1},
}


FIRST_TIER = ("sst2", "banking77", "sentiment-domains", "agnews", "qnli")
ABLATED_ON = ("sst2", "sentiment-domains")


@dataclass(frozen=True)
class Arm:
    """One method with its settings.

    Attributes:
        settings: Its settings, nested, beside those of all.
        rate: Its usual learning rate.
        rival: True if it counts among the rivals of the default.
        tuned_as: The arm whose chosen learning rate it uses; its own if empty.
    """

    settings: Json
    rate: float
    rival: bool = False
    tuned_as: str = ""


CORES, LORA, GLOBAL = 0.02, 3e-3, 9e-3
"""Usual learning rates. The third is of LoRA whose A and B are both averaged: higher ones were best for it in
earlier comparisons."""
ARMS: Mapping[str, Arm] = {
    "own-prior": Arm({"method": "own-prior"}, CORES),
    "fedavg-lora": Arm({"method": "fedavg-lora", **CLIENT_PARTS}, GLOBAL, rival=True),
    "own-prior-lora": Arm({"method": "own-prior-lora"}, GLOBAL),
    "alone": Arm({"method": "own-prior", "personalization": {"share": False}}, CORES),
    "local": Arm({"method": "local"}, LORA),
    "alone-lora": Arm({"method": "own-prior-lora", "personalization": {"share": False}}, LORA),
    "ce-lora": Arm({"method": "ce-lora", **CLIENT_PARTS}, LORA, rival=True),
    "ce-lora-authors": Arm(
        {
            "method": "ce-lora-authors",
            "adapter": {"target_modules": ["query", "key", "value", "dense"]},
            "model": {"pooling": "cls"},
            "privacy": {"small_components": "allow"},
        },
        LORA,
        rival=True,
    ),
    "fedsa-lora": Arm({"method": "fedsa-lora", **CLIENT_PARTS}, LORA, rival=True),
    "fed-xs": Arm({"method": "fed-xs", "adapter": {"rank": 32}, **CLIENT_PARTS}, CORES, rival=True),
}
"""The first tier's arms, in the order in which they run."""


def changed(settings: Json, base: str = "own-prior") -> Arm:
    """Return an arm of the first tier with further settings, at that arm's learning rate."""
    return Arm({**ARMS[base].settings, **settings}, ARMS[base].rate, tuned_as=base)


ABLATIONS: Mapping[str, Arm] = {
    "no rows by label": changed({"aggregation": {"weights": "examples"}}),
    "all share": changed({"aggregation": {"groups": "all"}}),
    "no prior": changed({"personalization": {"label_prior": False}}),
    "no calibration": changed({"personalization": {"calibrate": False}}),
    "received model": changed({"personalization": {"interpolate": 1.0}}),
    "trained model": changed({"personalization": {"interpolate": 0.0}}),
    "32 bits": changed({"wire": {"bits": 32}}),
}
"""The default with one part changed."""

RANKS: Mapping[str, Arm] = {
    **{f"own-prior, rank {rank}": changed({"adapter": {"rank": rank}}) for rank in (4, 8, 16)},
    **{
        f"fedavg-lora, rank {rank}": changed({"adapter": {"rank": rank, "alpha": 2 * rank}}, "fedavg-lora")
        for rank in (1, 2)
    },
    **{
        f"own-prior-lora, rank {rank}": changed({"adapter": {"rank": rank, "alpha": 2 * rank}}, "own-prior-lora")
        for rank in (2, 8, 16, 32)
    },
}
RIVALS: Mapping[str, Arm] = {
    **{
        name: Arm({"method": name, **CLIENT_PARTS}, LORA, rival=True)
        for name in ("fedper-lora", "rolora", "fedex-lora", "ffa-lora", "pfedme-lora")
    },
    "co-lora-like": Arm({"method": "co-lora-like", **CLIENT_PARTS}, CORES, rival=True),
    "fedrod-lora": Arm({"method": "fedrod-lora"}, LORA, rival=True),
    "fedalt": Arm({"method": "fedalt"}, LORA, rival=True),
    "feddpa": Arm({"method": "feddpa"}, LORA, rival=True),
}
"""Further rivals. The last three make the shared model personal in their own way and get no other parts."""

SECOND: Mapping[str, Arm] = {
    "ffa-lora": RIVALS["ffa-lora"],
    "fed-sb": Arm({"method": "fed-sb", "adapter": {"rank": 32}, **CLIENT_PARTS}, CORES, rival=True),
    "pfedme-lora": RIVALS["pfedme-lora"],
    "fedavg-full": Arm(
        {"method": "fedavg-full", "personalization": {**CLIENT_PARTS["personalization"], "interpolate": 0.0}},
        3e-4,
        rival=True,
    ),
}
"""Further rivals of the second tier. `fedavg-full` is taken after a round of training at home."""

THREE: Mapping[str, Arm] = {name: ARMS[name] for name in ("own-prior", "fedavg-lora", "local")}
"""The arms on other models: the default, a global average with equal parts, and training alone."""

FEW_EXAMPLES: Mapping[str, Arm] = {name: ARMS[name] for name in (*THREE, "alone")}
"""The arms where each client has few examples."""

DOMAINS = ("customer_reviews", "movie_sentences", "news_opinion")
WEIGHTS: Mapping[str, Arm] = {
    "similarity of data": changed({"method": {"name": "ce-lora", "data_share": 1.0}}, "ce-lora"),
    "similarity of models": changed({"method": {"name": "ce-lora", "data_share": 0.0}}, "ce-lora"),
    "uniform": changed({"method": {"name": "ce-lora", "others": "uniform"}}, "ce-lora"),
    "learned": changed(
        {
            "method": {"name": "ce-lora", "self_weight": 0.0},
            "personalization": {**CLIENT_PARTS["personalization"], "interpolate": "auto"},
        },
        "ce-lora",
    ),
    "groups that are known": changed(
        {
            "method": {"name": "ce-lora", "others": "uniform"},
            "aggregation": {
                "groups": "given", "members": [[f"{name}-{n}" for n in range(3)] for name in DOMAINS]
            },
        },
        "ce-lora",
    ),
}  # fmt: skip
"""`ce-lora` with other weights in a client's average. The groups are those of `sentiment-domains`."""

AUTHORS: Mapping[str, Arm] = {
    "init_std = 1e-3": changed({"adapter": {"init_std": 1e-3}}, "ce-lora"),
    "alpha = rank": changed({"adapter": {"alpha": 8}}, "ce-lora"),
    "train_norms": changed({"adapter": {"train_norms": True}}, "ce-lora"),
    "new AdamW in each round": changed({"training": {"optimizer_state": "reset"}}, "ce-lora"),
    "linear-each-round": changed({"training": {"schedule": "linear-each-round"}}, "ce-lora"),
    "raw summary": changed(
        {"method": {"name": "ce-lora", "summary": "raw"}, "privacy": {"small_components": "allow"}}, "ce-lora"
    ),
    "no noise floor": changed({"method": {"name": "ce-lora", "noise_floor": False}}, "ce-lora"),
    "cka": changed({"method": {"name": "ce-lora", "model_similarity": "cka"}}, "ce-lora"),
}
"""`ce-lora` with one setting of its authors' client."""

SEALED: Mapping[str, Arm] = {
    "sealed": changed({"sealing": {"on": True}}),
    "sealed, rank 16": changed({"sealing": {"on": True}, "adapter": {"rank": 16}}),
    "sealed, three levels": changed({"sealing": {"on": True, "levels": 3}}),
}
"""The default with sums in place of single uploads, and all clients in one group. Its uploads take more bits."""

CHANGED: Mapping[str, tuple[str, Mapping[str, Arm]]] = {
    "sealed": ("own-prior", SEALED),
    "ablations": ("own-prior", ABLATIONS),
    "ranks": ("own-prior", RANKS),
    "weights": ("ce-lora", WEIGHTS),
    "authors": ("ce-lora", AUTHORS),
}
"""Tiers of arms that change one thing of another arm, which is named first."""
TIERS: Mapping[str, tuple[tuple[str, ...], Mapping[str, Arm]]] = {
    "first": (FIRST_TIER, ARMS),
    "rivals": (ABLATED_ON, RIVALS),
    **{tier: (ABLATED_ON, arms) for tier, (_, arms) in CHANGED.items()},
    "sealed": (("sst2", "sentiment-domains", "banking77", "agnews"), SEALED),
    "second": (("qqp", "mnli", "clinc150-domain"), {**ARMS, **SECOND}),
    "few": (("sst2-few", "banking77-few", "clinc150-few", "agnews-few"), FEW_EXAMPLES),
    "language": (("shakespeare", "instructions"), THREE),
    "images": (("cifar10-vit", "cifar10-vit-tasks", "cifar10-towers", "cifar10-towers-tasks"), THREE),
    "larger": (("sst2-mpnet", "qnli-mpnet"), THREE),
}
"""Sets and arms of each tier, in the order in which they run."""
ALL_ARMS: Mapping[str, Arm] = {name: arm for _, arms in TIERS.values() for name, arm in arms.items()}
MAIN_ARMS = tuple(dict.fromkeys((*ARMS, *RIVALS, *SECOND)))
"""The arms of the first table of a set, in its order; the others are changes of one of these."""
