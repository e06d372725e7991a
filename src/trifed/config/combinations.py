"""Settings of a run that cannot be combined, whatever the method is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, get_args

from trifed.config.client_training import noised_problems
from trifed.config.metrics import ALWAYS, AT_THE_END
from trifed.config.settings import (
    CLASSIFYING,
    TAGGING,
    TARGETS,
    UNLABELLED,
    WRITING,
    TagMetricName,
    TextMetricName,
)
from trifed.data.columns import spelling
from trifed.methods import METHODS
from trifed.methods.aggregation import can_aggregate

if TYPE_CHECKING:
    from trifed.config.run import RunConfig


def combination_problems(config: RunConfig) -> list[str]:
    """Return a message for each such combination in a configuration."""
    task, privacy, training = config.task, config.privacy, config.training
    pairs = task == "image-text-pairs"
    unknown = _labels_without_meaning(config)
    rules = [
        *_metric_rules(config),
        (
            not config.data.label and task not in UNLABELLED,
            f"data.label: got '', but task = '{task}' learns labels; name their column",
        ),
        (
            training.class_weights and task not in CLASSIFYING,
            f"training.class_weights: task = '{task}' has no single label for each example; leave it out",
        ),
        (
            unknown,
            f"training.class_weights: got {', '.join(map(repr, unknown))}, expected labels of data.labels",
        ),
        (
            training.class_weights == "balanced" and privacy.training,
            "training.class_weights: 'balanced' weights depend on a client's exact label counts, so with "
            "privacy.training one example would change the gradients of all others; give a table of weights",
        ),
        (
            config.data.labels is not None and task == "text-regression",
            "data.labels: task = 'text-regression' has numbers instead of labels; leave it out",
        ),
        (
            config.data.clients.split == "pathological" and task in TARGETS,
            f"data.clients.split: 'pathological' gives each client few labels, but task = '{task}' has no single "
            "label for each example; set it to 'iid', 'sizes', 'column' or 'files'",
        ),
        (
            pairs and training.micro_batch,
            "training.micro_batch: task = 'image-text-pairs' compares each pair with all others of its step, so a "
            "step cannot be split; leave it out, or set a smaller batch_size",
        ),
        (
            privacy.training and training.steps is None,
            "training.steps: missing; with privacy.training the number of steps must not depend on the number of "
            "a client's examples, so set it",
        ),
        (
            privacy.training and pairs,
            "privacy.training: task = 'image-text-pairs' compares each pair with all others of its step, so no "
            "gradient belongs to one example; leave it out",
        ),
        (
            (privacy.summary or privacy.training) and task == "causal-lm" and config.model.packing,
            "privacy: ε is for one example, but with model.packing a text is spread over several blocks; "
            "set model.packing = false",
        ),
    ]
    noised = noised_problems(config.client_settings) if privacy.training else []
    return [message for wrong, message in rules if wrong] + noised


def _metric_rules(config: RunConfig) -> Iterator[tuple[object, str]]:
    """Yield rules on metrics, and on choices by validation data, with a message for each that is broken."""
    task, texts, tags = config.task, set(get_args(TextMetricName)), set(get_args(TagMetricName))
    for setting, names in (("metrics", set(config.metrics)), ("metric", {config.metric} - set(ALWAYS))):
        of_labels, of_texts, of_tags = sorted(names - texts - tags), sorted(names & texts), sorted(names & tags)
        yield (
            of_labels and task in (*UNLABELLED, *TARGETS),
            f"{setting}: got {', '.join(of_labels)}, but task = '{task}' has no labels to predict, one for each "
            "example; leave it out",
        )
        yield (
            of_labels and task in TAGGING,
            f"{setting}: got {', '.join(of_labels)}, but task = '{task}' has no label for each example; use "
            f"{', '.join(sorted(tags))}, accuracy or loss",
        )
        yield (
            of_tags and task not in TAGGING,
            f"{setting}: got {', '.join(of_tags)}, but task = '{task}' has no tags of words; leave it out",
        )
        yield (
            of_texts and task not in WRITING,
            f"{setting}: got {', '.join(of_texts)}, but task = '{task}' does not generate text; leave it out",
        )
    written = [name for name in config.metrics if name in AT_THE_END]
    yield (
        written and task in WRITING and config.data.answer is None,
        f"metrics: got {', '.join(written)}, which needs the right answers; name their column (data.answer), or "
        "leave it out",
    )
    yield (
        config.metric in AT_THE_END,
        f"metric: got '{config.metric}', which is computed only at the end; use perplexity, accuracy or loss",
    )
    setting = 'keep = "best"' if config.keep == "best" else "patience"
    yield (
        config.chooses and config.privacy.on,
        f"{setting}: chooses by exact scores on validation data, which [privacy] does not cover; leave it out",
    )
    yield (
        config.chooses and not config.data.valid_fraction,
        f"{setting}: chooses by validation data, and data.valid_fraction is 0; set it above 0, or leave "
        f"{setting.split()[0]} out",
    )


def privacy_problems(config: RunConfig) -> Iterator[str]:
    """Yield a message for each method of the run that breaks the guarantee of [privacy]."""
    if not config.privacy.on:
        return
    methods = {config.method.name: config.composed_method()}
    methods |= {
        name: config.with_method(name).composed_method() for name in config.baselines or () if name in METHODS
    }
    exact_counts = (config.privacy.update or config.privacy.training) and not config.privacy.summary
    for name, method in methods.items():
        if method.shared_projections:
            yield (
                f"privacy: '{name}' sends each client's gradient before round 1, without noise; set another "
                f"method, or leave [privacy] out"
            )
        if exact_counts and method.summarise:
            yield (
                f"privacy.summary: missing, but '{name}' sends exact label counts; set it, such as "
                "summary = { epsilon = 4.0 }"
            )
        # Training that is noised starts from noised label counts, which only a summary releases.
        if config.privacy.training and method.local_init and not method.summarise:
            yield _prior_problem(config, name)
        if config.privacy.training and method.local_share:
            yield (
                f"privacy.training: '{name}' keeps the mean features of a client's examples without noise; choose "
                "another method"
            )


def _prior_problem(config: RunConfig, name: str) -> str:
    """Return why a method's training with noise cannot start from label counts without noise, and the ways out.

    Args:
        config: The run's settings.
        name: The run's method, or one of its baselines.
    """
    base = METHODS[name].preset_of or METHODS[name]
    if base.local_init is not None:
        start, without = "", "choose another method"
    else:
        start, without = " (personalization.label_prior)", "set personalization.label_prior = false"
    if name != config.method.name:
        without, config = f"leave '{name}' out of baselines", config.with_method(name)
    found = (
        f"privacy.training: '{name}' starts training from the client's exact label counts{start}, without noise"
    )
    parts, needed = config.aggregation, []
    if config.sealing.on and parts.groups != "agreement":
        needed.append("aggregation.groups = 'agreement'")
    if not config.sealing.on and not parts.needs_summaries:
        needed.append("aggregation.weights = 'label-rows'")
    if not config.privacy.summary:
        needed.append("privacy.summary, such as summary = { epsilon = 4.0 }")
    if not config.personalization.share or not can_aggregate(base) or not needed:
        return f"{found}; {without}, or leave privacy.training out"
    return f"{found}; {without}, or let them come from a summary with noise: set {' and '.join(needed)}"


def summary_problems(config: RunConfig) -> Iterator[str]:
    """Yield a message for each method of the run whose summaries cannot be noised."""
    baselines = [name for name in config.baselines or () if name in METHODS and name != config.method.name]
    options = {
        config.method.name: config.method.options(),
        **{name: METHODS[name].options() for name in baselines},
    }
    for name in (name for name, chosen in options.items() if config.privacy.summary and chosen.raw_summary()):
        yield (
            f"privacy.summary: adds noise to projected features, but '{name}' sends raw ones; set method.summary "
            "to 'projected', or leave [privacy] out"
        )


def _labels_without_meaning(config: RunConfig) -> list[str]:
    """Return the labels that have a weight and are not among `data.labels`; none if that is not set."""
    weights, labels = config.training.class_weights, config.data.labels
    if labels is None or not isinstance(weights, dict):
        return []
    known = set(map(spelling, labels))
    return [label for label in weights if spelling(label) not in known]
