"""Evaluate a client's model on a file, in the precision of the model's training settings.

A classifier gets accuracy, loss, F1, scores of each label and confusions; a language model perplexity, next-token
accuracy, exact match and ROUGE-L; a model of images and captions retrieval scores in both directions.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from trifed.common.errors import DataError
from trifed.data.columns import spelling
from trifed.export.inference_inputs import LabelledInputs, by_role, chunks
from trifed.export.locate import LocatedModel, join_names
from trifed.federation.client_model import Classifier, RetrievalModel, Writer
from trifed.federation.training.evaluation import embed, evaluate
from trifed.tasks.prompts import CHAT

CHUNK = 4096
"""Examples that are evaluated together. A run evaluates a client's all at once: up to this number, the scores are
equal to the last bit."""
PROMPTS_PER_CHUNK = 64
"""Prompts that are answered together, in smaller batches of similar length."""
IMAGES_PER_CHUNK = 256
"""Images, or captions, that are embedded together."""
NEAR = 5
"""Rank up to which a caption or an image counts as near."""

Progress = Callable[[int], None]
"""Called with the number of examples that were finished since the last call."""


@dataclass(frozen=True)
class Scores:
    """Scores of one client's model on one file. `client`: name of the client; `examples`: number of rows."""

    client: str
    examples: int


@dataclass(frozen=True)
class LabelScore:
    """Scores of one label. `examples`: rows with this label; `precision`, `recall`, `f1`: in [0, 1]."""

    label: str
    examples: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Confusion:
    """The number of examples with one label that were predicted as another."""

    actual: str
    predicted: str
    count: int


@dataclass(frozen=True)
class Evaluation(Scores):
    """Scores of a classifier.

    Attributes:
        accuracy: In [0, 1].
        loss: Mean cross-entropy, nats.
        macro_f1: Mean F1 over `labels`, in [0, 1].
        labels: Scores of the labels that occur in the file or among the predictions.
        confusions: The most frequent first.
    """

    accuracy: float
    loss: float
    macro_f1: float
    labels: list[LabelScore]
    confusions: list[Confusion]


def evaluate_client(
    located: LocatedModel, classifier: Classifier, data: LabelledInputs, progress: Progress = lambda count: None
) -> Evaluation:
    """Evaluate a client's classifier in the precision of `located.training`.

    A label that the model was not trained on is an error, not a wrong prediction: its loss would be infinite, and
    usually the cause is a wrong column or another spelling.

    Raises:
        DataError: The file has a label that the model was not trained on.
    """
    labels = _label_indices(located.name, classifier, data)
    predicted, total = np.zeros_like(labels), 0.0
    for first in range(0, len(labels), CHUNK):
        rows = slice(first, first + CHUNK)
        encoded = classifier.encode(by_role(data.inputs[rows]), labels[rows])
        scores = evaluate(classifier.model, encoded, located.training)
        predicted[rows] = scores.predictions
        total += scores.loss * scores.examples
        progress(scores.examples)
    return measure(located.name, labels, predicted, classifier.labels, total / len(labels))


def _label_indices(client: str, classifier: Classifier, data: LabelledInputs) -> NDArray[np.int64]:
    indices = {spelling(label): index for index, label in enumerate(classifier.labels)}
    unknown = [index for index, label in enumerate(data.labels) if label not in indices]
    if unknown:
        rows = f" ({len(unknown)} such rows in all)" if len(unknown) > 1 else ""
        raise DataError(
            f"{data.where}, {data.unit} {data.inputs[unknown[0]].row}: got the label '{data.labels[unknown[0]]}'"
            f"{rows}; expected one that the model of '{client}' was trained on: {join_names(classifier.labels)}. "
            f"Correct it, name another --label-column, or leave these rows out"
        )
    return np.array([indices[label] for label in data.labels], np.int64)


def measure(
    client: str, labels: NDArray[np.int64], predicted: NDArray[np.int64], names: list[str], loss: float
) -> Evaluation:
    """Return scores from labels and predictions, (n,) each. `names`: labels by index; `loss`: mean, nats."""
    present = np.union1d(labels, predicted)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=present, zero_division=0.0
    )
    pairs = Counter(zip(labels.tolist(), predicted.tolist(), strict=True))
    confused = sorted((-count, pair) for pair, count in pairs.items() if pair[0] != pair[1])
    return Evaluation(
        client=client,
        examples=len(labels),
        accuracy=float(accuracy_score(labels, predicted)),
        loss=loss,
        macro_f1=float(np.mean(f1)),
        labels=[
            LabelScore(names[k], int(n), float(p), float(r), float(f))
            for k, n, p, r, f in zip(present, support, precision, recall, f1, strict=True)
        ],
        confusions=[Confusion(names[actual], names[other], -count) for count, (actual, other) in confused],
    )


@dataclass(frozen=True)
class AnswerEvaluation(Scores):
    """Scores of a language model.

    Attributes:
        loss: Mean over the tokens of the answers, nats.
        perplexity: exp(loss).
        accuracy: Mean over examples of the share of next tokens that the model predicts right, in [0, 1].
        exact_match: Share of the model's answers that equal the file's, white space apart; None for plain texts.
        rouge_l: Mean ROUGE-L of the model's answers, in [0, 1]; None for plain texts.
    """

    loss: float
    perplexity: float
    accuracy: float
    exact_match: float | None
    rouge_l: float | None


