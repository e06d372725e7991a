"""How good a reconstruction is, how well members are told from others, and intervals for both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import roc_auc_score, roc_curve

from trifed.reports.audit.findings import Estimate

DRAWS = 2000
Tokens = Sequence[int]
Image = NDArray[np.float64]
FALSE_POSITIVES = 0.01


def text_scores(originals: Sequence[Tokens], found: Sequence[Tokens]) -> dict[str, float]:
    """Of a batch: precision, recall and F1 of its tokens as one bag; ROUGE and exact copies text by text.

    Each original is compared with one text that was found, so that the sum of their scores is largest: in a batch
    there is no order. ROUGE-n and -L are F-measures over tokens (Lin, "ROUGE", 2004).
    """
    bag, guess = (Counter(token for text in texts for token in text) for texts in (originals, found))
    precision, recall, f1 = overlap(bag, guess)
    rouge = np.array([[alike(original, other) for other in found] for original in originals])
    pairs = list(zip(*linear_sum_assignment(-rouge.sum(2)), strict=True)) if rouge.size else []
    one, two, longest_common = (float(sum(rouge[o, f, n] for o, f in pairs)) / len(originals) for n in range(3))
    exact = sum(list(originals[o]) == list(found[f]) for o, f in pairs) / len(originals)
    return {
        "precision": precision, "recall": recall, "f1": f1, "rouge1": one, "rouge2": two, "rougeL": longest_common,
        "exact": exact,
    }  # fmt: skip


def alike(one: Tokens, other: Tokens) -> tuple[float, float, float]:
    """ROUGE-1, -2 and -L of two texts."""
    first, second = (overlap(ngrams(one, n), ngrams(other, n))[2] for n in (1, 2))
    return first, second, longest(one, other)


def ngrams(tokens: Tokens, n: int) -> Counter[tuple[int, ...]]:
    """How often each run of n tokens occurs."""
    return Counter(tuple(tokens[place : place + n]) for place in range(len(tokens) - n + 1))


def overlap(one: Counter[Any], other: Counter[Any]) -> tuple[float, float, float]:
    """Precision and recall of `other` as a guess at `one`, and their harmonic mean."""
    both = (one & other).total()
    if not both:
        return 0.0, 0.0, 0.0
    precision, recall = both / other.total(), both / one.total()
    return precision, recall, 2 * precision * recall / (precision + recall)


def longest(one: Tokens, other: Tokens) -> float:
    """ROUGE-L: the F-measure of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for token in one:
        diagonal = 0
        for place, match in enumerate(other, 1):
            diagonal, row[place] = row[place], diagonal + 1 if token == match else max(row[place], row[place - 1])
    return 2 * row[-1] / (len(one) + len(other)) if one or other else 0.0


def image_scores(original: Image, found: Image) -> dict[str, float]:
    """MSE, PSNR in dB and SSIM of two images, (height, width, 3) in [0, 1].

    SSIM after Wang et al., "Image Quality Assessment", IEEE TIP 2004: Gaussian window of σ = 1.5, K = (.01, .03).
    """
    mse = float(((original - found) ** 2).mean())

    def blur(values: Image) -> Image:
        blurred: Image = gaussian_filter(values, (1.5, 1.5, 0), truncate=3.5)
        return blurred

    means = blur(original), blur(found)
    spread = [blur(image**2) - mean**2 for image, mean in zip((original, found), means, strict=True)]
    both = blur(original * found) - means[0] * means[1]
    c1, c2 = 0.01**2, 0.03**2
    ssim = (2 * means[0] * means[1] + c1) * (2 * both + c2)
    ssim /= (means[0] ** 2 + means[1] ** 2 + c1) * (spread[0] + spread[1] + c2)
    return {"mse": mse, "psnr": float(-10 * np.log10(max(mse, 1e-12))), "ssim": float(ssim.mean())}


def estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of trials, and the middle 95 % of a bootstrap over them."""
    array = np.asarray(values, np.float64)
    drawn = array[np.random.default_rng(seed).integers(len(array), size=(DRAWS, len(array)))].mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(mean=float(array.mean()), low=float(low), high=float(high))


def told_apart(
    members: NDArray[np.float64], others: NDArray[np.float64], seed: int = 0
) -> tuple[Estimate, Estimate]:
    """AUC, and true positives at 1 % false ones, of scores that should be higher for members; 95 % intervals."""
    rng, auc, tpr = np.random.default_rng(seed), [], []
    for draw in range(DRAWS // 4 + 1):
        one, two = (s if draw == 0 else rng.choice(s, len(s)) for s in (members, others))
        truth = np.repeat([1, 0], [len(one), len(two)])
        scores = np.concatenate([one, two])
        false, true, _ = roc_curve(truth, scores)
        auc.append(float(roc_auc_score(truth, scores)))
        tpr.append(float(true[false <= FALSE_POSITIVES].max()))
    return _from_draws(auc), _from_draws(tpr)


def _from_draws(values: list[float]) -> Estimate:
    """The first, which is of the sample itself, with the middle 95 % of the others."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return Estimate(mean=values[0], low=float(low), high=float(high))
