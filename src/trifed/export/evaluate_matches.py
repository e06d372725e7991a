"""Evaluate a client's model of images and captions on a file: retrieval in both directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trifed.export.evaluate import Progress
from trifed.export.inference_inputs import LabelledInputs, by_role
from trifed.export.locate import LocatedModel
from trifed.federation.client_model import RetrievalModel
from trifed.federation.training import embed

CHUNK = 256
"""Images, or captions, that are embedded together."""
NEAR = 5
"""Rank up to which a caption or an image counts as near."""


@dataclass(frozen=True)
class MatchEvaluation:
    """Scores of one client's model on one file.

    Attributes:
        client: Name of the client.
        examples: Number of images.
        captions: Number of different captions.
        accuracy: Mean of `caption_found` and `image_found`.
        caption_found: Share of the images whose caption is the nearest of all captions.
        caption_near: Share of the images whose caption is among the five nearest.
        image_found: Share of the captions for which one of their images is the nearest of all images.
        image_near: Share of the captions for which one of their images is among the five nearest.
    """

    client: str
    examples: int
    captions: int
    accuracy: float
    caption_found: float
    caption_near: float
    image_found: float
    image_near: float


def evaluate_retrieval_model(
    located: LocatedModel, model: RetrievalModel, data: LabelledInputs, progress: Progress
) -> MatchEvaluation:
    """Evaluate a client's model; images are embedded in the precision of `located.training`."""
    captions = list(dict.fromkeys(data.labels))
    own = np.array([captions.index(label) for label in data.labels])
    classifier = model.among(captions[:1])  # it embeds images; its label does not matter
    vectors = []
    for first in range(0, len(data.inputs), CHUNK):
        chunk = data.inputs[first : first + CHUNK]
        vectors.append(embed(classifier.model, classifier.encode(by_role(chunk)), located.training))
        progress(len(chunk))
    parts = (captions[at : at + CHUNK] for at in range(0, len(captions), CHUNK))
    caption_vectors = np.concatenate([model.embeddings(part).cpu().numpy() for part in parts])
    image_vectors = np.concatenate(vectors)
    image_vectors /= np.linalg.norm(image_vectors, axis=1, keepdims=True)
    return measure(located.name, image_vectors @ caption_vectors.T, own)


def measure(client: str, similarity: NDArray[np.float32], own: NDArray[np.int64]) -> MatchEvaluation:
    """Return the scores of one client's model; a wrong candidate with equal similarity counts as nearer.

    Args:
        client: Name of the client.
        similarity: Of images and captions, (n_images, n_captions).
        own: Index of each image's caption, (n_images,).
    """
    right = own[:, None] == np.arange(similarity.shape[1])
    caption = _ranks(similarity, right)
    image = _ranks(similarity.T, right.T)
    shares = [float((ranks < near).mean()) for ranks in (caption, image) for near in (1, NEAR)]
    return MatchEvaluation(client, len(own), similarity.shape[1], (shares[0] + shares[2]) / 2, *shares)


def _ranks(similarity: NDArray[np.float32], right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return, for each row, the number of wrong columns that are at least as similar as the best right one."""
    best = np.where(right, similarity, -np.inf).max(axis=1, keepdims=True)
    ranks: NDArray[np.int64] = ((similarity >= best) & ~right).sum(axis=1)
    return ranks
