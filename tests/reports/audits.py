"""Made-up findings of audits, of the shape that `trifed audit` writes; every number is a test's to change."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from trifed.reports.audit.findings import (
    Attempt,
    Claim,
    Estimate,
    Findings,
    Labels,
    Means,
    Membership,
    Reconstruction,
)

TEXTS = (
    "My card was charged twice for the same order, please refund one of the two payments.",
    "The parcel has not arrived although tracking says that it was delivered on Monday.",
)
WORSE = (
    "my card was charged the the order please payments two one refund weather",
    "parcel delivered monday not the says tracking it in blue has",
)
GUESSED = ("please my the order was not i have refund to", "the is not have my was it please order on")


def sure(mean: float, reach: float = 0.02) -> Estimate:
    """A mean with an interval of `reach` to both sides."""
    return Estimate(mean=mean, low=mean - reach, high=mean + reach)


def text_row(method: str, attack: str, score: float, **changed: Any) -> Reconstruction:
    """A reconstruction of texts with this F1, and the other scores after it."""
    batch = changed.get("batch", 1)
    found = GUESSED if attack == "guesser" else (TEXTS if score > 0.9 else WORSE)
    others = {"precision": 1.05, "recall": 0.95, "rouge1": 1.0, "rouge2": 0.7, "rougeL": 0.8}
    scores = {"f1": sure(score)} | {name: sure(min(1.0, score * part)) for name, part in others.items()}
    values = {
        "method": method, "attack": attack, "sees": "gradient", "knows": "factors", "batch": batch, "steps": 1,
        "tokens": 19.0 * batch, "trials": 24, "scores": scores | {"exact": sure(0.8 if score > 0.9 else 0.0, 0.0)},
        "attempts": [Attempt(original=list(TEXTS[:batch]), found=list(found[:batch]))],
    }  # fmt: skip
    return Reconstruction.model_validate(values | changed)


def picture(seed: int, noise: float = 0.0, size: int = 32) -> str:
    """A PNG as a data URI: a disc on a slope, more or less drowned in noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    clean = np.stack([x, y, 0.3 + 0.7 * ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.03 * (1 + seed))], -1)
    pixels = (1 - noise) * clean + noise * rng.random(clean.shape)
    file = io.BytesIO()
    Image.fromarray((255 * pixels).astype(np.uint8)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def image_row(method: str, attack: str, score: float, noise: float, **changed: Any) -> Reconstruction:
    """A reconstruction of images with this PSNR in dB."""
    scores = {"psnr": sure(score, 0.8), "ssim": sure(score / 40), "mse": sure(0.06, 0.01), "distance": sure(0.5)}
    attempt = Attempt(original=[picture(0), picture(1)], found=[picture(0, noise), picture(1, noise)])
    values = {
        "method": method, "attack": attack, "sees": "gradient", "knows": "factors", "batch": 1, "steps": 1,
        "tokens": None, "trials": 16, "scores": scores, "attempts": [attempt],
    }  # fmt: skip
    return Reconstruction.model_validate(values | changed)


def member(method: str, auc: float, **changed: Any) -> Membership:
    """An attack on membership with this area under the curve."""
    values = {
        "method": method, "source": "update", "sees": "update", "knows": "factors", "examples": 16.0,
        "members": 200, "others": 200, "auc": sure(auc, 0.03), "tpr": sure(max(0.01, 0.6 * (auc - 0.5)), 0.01),
    }  # fmt: skip
    return Membership.model_validate(values | changed)


def label_row(f1: float, **changed: Any) -> Labels:
    """Labels found in a batch with this F1; a guesser has 0.3."""
    values = {"method": "ce-lora", "sees": "gradient", "knows": "base", "batch": 4, "trials": 24}
    return Labels.model_validate(values | {"f1": sure(f1), "guesser": sure(0.3)} | changed)


CURVE = {1: 0.97, 2: 0.62, 4: 0.19, 8: 0.12, 16: 0.11}
FULL = {1: 0.99, 2: 0.98, 4: 0.97, 8: 0.93, 16: 0.88}
"""F1 by batch, of the cores where A and B are known, and of full fine-tuning."""


def text_findings(curve: dict[int, float] | None = None, **changed: Any) -> Findings:
    """An audit of cores: they leak where A and B are known and batches are small. `curve`: F1 by batch there."""
    rows = [text_row("ce-lora", "span", f1, batch=batch) for batch, f1 in (curve or CURVE).items()]
    for batch in CURVE:
        rows += [
            text_row("ce-lora", "span", 0.13, batch=batch, knows="start"),
            text_row("ce-lora", "matching", 0.12, batch=batch, knows="base"),
            text_row("ce-lora", "matching", 0.12, batch=batch, sees="update", steps=4),
            text_row("fedavg-full", "span", FULL[batch], batch=batch, knows="base"),
            text_row("fedavg-lora", "span", FULL[batch] * 0.97, batch=batch, knows="base"),
            text_row("ce-lora", "guesser", 0.11, batch=batch),
        ]
    values: dict[str, Any] = {
        "name": "support", "method": "ce-lora", "task": "text-classification", "kind": "text", "client": "basil",
        "round": 5, "rank": 8, "controls": ["fedavg-full", "fedavg-lora"], "finished": True, "seconds": 734.0,
        "claims": [
            Claim(claim="The attack works on full fine-tuning", holds=True, why="F1 0.99, guesser 0.11"),
            Claim(claim="A round gives nothing of the text back", holds=True, why="F1 0.12, guesser 0.11"),
        ],
        "reconstruction": rows,
        "membership": [
            *(member("ce-lora", auc, examples=n) for n, auc in ((1, 0.55), (4, 0.54), (16, 0.52), (64, 0.51))),
            *(member("fedavg-full", auc, knows="base", examples=n) for n, auc in ((1, 1.0), (16, 0.8), (64, 0.6))),
            member("ce-lora", 0.53, source="summary", sees=None, knows="base", examples=100.0),
        ],
        "labels": [
            label_row(0.92),
        ],
        "means": [
            Means(method="ce-lora", examples=20.0, components=40, found=sure(0.52, 0.1), chance=0.5, attempts=[]),
        ],
        "notes": ["Embedding gradients were left out: a success on them is free."],
        "configuration": {"rounds": 20, "adapter": {"rank": 8}, "privacy": {"update": None}},
        "environment": {"python": "3.11.7", "device": "cpu"},
    }  # fmt: skip
    return Findings.model_validate(values | changed)


def image_findings(scores: Sequence[float] = (14.0, 13.4), **changed: Any) -> Findings:
    """An audit of an image classifier. `scores`: PSNR of matching at batches of 1 and 4; the guesser has 13."""
    rows = [
        image_row("own-prior", "matching", score, 0.7, batch=b) for b, score in zip((1, 4), scores, strict=True)
    ]
    rows += [image_row("fedavg-full", "matching", 27.0, 0.15, knows="base")]
    rows += [image_row("own-prior", "guesser", 13.0, 1.0, batch=batch) for batch in (1, 4)]
    parts: dict[str, Any] = {"membership": [], "labels": [], "means": [], "notes": [], "reconstruction": rows}
    more = {"method": "own-prior", "controls": ["fedavg-full"], "kind": "image", "task": "image-classification"}
    return text_findings(**(parts | more | {"name": "photos"} | changed))
