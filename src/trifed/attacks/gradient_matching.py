"""Matching attacks: an input whose gradient is like the one that was seen.

Zhu et al., "Deep Leakage from Gradients", NeurIPS 2019 (arXiv 1906.08935), with the cosine of Geiping et al.,
"Inverting Gradients", NeurIPS 2020 (arXiv 2003.14053), and of texts their embeddings, as Deng et al., "TAG", 2021
(arXiv 2103.06819); the place of the language prior that Balunović et al., "LAMP", NeurIPS 2022 (arXiv 2202.08827)
take from GPT-2 has one of token pairs in the texts of other clients. The attacker is helped: it knows the labels
and how long each text is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from trifed.federation.shared_model import SharedModel
from trifed.methods.packing import Tensors

TEXT_RATE, IMAGE_RATE = 0.1, 0.05
"""Of Adam, for embeddings and for pixels, each in units of their spread."""
NEIGHBOURS = 8
"""Tokens that are considered at each place."""
PRIOR = 0.02
"""How much a nat of the language prior weighs against cosine similarity."""
SMOOTH = 3e-2
"""Of an image: weight of the total variation."""
SHAKEN = 0.1
"""Noise on the image that an attack starts from, in standard deviations of the model's inputs."""


def optimise(
    shared_model: SharedModel,
    start: Tensor,
    made: Callable[[Tensor], Mapping[str, Tensor]],
    observed: Tensors,
    iterations: int,
    rate: float,
    prior: Callable[[Tensor], Tensor],
) -> Tensor:
    """Move `start` to where its gradient is most like what was observed; the best on the way.

    `made`: what is optimised → a batch for the model, which holds the attacker's tensors.
    """  # fmt: skip
    params = {name: shared_model.parameters[name] for name in observed if np.any(observed[name])}
    if not params:
        return start
    targets = [torch.from_numpy(observed[name]).flatten().to(shared_model.device) for name in params]
    guess = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([guess], lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, iterations)
    best, least = start, float("inf")
    shared_model.model.eval()
    for _ in range(iterations):
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            found = torch.autograd.grad(
                shared_model.model.loss(dict(made(guess))),
                list(params.values()),
                create_graph=True,
                allow_unused=True,
            )
            pairs = [(f.flatten(), t) for f, t in zip(found, targets, strict=True) if f is not None]
            far = torch.stack([1 - torch.cosine_similarity(f, t, dim=0) for f, t in pairs]).mean()
            (slope,) = torch.autograd.grad(far + prior(guess), guess)
        if far.item() < least:
            best, least = guess.detach().clone(), far.item()
        guess.grad = slope
        optimizer.step()
        schedule.step()
    return best


def match_texts(
    shared_model: SharedModel,
    observed: Tensors,
    lengths: Sequence[int],
    given: Mapping[str, Tensor],
    known: Sequence[Sequence[int]],
    iterations: int,
    rng: np.random.Generator,
) -> list[list[int]]:
    """Texts of these lengths whose gradient is like what was observed. `given`: labels, and what is text."""
    words = shared_model.base.model.get_input_embeddings().weight.detach()
    mask = given["attention_mask"]
    size = float(words.std())
    start = torch.from_numpy(rng.normal(0, size, (*mask.shape, words.shape[1])).astype(np.float32)).to(words)

    def made(embeddings: Tensor) -> Mapping[str, Tensor]:
        # Scaled, so that one rate suits every model's embeddings.
        return {**given, "inputs_embeds": embeddings * size}

    norm = float(words.norm(dim=1).mean())

    def length_prior(embeddings: Tensor) -> Tensor:
        found: Tensor = ((embeddings * size).norm(dim=-1).mean() / norm - 1).square()
        return found

    found = optimise(shared_model, start / size, made, observed, iterations, TEXT_RATE, length_prior).cpu()
    words = words.cpu()
    likely = pair_prior(known)
    return [most_likely(found[place, :length] * size, words, likely) for place, length in enumerate(lengths)]


def pair_prior(known: Sequence[Sequence[int]]) -> Callable[[int, int], float]:
    """log P(next | token) of the texts of others: pairs, backed off to single tokens."""
    pairs = Counter(pair for text in known for pair in pairwise(text))
    single = Counter(token for text in known for token in text)
    total = max(1, single.total())

    def logarithm(one: int, other: int) -> float:
        back = (single[other] + 0.1) / (total + 0.1)
        return log((pairs[one, other] + back) / (single[one] + 1))

    return logarithm


def most_likely(found: Tensor, words: Tensor, prior: Callable[[int, int], float]) -> list[int]:
    """Embeddings (length, d) to tokens: those of the path whose similarity and prior together are largest."""
    like = torch.nn.functional.normalize(found, dim=1) @ torch.nn.functional.normalize(words, dim=1).T
    near, tokens = like.topk(NEIGHBOURS, dim=1)
    score, back = near[0].double().numpy(), []
    for place in range(1, len(found)):
        step = np.array([[prior(int(a), int(b)) for b in tokens[place]] for a in tokens[place - 1]])
        whole = score[:, None] + PRIOR * step
        back.append(whole.argmax(0))
        score = whole.max(0) + near[place].double().numpy()
    path = [int(score.argmax())]
    for steps in reversed(back):
        path.append(int(steps[path[-1]]))
    return [int(tokens[place, choice]) for place, choice in enumerate(reversed(path))]


def match_images(
    shared_model: SharedModel,
    observed: Tensors,
    mean: Tensor,
    labels: NDArray[np.int64],
    limits: tuple[Tensor, Tensor],
    iterations: int,
    rng: np.random.Generator,
) -> Tensor:
    """Images (n, 3, height, width), as the model reads them, whose gradient is like what was observed.

    `mean`: an image that is known of such data, (3, height, width), where the attack starts; `limits`: the darkest
    and the brightest value of each colour, (3, 1, 1).
    """  # fmt: skip
    noise = rng.normal(0, SHAKEN, (len(labels), *mean.shape))
    start = (mean + torch.from_numpy(noise.astype(np.float32))).to(shared_model.device)
    limits = limits[0].to(shared_model.device), limits[1].to(shared_model.device)
    classes = torch.from_numpy(labels).to(shared_model.device)

    def made(pixels: Tensor) -> Mapping[str, Tensor]:
        return {"pixel_values": pixels.clamp(*limits), "labels": classes}

    def smooth(pixels: Tensor) -> Tensor:
        return SMOOTH * ((pixels.diff(dim=2)).abs().mean() + pixels.diff(dim=3).abs().mean())

    return optimise(shared_model, start, made, observed, iterations, IMAGE_RATE, smooth).clamp(*limits).cpu()
