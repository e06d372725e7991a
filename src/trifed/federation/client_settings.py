"""Settings of one client's side of a run: its training, and the limits on the downloads that it accepts."""

from __future__ import annotations

from dataclasses import dataclass

from trifed.config.run import RunConfig
from trifed.config.settings import PrivacySettings, TrainingSettings


@dataclass(frozen=True)
class AcceptanceLimits:
    """Limits on the downloads that a client accepts.

    Attributes:
        worse_by: nats of mean validation loss by which a download may be worse than the client's own tensors; a
            worse one is rejected. None accepts any.
        others_at_most: largest share, 0 to 1, of the received values in the tensors that training starts from.
    """

    worse_by: float | None = None
    others_at_most: float = 1.0


ANYTHING = AcceptanceLimits()


@dataclass(frozen=True)
class ClientSettings:
    """Settings of a run that a client needs.

    Attributes:
        training: local training of this client.
        seed: seed of the run.
        rounds: rounds of the whole run, for the schedule of the learning rate.
        num_labels: labels of the task, 1 if it learns none.
        guards: policies for releases that could show single examples.
        tells_examples: False if the client counts as one example.
    """

    training: TrainingSettings
    seed: int
    rounds: int
    num_labels: int
    guards: PrivacySettings
    tells_examples: bool = True

    @classmethod
    def of(cls, config: RunConfig, num_labels: int, client: str = "") -> ClientSettings:
        """Return the settings of a configured run; with a client's name, its own training settings."""
        training, told = config.training_of(client), not config.sealing.on
        return cls(training, config.seed, config.rounds, num_labels, config.privacy, told)
