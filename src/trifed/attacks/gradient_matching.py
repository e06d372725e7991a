"""Gradient matching: search an input whose gradient is similar to the observed one.

Zhu et al., "Deep Leakage from Gradients", NeurIPS 2019 (arXiv 1906.08935), with the cosine similarity of Geiping
et al., "Inverting Gradients", NeurIPS 2020 (arXiv 2003.14053). Texts are searched as embeddings, as in Deng et
al., "TAG", 2021 (arXiv 2103.06819). Balunović et al., "LAMP", NeurIPS 2022 (arXiv 2202.08827) take their language
prior from GPT-2; here it is made of token pairs in the texts of other clients. The attacker is given the labels
and the length of each text.
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

from trifed.federation.training.shared_model import SharedModel
from trifed.methods.packing import Tensors

TEXT_RATE, IMAGE_RATE = 0.1, 0.05
"""Adam's learning rates for embeddings and for pixels, each in units of their spread."""
NEIGHBOURS = 8
"""Candidate tokens at each position."""
PRIOR = 0.02
"""Weight of one nat of the language prior against cosine similarity."""
SMOOTH = 3e-2
"""Weight of an image's total variation."""
NOISE = 0.1
"""Noise on the initial image, in standard deviations of the model's inputs."""
PairPrior = Callable[[int, int], float]


def match_gradient(
    shared_model: SharedModel,
    start: Tensor,
    make_batch: Callable[[Tensor], Mapping[str, Tensor]],
    observed: Tensors,
    iterations: int,
    rate: float,
    penalty: Callable[[Tensor], Tensor],
) -> Tensor:
    """Optimise an input until its gradient is similar to the observed one, and return the most similar on the way.

    Args:
        shared_model: The model with the tensors that the attacker assumes.
        start: Initial input.
        make_batch: Makes a batch for the model from the optimised input.
        observed: Observed gradient by name; zero tensors are left out.
        iterations: Steps of Adam.
        rate: Its first learning rate, which falls linearly to a tenth.
        penalty: Added to the mean cosine distance of the gradients.
    """
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
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
            loss = shared_model.model.loss(dict(make_batch(guess)))
            parts = torch.autograd.grad(loss, list(params.values()), create_graph=True, allow_unused=True)
            pairs = [(p.flatten(), t) for p, t in zip(parts, targets, strict=True) if p is not None]
            distance = torch.stack([1 - torch.cosine_similarity(p, t, dim=0) for p, t in pairs]).mean()
            (guess.grad,) = torch.autograd.grad(distance + penalty(guess), guess)
        if distance.item() < least:
            best, least = guess.detach().clone(), distance.item()
        optimizer.step()
        schedule.step()
    return best


def match_texts(
    shared_model: SharedModel,
    observed: Tensors,
    lengths: Sequence[int],
    known_inputs: Mapping[str, Tensor],
    known_texts: Sequence[Sequence[int]],
    iterations: int,
    rng: np.random.Generator,
) -> list[list[int]]:
    """Return texts of the given lengths whose gradient is similar to the observed one.

    Args:
        shared_model: The model with the tensors that the attacker assumes.
        observed: Observed gradient by name.
        lengths: Tokens of each text.
        known_inputs: Labels, attention mask (n, length) and token types of the batch.
        known_texts: Texts of other clients, for the language prior.
        iterations: Steps of the search.
        rng: Draws the initial embeddings.
    """
    words = shared_model.base.model.get_input_embeddings().weight.detach()
    size, norm = float(words.std()), float(words.norm(dim=1).mean())
    shape = (*known_inputs["attention_mask"].shape, words.shape[1])
    start = torch.from_numpy(rng.normal(0, size, shape).astype(np.float32)).to(words)

    def make_batch(embeddings: Tensor) -> Mapping[str, Tensor]:
        # Scaled, so that one learning rate suits every model's embeddings.
        return {**known_inputs, "inputs_embeds": embeddings * size}

    def length_penalty(embeddings: Tensor) -> Tensor:
        return torch.square((embeddings * size).norm(dim=-1).mean() / norm - 1)

    recovered = match_gradient(
        shared_model, start / size, make_batch, observed, iterations, TEXT_RATE, length_penalty
    ).cpu()
    words, prior = words.cpu(), pair_prior(known_texts)
    return [
        decode_embeddings(row[:length] * size, words, prior)
        for row, length in zip(recovered, lengths, strict=True)
    ]


def pair_prior(texts: Sequence[Sequence[int]]) -> PairPrior:
    """Return log P(next token | token) by the pairs in some texts, backed off to single tokens."""
    pairs = Counter(pair for text in texts for pair in pairwise(text))
    single = Counter(token for text in texts for token in text)
    total = max(1, single.total())

    def log_probability(token: int, following: int) -> float:
        backed_off = (single[following] + 0.1) / (total + 0.1)
        return log((pairs[token, following] + backed_off) / (single[token] + 1))

    return log_probability


def decode_embeddings(embeddings: Tensor, words: Tensor, prior: PairPrior) -> list[int]:
    """Return the tokens whose similarity to embeddings (length, d) and prior are largest together (Viterbi)."""
    similarity = torch.nn.functional.normalize(embeddings, dim=1) @ torch.nn.functional.normalize(words, dim=1).T
    near, tokens = similarity.topk(NEIGHBOURS, dim=1)
    score, back = near[0].double().numpy(), []
    for position in range(1, len(embeddings)):
        step = np.array([[prior(int(a), int(b)) for b in tokens[position]] for a in tokens[position - 1]])
        whole = score[:, None] + PRIOR * step
        back.append(whole.argmax(0))
        score = whole.max(0) + near[position].double().numpy()
    path = [int(score.argmax())]
    for steps in reversed(back):
        path.insert(0, int(steps[path[0]]))
    return [int(tokens[position, choice]) for position, choice in enumerate(path)]


def match_images(
    shared_model: SharedModel,
    observed: Tensors,
    mean: Tensor,
    labels: NDArray[np.int64],
    limits: tuple[Tensor, Tensor],
    iterations: int,
    rng: np.random.Generator,
) -> Tensor:
    """Return images (n, 3, height, width), as the model reads them, whose gradient is similar to the observed one.

    Args:
        shared_model: The model with the tensors that the attacker assumes.
        observed: Observed gradient by name.
        mean: Mean image of other clients, where the search starts, (3, height, width).
        labels: Classes of the images, (n,).
        limits: Darkest and brightest value of each colour, (3, 1, 1) each.
        iterations: Steps of the search.
        rng: Draws the noise on the initial images.
    """
    noise = torch.from_numpy(rng.normal(0, NOISE, (len(labels), *mean.shape)).astype(np.float32))
    start, classes = (mean + noise).to(shared_model.device), torch.from_numpy(labels).to(shared_model.device)
    limits = limits[0].to(shared_model.device), limits[1].to(shared_model.device)

    def make_batch(pixels: Tensor) -> Mapping[str, Tensor]:
        return {"pixel_values": pixels.clamp(*limits), "labels": classes}

    def total_variation(pixels: Tensor) -> Tensor:
        return SMOOTH * ((pixels.diff(dim=2)).abs().mean() + pixels.diff(dim=3).abs().mean())

    arguments = (make_batch, observed, iterations, IMAGE_RATE, total_variation)
    return match_gradient(shared_model, start, *arguments).clamp(*limits).cpu()