def evaluate_writer(
    located: LocatedModel, writer: Writer, data: LabelledInputs, tokens: int, progress: Progress
) -> AnswerEvaluation:
    """Evaluate a client's language model in the precision of `located.training`. `tokens`: the longest answer.

    Raises:
        DataError: The file has plain texts, but the model was trained on conversations.
    """
    if not data.labels and writer.settings.template == CHAT:
        raise DataError(
            f"{data.where}: got texts without answers, but the model of '{located.name}' was trained on "
            f"conversations; name the columns of prompts and answers with --text-column and --label-column"
        )
    roles = {**by_role(data.inputs, prompts=True), "answer": data.labels}
    encoded = writer.encode(roles if data.labels else {"text": roles["prompt"]})
    scores = evaluate(writer.model, encoded, located.training)
    exact = rouge = None
    if data.labels:
        answers: list[str] = []
        for chunk in chunks(data.inputs, PROMPTS_PER_CHUNK):
            answers += writer.answer_all(by_role(chunk, prompts=True), tokens)
            progress(len(chunk))
        pairs = list(zip(answers, data.labels, strict=True))
        exact = float(np.mean([one.split() == other.split() for one, other in pairs]))
        rouge = float(np.mean([rouge_l(one, other) for one, other in pairs]))
    else:
        progress(len(data.inputs))
    return AnswerEvaluation(
        client=located.name,
        examples=len(data.inputs),
        loss=scores.loss,
        perplexity=math.exp(scores.loss) if scores.loss < 700 else math.inf,
        accuracy=scores.accuracy,
        exact_match=exact,
        rouge_l=rouge,
    )


def rouge_l(one: str, other: str) -> float:
    """Return the F1 of the longest common subsequence of two texts' words, in [0, 1].

    Words are in lower case and without punctuation.

    Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 3 with β = 1.
    """
    first, second = (re.findall(r"\w+", text.lower()) for text in (one, other))
    return lcs_f1(first, second) if first or second else 1.0


def lcs_f1(one: Sequence[object], other: Sequence[object]) -> float:
    """Return F1 of the longest common subsequence of two sequences, in [0, 1]; 0 if both are empty."""
    common = [0] * (len(other) + 1)  # of all items of `one` so far with the first j of `other`
    for item in one:
        diagonal = 0
        for column, another in enumerate(other, start=1):
            above = common[column]
            common[column] = diagonal + 1 if item == another else max(above, common[column - 1])
            diagonal = above
    return 2 * common[-1] / max(1, len(one) + len(other))


@dataclass(frozen=True)
class MatchEvaluation(Scores):
    """Scores of a model of images and captions.

    Attributes:
        captions: Number of different captions.
        accuracy: Mean of `caption_found` and `image_found`.
        caption_found: Share of the images whose caption is the nearest of all captions.
        caption_near: Share of the images whose caption is among the five nearest.
        image_found: Share of the captions for which one of their images is the nearest of all images.
        image_near: Share of the captions for which one of their images is among the five nearest.
    """

    captions: int
    accuracy: float
    caption_found: float
    caption_near: float
    image_found: float
    image_near: float


def evaluate_retrieval_model(
    located: LocatedModel, model: RetrievalModel, data: LabelledInputs, progress: Progress
) -> MatchEvaluation:
    """Evaluate a client's model; images are embedded in the precision of `located.training`."""
    captions = list(dict.fromkeys(data.labels))
    own = np.array([captions.index(label) for label in data.labels])
    classifier = model.among(captions[:1])  # it embeds images; its label does not matter
    vectors = []
    for chunk in chunks(data.inputs, IMAGES_PER_CHUNK):
        vectors.append(embed(classifier.model, classifier.encode(by_role(chunk)), located.training))
        progress(len(chunk))
    caption_vectors = np.concatenate(
        [model.embeddings(chunk).cpu().numpy() for chunk in chunks(captions, IMAGES_PER_CHUNK)]
    )
    image_vectors = np.concatenate(vectors)
    image_vectors /= np.linalg.norm(image_vectors, axis=1, keepdims=True)
    return measure_matches(located.name, image_vectors @ caption_vectors.T, own)


def measure_matches(client: str, similarity: NDArray[np.float32], own: NDArray[np.int64]) -> MatchEvaluation:
    """Return the scores of one client's model; a wrong candidate with equal similarity counts as nearer.

    Args:
        client: Name of the client.
        similarity: Of images and captions, (n_images, n_captions).
        own: Index of each image's caption, (n_images,).
    """
    right = own[:, None] == np.arange(similarity.shape[1])
    caption_and_image = _ranks(similarity, right), _ranks(similarity.T, right.T)
    shares = [float((ranks < near).mean()) for ranks in caption_and_image for near in (1, NEAR)]
    return MatchEvaluation(client, len(own), similarity.shape[1], (shares[0] + shares[2]) / 2, *shares)


def _ranks(similarity: NDArray[np.float32], right: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return, for each row, the number of wrong columns that are at least as similar as the best right one."""
    best = np.where(right, similarity, -np.inf).max(axis=1, keepdims=True)
    ranks: NDArray[np.int64] = ((similarity >= best) & ~right).sum(axis=1)
    return ranks
