"""Reconstruction of images, beside the mean image of the other clients."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from trifed.attacks.gradient_matching import match_images
from trifed.attacks.patches import PatchEmbedding, find_patch_embedding, image_from_embedding, image_from_layers
from trifed.attacks.plan import Plan
from trifed.attacks.reconstruction import MATCHING, BatchReconstruction, Progress
from trifed.attacks.scores import image_scores
from trifed.attacks.target import Rows, TargetClient
from trifed.federation.shared_model import SharedModel
from trifed.federation.training import seeded
from trifed.methods.packing import Tensors
from trifed.reports.audit.findings import Attempt
from trifed.tasks.image_classification import EncodedImages

STEPS = 5
"""Factor on the steps of gradient matching: an image needs more of them than a text, and its model is faster."""
Pictures = NDArray[np.float64]
"""Images (n, 3, height, width), 0 to 1."""


class ImageReconstruction(BatchReconstruction[Pictures]):
    """Attacks on batches of images."""

    def __init__(self, target: TargetClient, plan: Plan, progress: Progress) -> None:
        super().__init__(target, plan, progress)
        self.iterations = STEPS * plan.iterations
        self.train = cast(EncodedImages, target.client.train)
        self.mean, self.std = self.train.mean[:, None, None], self.train.std[:, None, None]
        others = [cast(EncodedImages, client.train).pixels for client in target.others if len(client.train)]
        shape = self.train.pixels.shape[1:]
        self.mean_image = np.concatenate(others).mean(0) / 255 if others else np.full(shape, 0.5)

    def guess(self, rows: Rows) -> Pictures:
        """Guess the mean image of the other clients for every image of the batch."""
        return np.broadcast_to(self.mean_image, (len(rows), *self.mean_image.shape))

    def by_embedding(self, batches: Sequence[Rows], observed: Sequence[Tensors]) -> Sequence[Pictures | None]:
        """Solve for a single image in the gradients of trained patch and position embeddings."""
        return self._closed_form(image_from_embedding, batches, observed)

    def by_span(self, batches: Sequence[Rows], observed: Sequence[Tensors]) -> Sequence[Pictures | None]:
        """Solve for a single image in the row spaces of the layers behind the first LayerNorm."""
        return self._closed_form(image_from_layers, batches, observed)

    def _closed_form(
        self, solve: Callable[[SharedModel, PatchEmbedding, Tensors], Tensor | None], batches: Sequence[Rows],
        observed: Sequence[Tensors],
    ) -> Sequence[Pictures | None]:  # fmt: skip
        single = len(batches[0]) == 1  # two images in one gradient can be mixed in any way
        entry = find_patch_embedding(self.shared_model, self.train.pixels.shape[-1]) if single else None
        if entry is None:
            return [None] * len(batches)
        images = [solve(self.shared_model, entry, seen) for seen in observed]
        return [None if image is None else self._pictures(image[None]) for image in images]

    def by_matching(self, rows: Rows, observed: Tensors, iterations: int | None = None) -> Pictures:
        """Search images whose gradient is similar, from the mean image; the attacker knows their labels."""
        limits = (0 - self.mean) / self.std, (255 * self.train.scale - self.mean) / self.std
        rng = seeded(self.plan.seed, MATCHING, *map(int, rows))
        start, labels = self._pixels(self.mean_image), self.train.labels[rows]
        steps = iterations or self.iterations
        return self._pictures(match_images(self.shared_model, observed, start, labels, limits, steps, rng))

    def compare(self, rows: Rows, guess: Pictures) -> tuple[dict[str, float], Attempt]:
        """Score images in the order that has the least squared error; means over the batch."""
        originals = self.train.pixels[rows] / 255
        errors = ((originals[:, None] - guess[None]) ** 2).mean((2, 3, 4))
        guess = guess[linear_sum_assignment(errors)[1]]
        each = [image_scores(_hwc(o), _hwc(g)) for o, g in zip(originals, guess, strict=True)]
        scores = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
        shown = Attempt(original=list(map(_png, originals)), found=list(map(_png, guess)))
        return scores | {"distance": self._distance(originals, guess)}, shown

    def _distance(self, originals: Pictures, guess: Pictures) -> float:
        """Return the mean distance between the client's features, relative to those of the originals."""
        self.shared_model.load(self.target.before)
        with torch.no_grad():
            one, other = (
                self.shared_model.model.features(
                    {"pixel_values": self._pixels(images).to(self.shared_model.device)}
                ).cpu()
                for images in (originals, guess)
            )
        return float(((one - other).norm(dim=1) / one.norm(dim=1)).mean())

    def _pixels(self, pictures: Pictures) -> Tensor:
        """Scale images (..., 3, height, width) from 0 to 1 to what the model reads."""
        images = torch.from_numpy(np.ascontiguousarray(pictures)).float()
        return (images * (255 * self.train.scale) - self.mean) / self.std

    def _pictures(self, pixels: Tensor) -> Pictures:
        """Scale what the model reads to 0 to 1, and clip the rest."""
        scaled = (pixels.cpu() * self.std + self.mean) / (255 * self.train.scale)
        pictures: Pictures = scaled.double().numpy()
        return pictures.clip(0, 1)


def _hwc(picture: Pictures) -> Pictures:
    """Move the colours of one image last, (height, width, 3)."""
    return picture.transpose(1, 2, 0)


def _png(picture: Pictures) -> str:
    buffer = BytesIO()
    Image.fromarray((_hwc(picture) * 255).round().clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
