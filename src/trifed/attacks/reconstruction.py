"""Reconstruction of a client's training batches by every attack, beside a guess that sees no upload.

Texts are lists of token ids, and images arrays; the guess is made of the other clients' data.
"""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from typing import Generic, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from trifed.attacks.gradient_matching import match_images, match_texts
from trifed.attacks.patches import PatchEmbedding, find_patch_embedding, image_from_embedding, image_from_layers
from trifed.attacks.plan import Plan
from trifed.attacks.scores import estimate, guess_tokens, image_scores, text_scores
from trifed.attacks.span import distances, position_wise_layers, spans, texts_from
from trifed.attacks.target import OBSERVATIONS, Rows, TargetClient
from trifed.federation.training.batches import seeded
from trifed.federation.training.shared_model import SharedModel
from trifed.methods.packing import Tensors
from trifed.reports.audit.findings import Attack, Attempt, Knows, Reconstruction, Sees
from trifed.tasks.image_classification import EncodedImages
from trifed.tasks.tokens import EncodedTokens

Progress = Callable[[str], None]
Guess = TypeVar("Guess")
Texts = list[list[int]]
Pictures = NDArray[np.float64]
"""Images (n, 3, height, width), 0 to 1."""
ATTEMPTS_KEPT = 2
"""Trials of each attack whose originals and reconstructions are kept to look at."""
STEPS = 5
"""Factor on the steps of gradient matching: an image needs more of them than a text, and its model is faster."""
TOLD = ("attention_mask", "token_type_ids", "labels")
"""Inputs of a batch of texts that an attacker is told."""
MATCHING = 11
"""Purpose of the generators that draw where gradient matching starts."""


class BatchReconstruction(ABC, Generic[Guess]):
    """Attacks on batches of one client's training examples; a `Guess` is an attacker's version of one batch.

    Attributes:
        batches: The attacked batches by batch size, each as the rows of its training examples.
        iterations: Steps of gradient matching for one batch.
    """

    def __init__(self, target: TargetClient, plan: Plan, progress: Progress) -> None:
        self.target, self.plan, self.progress = target, plan, progress
        self.shared_model, self.iterations = target.shared_model, plan.iterations
        self.batches = target.batches(plan)

    @abstractmethod
    def guess(self, rows: Rows) -> Guess:
        """Guess a batch from the other clients' data alone."""

    @abstractmethod
    def by_embedding(self, batches: Sequence[Rows], observed: Sequence[Tensors]) -> Sequence[Guess | None]:
        """Read each batch off the gradients of trained embeddings; None where that is not possible."""

    @abstractmethod
    def by_span(self, batches: Sequence[Rows], observed: Sequence[Tensors]) -> Sequence[Guess | None]:
        """Solve for each batch in the row spaces of the first layers; None where they do not determine it."""

    @abstractmethod
    def by_matching(self, rows: Rows, observed: Tensors, iterations: int) -> Guess:
        """Search a batch whose gradient is similar to the observed one, in `iterations` steps."""

    @abstractmethod
    def compare(self, rows: Rows, guess: Guess) -> tuple[dict[str, float], Attempt]:
        """Score a guess against the original batch, and show both."""

    def token_count(self, batches: Sequence[Rows]) -> float | None:
        """Return the mean number of tokens in a batch; None where examples have no tokens."""
        return None

    def run(self) -> list[Reconstruction]:
        """Run every attack on every batch, and score the guesses beside them."""
        results: list[Reconstruction] = []
        for size, batches in self.batches.items():
            guesses = [self.guess(rows) for rows in batches]
            results += [
                self.result("guesser", "gradient", "factors", batches[:count], guesses[:count])
                for count in self.plan.guessed_trials(size, len(batches))
            ]
            for observation in OBSERVATIONS:
                whose = "its" if self.target.view == "single" else f"{self.target.size} clients' mean"
                self.progress(f"{self.target.config.method.name}: batch {size}, from {whose} {observation}")
                observed = [self.target.observe(observation, rows) for rows in batches]
                if observation == "gradient":
                    self.shared_model.load(self.target.before)
                    read = self.by_embedding(batches, observed)
                    if any(guess is not None for guess in read):
                        recovered = _filled(read, guesses)
                        results.append(self.result("embedding", observation, "factors", batches, recovered))
                for knowledge in self.target.knowledge_levels():
                    results += self._attack(observation, knowledge, batches, observed, guesses)
        return results

    def _attack(
        self, observation: Sees, knowledge: Knows, batches: list[Rows], observed: list[Tensors],
        guesses: list[Guess],
    ) -> Iterator[Reconstruction]:  # fmt: skip
        """Run span attacks on all batches, and gradient matching on the first of them where they are small."""
        assumed = self.target.assumed_tensors(knowledge)
        self.shared_model.load(assumed)
        recovered = _filled(self.by_span(batches, observed), guesses)
        yield self.result("span", observation, knowledge, batches, recovered)
        if self._batch(batches) <= self.plan.match_up_to and self.plan.matched:
            self.shared_model.load(assumed)  # scoring may have loaded the client's own tensors
            some, steps = batches[: self.plan.matched], self.iterations
            recovered = [self.by_matching(rows, seen, steps) for rows, seen in zip(some, observed, strict=False)]
            yield self.result("matching", observation, knowledge, some, recovered)

    def result(
        self, attack: Attack, observation: Sees, knowledge: Knows, batches: list[Rows], recovered: Sequence[Guess]
    ) -> Reconstruction:
        """Score what an attack recovered of some batches of one size."""
        compared = [self.compare(rows, guess) for rows, guess in zip(batches, recovered, strict=True)]
        size = self._batch(batches)
        return Reconstruction(
            method=self.target.config.method.name, view=self.target.view, clients=self.target.size,
            attack=attack, sees=observation, knows=knowledge, batch=size,
            steps=1 if observation == "gradient" else self.target.steps(size), tokens=self.token_count(batches),
            trials=len(batches), attempts=[attempt for _, attempt in compared[:ATTEMPTS_KEPT]],
            scores={name: estimate([scores[name] for scores, _ in compared]) for name in compared[0][0]},
        )  # fmt: skip

    def _batch(self, batches: Sequence[Rows]) -> int:
        """Return the number of examples of each client in batches of one size."""
        return len(batches[0]) // self.target.size


