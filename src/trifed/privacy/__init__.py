"""Differential privacy for a client's messages: noise, privacy accounting and a ledger of releases.

All mechanisms are Gaussian. Every ε except that of training steps and sealed sums is exact: Balle and Wang,
"Improving the Gaussian Mechanism for Differential Privacy", ICML 2018 (arXiv 1805.06530), with composition by
Dong, Roth and Su, "Gaussian differential privacy", JRSS-B 2022 (arXiv 1905.02383). `RECORD` and `CLIENT` name the
two relations between neighbouring data sets for which an ε can hold.
"""

from trifed.privacy.accounting import (
    Sampled,
    epsilon_of,
    epsilon_of_sums,
    epsilon_with_steps,
    noise_multiplier,
    steps_multiplier,
)
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
from trifed.privacy.noise import Noise, clipped, discrete_gaussian, secure_noise, seeded_noise
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
    "discrete_gaussian",
    "epsilon_of",
    "epsilon_of_sums",
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
