"""Reconstruction of texts: what each attack makes of some batches, beside what guessing makes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from trifed.attacks.gradient_matching import match_texts
from trifed.attacks.guess import guess_tokens
from trifed.attacks.plan import Plan
from trifed.attacks.scores import estimate, text_scores
from trifed.attacks.span import distances, open_layers, spans, texts_from
from trifed.attacks.target import Rows, TargetClient, drawn
from trifed.federation.training import seeded
from trifed.methods.packing import Tensors
from trifed.reports.audit.findings import Attack, Attempt, Knows, Reconstruction, Sees
from trifed.tasks.text_classification import EncodedText

Say = Callable[[str], None]
Texts = list[list[int]]
SEES: tuple[Sees, ...] = ("gradient", "update")
SHOWN = 2
"""Trials that are kept to look at."""
MATCHING = 11
"""Purpose of the generators that attacks start from."""


@dataclass
class TextTrials:
    """Batches of one client's texts. `rows`: by batch size, of the training examples."""

    target: TargetClient
    plan: Plan
    say: Say
    rows: dict[int, list[Rows]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        train = self.target.client.train
        if not isinstance(train, EncodedText):
            raise TypeError(f"texts expected, got {type(train).__name__}")
        self.train = train
        tokenizer = self.target.shared_model.base.processor
        self.special = set(tokenizer.all_special_ids)
        self.known = [text for other in self.target.others for text in self._texts(other.train)] or [[0]]
        for batch in self.plan.batches:
            if batch <= len(train):
                self.rows[batch] = drawn(self.plan.seed, len(train), batch, self.plan.trials)

    def _texts(self, encoded: object) -> Texts:
        return encoded.ids if isinstance(encoded, EncodedText) else []

    def all(self) -> list[Reconstruction]:
        """Every attack on every batch, and the guesser."""
        found: list[Reconstruction] = []
        for batch, trials in self.rows.items():
            guessed = [self.guess(rows) for rows in trials]
            for count in self.plan.guessed(batch, len(trials)):
                found.append(self.row("guesser", "gradient", "factors", batch, trials[:count], guessed[:count]))
            for sees in SEES:
                self.say(f"{self.target.config.method.name}: batch {batch}, from its {sees}")
                look = self.target.gradient if sees == "gradient" else self.target.update
                observed = [look(rows) for rows in trials]
                if sees == "gradient":
                    found += self.embedding(observed, batch, trials)
                for knows in self.target.levels():
                    found += self.attack(sees, knows, batch, trials, observed, guessed)
        return found

    def attack(
        self, sees: Sees, knows: Knows, batch: int, trials: list[Rows], observed: list[Tensors],
        guessed: list[Texts],
    ) -> list[Reconstruction]:  # fmt: skip
        """By spans, and of the first trials of small batches by matching. Where a span says nothing it guesses."""
        self.target.shared_model.load(self.target.believed(knows))
        near = self.by_span(batch, trials, observed)
        found = [near or guess for near, guess in zip(near, guessed, strict=True)]
        rows = [self.row("span", sees, knows, batch, trials, found)]
        if batch <= self.plan.match_up_to and self.plan.matched:
            some = trials[: self.plan.matched]
            matched = [self.by_matching(rows, seen) for rows, seen in zip(some, observed, strict=False)]
            rows.append(self.row("matching", sees, knows, batch, some, matched))
        return rows

    def ids(self, tokens: Tensor, second: int = 0) -> dict[str, Tensor]:
        """Tokens (n, length) as the model takes them, of the first text of a pair or of the second."""
        batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        return batch if self.train.types is None else {**batch, "token_type_ids": torch.full_like(tokens, second)}

    def by_span(self, batch: int, trials: list[Rows], observed: list[Tensors]) -> list[Texts]:
        """Nothing for a trial whose spans say nothing."""
        shared_model = self.target.shared_model
        layers = open_layers(shared_model, self.ids)
        found = [spans(shared_model, seen, layers) if layers else [] for seen in observed]
        if not any(found):
            return [[] for _ in trials]
        longest = max(int(self.train.lengths[rows].max()) for rows in trials)
        sides = [0, 1] if any(any(types) for types in self.train.types or []) else [0]
        each = [distances(shared_model, layers, found, longest, partial(self.ids, second=side)) for side in sides]
        far = [np.minimum.reduce(trial) for trial in zip(*each, strict=True)]
        ranks = [span[0].rank if span else 0 for span in found]
        return [texts_from(near, batch, rank) for near, rank in zip(far, ranks, strict=True)]

    def by_matching(self, rows: Rows, observed: Tensors, steps: int | None = None) -> Texts:
        """Texts whose gradient is most alike, after so many steps, else the plan's."""
        lengths = [int(length) for length in self.train.lengths[rows]]
        rng = seeded(self.plan.seed, MATCHING, *(int(row) for row in rows))
        count = steps or self.plan.iterations
        batch = self.train.batch(rows, self.target.shared_model.device)
        given: dict[str, Tensor] = {
            name: batch[name] for name in ("attention_mask", "token_type_ids", "labels") if name in batch
        }
        return match_texts(self.target.shared_model, observed, lengths, given, self.known, count, rng)

    def embedding(self, observed: list[Tensors], batch: int, trials: list[Rows]) -> list[Reconstruction]:
        """Where the embeddings train, the tokens are those whose row has a gradient: no attack is needed."""
        own = self.target.shared_model.base.model.get_input_embeddings().weight
        name = next((name for name in observed[0] if self.target.shared_model.parameters[name] is own), "")
        if not name or not any(np.any(seen[name]) for seen in observed):
            return []
        found = [[list(map(int, np.flatnonzero(np.abs(seen[name]).max(1))))] for seen in observed]
        return [self.row("embedding", "gradient", "factors", batch, trials, found)]

    def guess(self, rows: Rows) -> Texts:
        """As many tokens as there are."""
        plain = [self.plain(text) for text in self.known]
        return guess_tokens(plain, sum(len(self.plain(self.train.ids[row])) for row in rows), len(rows))

    def plain(self, text: Sequence[int]) -> list[int]:
        """Without what every text has."""
        return [token for token in text if token not in self.special]

    def row(
        self, attack: Attack, sees: Sees, knows: Knows, batch: int, trials: list[Rows], found: list[Texts]
    ) -> Reconstruction:
        """What came of it."""
        originals = [[self.plain(self.train.ids[row]) for row in rows] for rows in trials]
        guesses = [[self.plain(text) for text in texts] for texts in found]
        scores = [text_scores(o, g) for o, g in zip(originals, guesses, strict=True)]
        decode = self.target.shared_model.base.processor.decode
        return Reconstruction(
            method=self.target.config.method.name, attack=attack, sees=sees, knows=knows, batch=batch,
            steps=1 if sees == "gradient" else self.target.steps(batch),
            tokens=float(np.mean([self.train.lengths[rows].sum() for rows in trials])), trials=len(trials),
            scores={name: estimate([float(score[name]) for score in scores]) for name in scores[0]},
            attempts=[
                Attempt(original=[decode(t) for t in o], found=[decode(t) for t in g])
                for o, g in list(zip(originals, guesses, strict=True))[:SHOWN]
            ],
        )  # fmt: skip
