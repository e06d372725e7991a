"""Scores of reconstructions and of membership inference with their intervals, and the guesses beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.optimize import linear_sum_assignment

from trifed.export.evaluate import lcs_f1
from trifed.reports.audit.findings import Estimate

RESAMPLES = 2000
"""Bootstrap samples of the trials; of membership scores a quarter of them."""
Tokens = Sequence[int]
Floats = NDArray[np.float64]
FALSE_POSITIVES = 0.01


def likeliest(known: Iterable[int], size: int) -> list[int]:
    """Return the likeliest bag of at most `size` values, by how frequent they are in `known`.

    A value of probability p occurs p · size times, rounded, and at least once; the most frequent values first.
    """
    counts = Counter(known)
    shares = [(value, size * count / counts.total()) for value, count in counts.most_common()]
    return [value for value, share in shares for _ in range(max(1, round(share)))][:size]


def guess_tokens(known: Sequence[Tokens], length: int, batch: int) -> list[list[int]]:
    """Return the likeliest bag of `length` tokens, dealt out to `batch` texts."""
    bag = likeliest((token for text in known for token in text), length)
    return [bag[text::batch] for text in range(batch)]


def text_scores(originals: Sequence[Tokens], recovered: Sequence[Tokens]) -> dict[str, float]:
    """Return precision, recall and F1 of a batch's tokens as one bag, and ROUGE and exact copies text by text.

    A batch has no order: texts are paired so that the sum of their scores is largest. ROUGE-n and ROUGE-L are
    F-measures over tokens (Lin, "ROUGE", 2004).
    """
    bag, guess = (Counter(token for text in texts for token in text) for texts in (originals, recovered))
    precision, recall, f1 = overlap(bag, guess)
    rouge = np.array([[rouge_scores(original, other) for other in recovered] for original in originals])
    pairs = list(zip(*linear_sum_assignment(-rouge.sum(2)), strict=True)) if rouge.size else []
    means = [float(sum(rouge[o, f, n] for o, f in pairs)) / len(originals) for n in range(3)]
    exact = sum(list(originals[o]) == list(recovered[f]) for o, f in pairs) / len(originals)
    names = ("precision", "recall", "f1", "rouge1", "rouge2", "rougeL", "exact")
    return dict(zip(names, map(float, (precision, recall, f1, *means, exact)), strict=True))


def rouge_scores(one: Tokens, other: Tokens) -> tuple[float, float, float]:
    """Return ROUGE-1, ROUGE-2 and ROUGE-L of two texts."""
    first, second = (overlap(_ngrams(one, n), _ngrams(other, n))[2] for n in (1, 2))
    return first, second, lcs_f1(one, other)


def _ngrams(tokens: Tokens, n: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(tokens[first : first + n]) for first in range(len(tokens) - n + 1))


def overlap(truth: Counter[Any], guess: Counter[Any]) -> tuple[float, float, float]:
    """Return precision, recall and F1 of a guessed bag."""
    both = (truth & guess).total()
    if not both:
        return 0.0, 0.0, 0.0
    precision, recall = both / guess.total(), both / truth.total()
    return precision, recall, 2 * precision * recall / (precision + recall)


def image_scores(original: Floats, recovered: Floats) -> dict[str, float]:
    """Return MSE, PSNR in dB and SSIM of two images, (height, width, 3) in [0, 1].

    SSIM after Wang et al., "Image Quality Assessment", IEEE TIP 2004: Gaussian window of σ = 1.5, K = (.01, .03).
    """
    mse = float(((original - recovered) ** 2).mean())
    blur = partial(gaussian_filter, sigma=(1.5, 1.5, 0), truncate=3.5)
    means = blur(original), blur(recovered)
    variances = [blur(image**2) - mean**2 for image, mean in zip((original, recovered), means, strict=True)]
    covariance = blur(original * recovered) - means[0] * means[1]
    c1, c2 = 0.01**2, 0.03**2
    ssim = (2 * means[0] * means[1] + c1) * (2 * covariance + c2)
    ssim /= (means[0] ** 2 + means[1] ** 2 + c1) * (variances[0] + variances[1] + c2)
    return {"mse": mse, "psnr": float(-10 * np.log10(max(mse, 1e-12))), "ssim": float(ssim.mean())}


def estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """Return the mean of some trials with a 95 % bootstrap interval."""
    array = np.asarray(values, np.float64)
    samples = np.random.default_rng(seed).integers(len(array), size=(RESAMPLES, len(array)))
    return _interval(float(array.mean()), array[samples].mean(1))


def auc_and_tpr(members: Floats, others: Floats, seed: int = 0) -> tuple[Estimate, Estimate]:
    """Return AUC and true positive rate at 1 % false positives of membership scores, with 95 % intervals.

    Args:
        members: Scores of examples that were trained on, expected to be higher, (n,).
        others: Scores of examples that were not, (m,).
        seed: Seed of the bootstrap.
    """
    rng, auc, tpr = np.random.default_rng(seed), [], []
    for sample in range(RESAMPLES // 4 + 1):  # the first is the scores themselves
        one, two = (s if sample == 0 else rng.choice(s, len(s)) for s in (members, others))
        auc.append(area(one, two))
        highest_false = np.sort(two)[-1 - int(FALSE_POSITIVES * len(two))]  # may still not count as found
        tpr.append(float((one > highest_false).mean()))
    return _interval(auc[0], auc[1:]), _interval(tpr[0], tpr[1:])


def area(members: Floats, others: Floats) -> float:
    """Return the AUC: the share of pairs of a member, (n,), and another, (m,), in which the member's is higher.

    Equal scores count as a half.
    """
    ranked = np.sort(others)
    below = np.searchsorted(ranked, members) + np.searchsorted(ranked, members, side="right")
    return float(below.mean() / (2 * len(others)))


def _interval(mean: float, samples: Sequence[float] | Floats) -> Estimate:
    low, high = np.percentile(samples, [2.5, 97.5])
    return Estimate(mean=mean, low=float(low), high=float(high))
