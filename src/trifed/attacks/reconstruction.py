"""Reconstruction of a client's training batches by every attack, beside a guess that sees no upload."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from trifed.attacks.plan import Plan
from trifed.attacks.scores import estimate
from trifed.attacks.target import OBSERVATIONS, Rows, TargetClient, draw_batches
from trifed.methods.packing import Tensors
from trifed.reports.audit.findings import Attack, Attempt, Knows, Reconstruction, Sees

Progress = Callable[[str], None]
Guess = TypeVar("Guess")
ATTEMPTS_KEPT = 2
"""Trials of each attack whose originals and reconstructions are kept to look at."""
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
        examples = len(target.client.train)
        sizes = [size for size in plan.batches if size <= examples]
        self.batches = {size: draw_batches(plan.seed, examples, size, plan.trials) for size in sizes}

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
    def by_matching(self, rows: Rows, observed: Tensors, iterations: int | None = None) -> Guess:
        """Search a batch whose gradient is similar to the observed one, in `iterations` steps if given."""

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
            for count in self.plan.guessed_trials(size, len(batches)):
                results.append(self.result("guesser", "gradient", "factors", batches[:count], guesses[:count]))
            for observation in OBSERVATIONS:
                self.progress(f"{self.target.config.method.name}: batch {size}, from its {observation}")
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
    ) -> list[Reconstruction]:  # fmt: skip
        """Run span attacks on all batches, and gradient matching on the first of them where they are small."""
        assumed = self.target.assumed_tensors(knowledge)
        self.shared_model.load(assumed)
        recovered = _filled(self.by_span(batches, observed), guesses)
        results = [self.result("span", observation, knowledge, batches, recovered)]
        if len(batches[0]) <= self.plan.match_up_to and self.plan.matched:
            self.shared_model.load(assumed)  # scoring may have loaded the client's own tensors
            some = batches[: self.plan.matched]
            recovered = [self.by_matching(rows, seen) for rows, seen in zip(some, observed, strict=False)]
            results.append(self.result("matching", observation, knowledge, some, recovered))
        return results

    def result(
        self, attack: Attack, observation: Sees, knowledge: Knows, batches: list[Rows], recovered: Sequence[Guess]
    ) -> Reconstruction:
        """Score what an attack recovered of some batches of one size."""
        compared = [self.compare(rows, guess) for rows, guess in zip(batches, recovered, strict=True)]
        size = len(batches[0])
        return Reconstruction(
            method=self.target.config.method.name, attack=attack, sees=observation, knows=knowledge, batch=size,
            steps=1 if observation == "gradient" else self.target.steps(size), tokens=self.token_count(batches),
            trials=len(batches), attempts=[attempt for _, attempt in compared[:ATTEMPTS_KEPT]],
            scores={name: estimate([scores[name] for scores, _ in compared]) for name in compared[0][0]},
        )  # fmt: skip


def _filled(recovered: Sequence[Guess | None], guesses: Sequence[Guess]) -> list[Guess]:
    """Return what an attack recovered, with a plain guess where it recovered nothing."""
    return [guess if own is None else own for own, guess in zip(recovered, guesses, strict=True)]