def _filled(recovered: Sequence[Guess | None], guesses: Sequence[Guess]) -> list[Guess]:
    """Return what an attack recovered, with a plain guess where it recovered nothing."""
    return [guess if own is None else own for own, guess in zip(recovered, guesses, strict=True)]


class TextReconstruction(BatchReconstruction[Texts]):
    """Attacks on batches of texts."""

    def __init__(self, target: TargetClient, plan: Plan, progress: Progress) -> None:
        super().__init__(target, plan, progress)
        self.train = cast(EncodedTokens, target.client.train)
        others = (cast(EncodedTokens, client.train).ids for client in target.others)
        self.known = [text for texts in others for text in texts] or [[0]]
        self.special = set(self.shared_model.base.processor.all_special_ids)

    def guess(self, rows: Rows) -> Texts:
        """Guess as many tokens as the batch has, by how frequent they are in other clients' texts."""
        length = sum(len(self._plain(self.train.ids[row])) for row in rows)
        return guess_tokens([self._plain(text) for text in self.known], length, len(rows))

    def by_embedding(self, batches: Sequence[Rows], observed: Sequence[Tensors]) -> Sequence[Texts | None]:
        """Read off the tokens whose row of the embedding matrix has a gradient."""
        words = self.shared_model.base.model.get_input_embeddings().weight
        name = next((name for name in observed[0] if self.shared_model.parameters[name] is words), "")
        if not name or not any(np.any(seen[name]) for seen in observed):
            return [None] * len(batches)
        return [[np.flatnonzero(np.abs(seen[name]).max(1)).tolist()] for seen in observed]

    def by_span(self, batches: Sequence[Rows], observed: Sequence[Tensors]) -> Sequence[Texts | None]:
        """Compose texts of the tokens whose vectors lie in the row spaces of the first layers."""
        layers = position_wise_layers(self.shared_model, self._inputs)
        trials = [spans(self.shared_model, seen, layers) for seen in observed]
        if not any(trials):
            return [None] * len(batches)
        longest = max(int(self.train.lengths[rows].max()) for rows in batches)
        by_type = [
            distances(self.shared_model, layers, trials, longest, partial(self._inputs, token_type=token_type))
            for token_type in ([0, 1] if any(map(any, self.train.more.get("token_type_ids", []))) else [0])
        ]
        nearest = [np.minimum.reduce(trial) for trial in zip(*by_type, strict=True)]
        return [
            texts_from(far, len(batches[0]), trial[0].rank if trial else 0) or None
            for far, trial in zip(nearest, trials, strict=True)
        ]

    def by_matching(self, rows: Rows, observed: Tensors, iterations: int) -> Texts:
        """Search texts whose gradient is similar; their lengths and labels are known to the attacker."""
        batch = self.train.batch(rows, self.shared_model.device)
        known = {name: values for name, values in batch.items() if name in TOLD}
        lengths, rng = self.train.lengths[rows].tolist(), seeded(self.plan.seed, MATCHING, *map(int, rows))
        return match_texts(self.shared_model, observed, lengths, known, self.known, iterations, rng)

    def compare(self, rows: Rows, guess: Texts) -> tuple[dict[str, float], Attempt]:
        """Score texts without special tokens."""
        original, recovered = (
            [self._plain(t) for t in texts] for texts in ([self.train.ids[r] for r in rows], guess)
        )
        shown = [list(map(self.shared_model.base.processor.decode, texts)) for texts in (original, recovered)]
        return text_scores(original, recovered), Attempt(original=shown[0], found=shown[1])

    def token_count(self, batches: Sequence[Rows]) -> float:
        """Return the mean number of tokens in a batch."""
        return float(np.mean([self.train.lengths[rows].sum() for rows in batches]))

    def _plain(self, text: Sequence[int]) -> list[int]:
        """Leave out the tokens that every text has."""
        return [token for token in text if token not in self.special]

    def _inputs(self, tokens: Tensor, token_type: int = 0) -> dict[str, Tensor]:
        """Make a batch of tokens (n, length), all of the first text of a pair (type 0) or of the second (1)."""
        types = {name: torch.full_like(tokens, token_type) for name in self.train.more}
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **types}


