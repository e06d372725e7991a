"""Configuration of the demo: a small pre-trained encoder and the corpus of this package."""

from __future__ import annotations

from trifed.config.run import RunConfig, make_config
from trifed.data import demo_corpus_path

LOCAL_RATE = 0.009
"""Learning rate of `local`: the best on validation data.

Accuracies with 0.001, 0.003, 0.009 and 0.027 after five rounds: 46.5, 59.6, 61.2 and 23.5 %.
"""


def demo_config(rounds: int) -> RunConfig:
    """Configure `own-prior` on ten sites of support requests, with `alone`, `local` and `fedavg-lora` beside it.

    Raises:
        ConfigError: `rounds` is below 1.
    """
    return make_config(
        {
            "name": "demo",
            "rounds": rounds,
            "evaluate_every": 2,
            "baselines": ["alone", "local", "fedavg-lora"],
            "baseline_rates": [LOCAL_RATE],
            "model": {"name": "demo", "max_length": 64},
            "data": {
                "source": str(demo_corpus_path()),
                "clients": {"split": "column", "column": "site"},
            },
            "training": {"batch_size": 16},  # and each method's own learning rate
        },
        "demo",
    )


def is_demo(config: RunConfig) -> bool:
    """Return whether a run has the settings of `trifed demo`, whatever its name and rounds."""
    return demo_config(config.rounds).model_copy(update={"name": config.name}) == config
