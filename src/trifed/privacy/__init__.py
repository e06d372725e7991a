"""Differential privacy for what leaves a client: noise, what it is worth, and a ledger of what was spent.

Gaussian mechanisms alone, so that every ε but that of training steps is exact: Balle and Wang, "Improving the
Gaussian Mechanism for Differential Privacy", ICML 2018 (arXiv 1805.06530), and composition by Dong, Roth and Su,
"Gaussian differential privacy", JRSS-B 2022 (arXiv 1905.02383). Whoever reads an ε has to know between which two
data sets it holds; here these are `RECORD` and `CLIENT`.
"""

from trifed.privacy.accounting import Sampled, epsilon_of, epsilon_with_steps, noise_multiplier, steps_multiplier
from trifed.privacy.ledger import (
    CLIENT,
    RECORD,
    Book,
    Entry,
    Ledger,
    Spent,
    facts_of,
    promised,
    read_ledger,
    spent,
)
from trifed.privacy.noise import Noise, clipped, secure_noise, seeded_noise
from trifed.privacy.summary import SENSITIVITY, noised_summary, unit

__all__ = [
    "CLIENT",
    "RECORD",
    "SENSITIVITY",
    "Book",
    "Entry",
    "Ledger",
    "Noise",
    "Sampled",
    "Spent",
    "clipped",
    "epsilon_of",
    "epsilon_with_steps",
    "facts_of",
    "noise_multiplier",
    "noised_summary",
    "promised",
    "read_ledger",
    "secure_noise",
    "seeded_noise",
    "spent",
    "steps_multiplier",
    "unit",
]
