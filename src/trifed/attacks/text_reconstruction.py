"""Reconstruction of texts as lists of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

from trifed.attacks.gradient_matching import match_texts
from trifed.attacks.plan import Plan
from trifed.attacks.reconstruction import MATCHING, BatchReconstruction, Progress
from trifed.attacks.scores import guess_tokens, text_scores
from trifed.attacks.span import distances, position_wise_layers, spans, texts_from
from trifed.attacks.target import Rows, TargetClient
from trifed.federation.training import seeded
from trifed.methods.packing import Tensors
from trifed.reports.audit.findings import Attempt
from trifed.tasks.text_classification import EncodedText

Texts = list[list[int]]


class TextReconstruction(BatchReconstruction[Texts]):
    """Attacks on batches of texts."""

    def __init__(self, target: TargetClient, plan: Plan, progress: Progress) -> None:
        super().__init__(target, plan, progress)
        self.train = cast(EncodedText, target.client.train)
        others = [cast(EncodedText, client.train) for client in target.others]
        self.known = [text for train in others for text in train.ids] or [[0]]
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
        return [[list(map(int, np.flatnonzero(np.abs(seen[name]).max(1))))] for seen in observed]

    def by_span(self, batches: Sequence[Rows], observed: Sequence[Tensors]) -> Sequence[Texts | None]:
        """Compose texts of the tokens whose vectors lie in the row spaces of the first layers."""
        layers = position_wise_layers(self.shared_model, self._inputs)
        trials = [spans(self.shared_model, seen, layers) for seen in observed]
        if not any(trials):
            return [None] * len(batches)
        longest = max(int(self.train.lengths[rows].max()) for rows in batches)
        by_type = [
            distances(self.shared_model, layers, trials, longest, partial(self._inputs, token_type=token_type))
            for token_type in ([0, 1] if any(any(types) for types in self.train.types or []) else [0])
        ]
        nearest = [np.minimum.reduce(trial) for trial in zip(*by_type, strict=True)]
        ranks = [trial[0].rank if trial else 0 for trial in trials]
        return [texts_from(far, len(batches[0]), rank) or None for far, rank in zip(nearest, ranks, strict=True)]

    def by_matching(self, rows: Rows, observed: Tensors, iterations: int | None = None) -> Texts:
        """Search texts whose gradient is similar; their lengths and labels are known to the attacker."""
        batch = self.train.batch(rows, self.shared_model.device)
        given = ("attention_mask", "token_type_ids", "labels")
        known = {name: values for name, values in batch.items() if name in given}
        rng = seeded(self.plan.seed, MATCHING, *map(int, rows))
        lengths, steps = list(map(int, self.train.lengths[rows])), iterations or self.iterations
        return match_texts(self.shared_model, observed, lengths, known, self.known, steps, rng)

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
        batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        types = {} if self.train.types is None else {"token_type_ids": torch.full_like(tokens, token_type)}
        return batch | types
