"""A client's model of images and captions on a file: does it find an image's caption, and a caption's image?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trifed.data import Examples
from trifed.export.evaluate import Told
from trifed.export.inference_inputs import Labelled, split_inputs
from trifed.export.locate import LocatedModel
from trifed.federation.retrieval import RetrievalModel
from trifed.federation.training import embed

CHUNK = 256
"""Images, or captions, that are embedded together."""
NEAR = 5


@dataclass(frozen=True)
class MatchEvaluation:
    """One client's model on one file.

    `caption_found`: share of the images whose caption is nearest among all `captions` of the file that differ;
    `caption_near`: that it is among the nearest five; `image_found` and `image_near`: the same of the captions, an
    image of which is searched among all. `accuracy`: mean of the two that are found.
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
    found: LocatedModel, matcher: RetrievalModel, data: Labelled, told: Told
) -> MatchEvaluation:
    """Measure a client's model; images are embedded in the precision of `found.training`."""
    captions = list(dict.fromkeys(data.labels))
    own = np.array([captions.index(label) for label in data.labels])
    seen = []
    for first in range(0, len(data.asked), CHUNK):
        asked = data.asked[first : first + CHUNK]
        among = matcher.among(captions[:1])
        encoded = among.task.encode(
            matcher.base, Examples(split_inputs(asked), np.zeros(len(asked), np.int64)), among.settings
        )
        seen.append(embed(among.model, encoded, found.training))
        told(len(asked))
    parts = (captions[at : at + CHUNK] for at in range(0, len(captions), CHUNK))
    said = np.concatenate([matcher.embeddings(part).cpu().numpy() for part in parts])
    images = np.concatenate(seen)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    return measure(found.name, images @ said.T, own)


def measure(client: str, nearness: NDArray[np.float32], own: NDArray[np.int64]) -> MatchEvaluation:
    """`nearness`: of images (n) and captions (m); `own`: each image's caption, (n,). A tie counts as nearer."""
    right = own[:, None] == np.arange(nearness.shape[1])
    caption = _ranks(nearness, right)
    image = _ranks(nearness.T, right.T)
    shares = [float((ranks < near).mean()) for ranks in (caption, image) for near in (1, NEAR)]
    return MatchEvaluation(client, len(own), nearness.shape[1], (shares[0] + shares[2]) / 2, *shares)


def _ranks(nearness: NDArray[np.float32], right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many wrong ones are at least as near as the nearest right one, for each row."""
    best = np.where(right, nearness, -np.inf).max(axis=1, keepdims=True)
    ranks: NDArray[np.int64] = ((nearness >= best) & ~right).sum(axis=1)
    return ranks