class ImageReconstruction(BatchReconstruction[Pictures]):
    """Attacks on batches of images."""

    def __init__(self, target: TargetClient, plan: Plan, progress: Progress) -> None:
        super().__init__(target, plan, progress)
        self.iterations = STEPS * plan.iterations
        self.train = cast(EncodedImages, target.client.train)
        self.mean, self.std = self.train.mean[:, None, None], self.train.std[:, None, None]
        others = [cast(EncodedImages, client.train).pixels for client in target.others if len(client.train)]
        grey = np.full(self.train.pixels.shape[1:], 0.5)
        self.mean_image = np.concatenate(others).mean(0) / 255 if others else grey

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
        images = (solve(self.shared_model, entry, seen) for seen in observed)
        return [None if image is None else self._pictures(image[None]) for image in images]

    def by_matching(self, rows: Rows, observed: Tensors, iterations: int) -> Pictures:
        """Search images whose gradient is similar, from the mean image; the attacker knows their labels."""
        limits = (0 - self.mean) / self.std, (255 * self.train.scale - self.mean) / self.std
        start, labels = self._pixels(self.mean_image), self.train.labels[rows]
        rng = seeded(self.plan.seed, MATCHING, *map(int, rows))
        return self._pictures(match_images(self.shared_model, observed, start, labels, limits, iterations, rng))

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
        return ((pixels.cpu() * self.std + self.mean) / (255 * self.train.scale)).double().numpy().clip(0, 1)


def _hwc(picture: Pictures) -> Pictures:
    """Move the colours of one image last, (height, width, 3)."""
    return picture.transpose(1, 2, 0)


def _png(picture: Pictures) -> str:
    buffer = BytesIO()
    Image.fromarray((_hwc(picture) * 255).round().clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
