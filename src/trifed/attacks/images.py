"""Reconstruction of images, beside the mean image of the other clients."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from trifed.attacks.gradient_matching import match_images
from trifed.attacks.patches import from_embedding, from_layers, opening_of
from trifed.attacks.plan import Plan
from trifed.attacks.scores import estimate, image_scores
from trifed.attacks.target import Rows, TargetClient, drawn
from trifed.attacks.texts import MATCHING, SEES, SHOWN
from trifed.federation.training import seeded
from trifed.methods.packing import Tensors
from trifed.reports.audit.findings import Attack, Attempt, Knows, Reconstruction, Sees
from trifed.tasks.image_classification import EncodedImages

STEPS = 5
"""For one of a text: an image takes more to appear, and its model is mostly quick."""
Pictures = NDArray[np.float64]


@dataclass
class ImageTrials:
    """Batches of one client's images. `rows`: by batch size, of the training examples."""

    target: TargetClient
    plan: Plan
    say: Callable[[str], None]
    rows: dict[int, list[Rows]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        train = self.target.client.train
        if not isinstance(train, EncodedImages):
            raise TypeError(f"images expected, got {type(train).__name__}")
        self.train = train
        others = [
            o.train.pixels for o in self.target.others if isinstance(o.train, EncodedImages) and len(o.train)
        ]
        known = np.concatenate(others) if others else train.pixels[:0]
        self.mean = known.mean(0) / 255 if len(known) else np.full(train.pixels.shape[1:], 0.5)
        for batch in (b for b in self.plan.batches if b <= len(train)):
            self.rows[batch] = drawn(self.plan.seed, len(train), batch, self.plan.trials)

    def all(self) -> list[Reconstruction]:
        """Every attack on every batch, and the guesser. Where a closed form says nothing it guesses."""
        found: list[Reconstruction] = []
        for batch, trials in self.rows.items():
            mean = [np.broadcast_to(self.mean, (batch, *self.mean.shape)) for _ in trials]
            for count in self.plan.guessed(batch, len(trials)):
                found.append(self.row("guesser", "gradient", "factors", batch, trials[:count], mean[:count]))
            for sees in SEES:
                self.say(f"{self.target.config.method.name}: batch {batch}, from its {sees}")
                look = self.target.gradient if sees == "gradient" else self.target.update
                observed = [look(rows) for rows in trials]
                if sees == "gradient" and batch == 1:
                    found += self.embedding(observed, trials, mean)
                for knows in self.target.levels():
                    found += self.attack(sees, knows, batch, trials, observed, mean)
        return found

    def attack(
        self, sees: Sees, knows: Knows, batch: int, trials: list[Rows], observed: list[Tensors],
        guessed: list[Pictures],
    ) -> list[Reconstruction]:  # fmt: skip
        """By spans, and of the first trials of small batches by matching."""
        self.target.shared_model.load(self.target.believed(knows))
        near = [self.by_span(seen) if batch == 1 else None for seen in observed]
        found = [guess if n is None else n for n, guess in zip(near, guessed, strict=True)]
        rows = [self.row("span", sees, knows, batch, trials, found)]
        if batch <= self.plan.match_up_to and self.plan.matched:
            self.target.shared_model.load(self.target.believed(knows))  # a row's scores load the client's own
            some = trials[: self.plan.matched]
            made = [self.by_matching(rows, seen) for rows, seen in zip(some, observed, strict=False)]
            rows.append(self.row("matching", sees, knows, batch, some, made))
        return rows

    def by_span(self, observed: Tensors) -> Pictures | None:
        """One image, in closed form; None where the spans of the first layers say nothing."""
        shared_model, side = self.target.shared_model, self.train.pixels.shape[-1]
        opening = opening_of(shared_model, side)
        image = from_layers(shared_model, opening, observed, side) if opening else None
        return None if image is None else self.seen(image[None])

    def embedding(
        self, observed: list[Tensors], trials: list[Rows], guessed: list[Pictures]
    ) -> list[Reconstruction]:
        """Where patches' and places' embeddings train, their gradients are linear equations of an image."""
        shared_model, side = self.target.shared_model, self.train.pixels.shape[-1]
        shared_model.load(self.target.before)
        opening = opening_of(shared_model, side)
        found = [from_embedding(shared_model, opening, seen, side) if opening else None for seen in observed]
        if all(image is None for image in found):
            return []
        pictures = [
            g if image is None else self.seen(image[None]) for g, image in zip(guessed, found, strict=True)
        ]
        return [self.row("embedding", "gradient", "factors", 1, trials, pictures)]

    def seen(self, images: Tensor) -> Pictures:
        """From what the model reads to 0 to 1, what is darker or brighter cut off."""
        mean, std = (part[:, None, None] for part in (self.train.mean, self.train.std))
        whole: Pictures = ((images.cpu() * std + mean) / (255 * self.train.scale)).double().numpy()
        return whole.clip(0, 1)

    def by_matching(self, rows: Rows, observed: Tensors, steps: int | None = None) -> Pictures:
        """Images whose gradient is most alike, after so many steps, (n, 3, height, width) from 0 to 1."""
        mean, std = (part[:, None, None] for part in (self.train.mean, self.train.std))
        limits = (0 - mean) / std, (255 * self.train.scale - mean) / std
        rng = seeded(self.plan.seed, MATCHING, *(int(row) for row in rows))
        known = (torch.from_numpy(self.mean).float() * (255 * self.train.scale) - mean) / std
        labels, count = self.train.labels[rows], steps or STEPS * self.plan.iterations
        found = match_images(self.target.shared_model, observed, known, labels, limits, count, rng)
        return self.seen(found)

    def row(
        self, attack: Attack, sees: Sees, knows: Knows, batch: int, trials: list[Rows], found: list[Pictures]
    ) -> Reconstruction:
        """What came of it: each original with one that was found, so that their squared error is least."""
        scores: list[dict[str, float]] = []
        attempts = []
        for rows, made in zip(trials, found, strict=True):
            originals = self.train.pixels[rows] / 255
            errors = ((originals[:, None] - made[None]) ** 2).mean((2, 3, 4))
            order = linear_sum_assignment(errors)[1]
            made = made[order]
            each = [image_scores(_last(o), _last(m)) for o, m in zip(originals, made, strict=True)]
            scores.append({name: float(np.mean([one[name] for one in each])) for name in each[0]})
            scores[-1]["distance"] = self.distance(originals, made)
            attempts.append(Attempt(original=[_png(o) for o in originals], found=[_png(m) for m in made]))
        return Reconstruction(
            method=self.target.config.method.name, attack=attack, sees=sees, knows=knows, batch=batch,
            steps=1 if sees == "gradient" else self.target.steps(batch), tokens=None, trials=len(trials),
            scores={name: estimate([score[name] for score in scores]) for name in scores[0]},
            attempts=attempts[:SHOWN],
        )  # fmt: skip

    def distance(self, originals: Pictures, made: Pictures) -> float:
        """Between features of the client's model, relative to those of the originals, mean."""
        shared_model, mean, std = (
            self.target.shared_model,
            self.train.mean[:, None, None],
            self.train.std[:, None, None],
        )

        def features(pictures: Pictures) -> Tensor:
            pixels = torch.from_numpy(np.ascontiguousarray(pictures)).float() * (255 * self.train.scale)
            with torch.no_grad():
                return shared_model.model.features(
                    {"pixel_values": ((pixels - mean) / std).to(shared_model.device)}
                ).cpu()

        shared_model.load(self.target.before)
        one, other = features(originals), features(made)
        return float(((one - other).norm(dim=1) / one.norm(dim=1)).mean())


def _last(picture: Pictures) -> Pictures:
    """Colours last."""
    return picture.transpose(1, 2, 0)


def _png(picture: Pictures) -> str:
    buffer = BytesIO()
    Image.fromarray((_last(picture) * 255).round().clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
