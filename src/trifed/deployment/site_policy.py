"""What a site decides by itself: which base model, method, columns, labels and privacy a run may have.

`site_process` calls these checks when a run is greeted, before anything is computed from the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from trifed.config.run import DEFAULT_METHOD, RunConfig
from trifed.deployment.protocol import RefusedError
from trifed.deployment.site_settings import SiteSettings
from trifed.deployment.site_store import BASES, COLUMNS, LABELS, first_known
from trifed.federation.context import sum_rules
from trifed.federation.privacy_report import promise
from trifed.methods import METHODS, ORIGINS, code_hash
from trifed.privacy import RECORD
from trifed.privacy.ledger import EVERYTHING
from trifed.tasks import TASKS


def check_base(site: SiteSettings, model: str, fingerprint: str) -> None:
    """Check a base model against the site's settings, and against its first load at this site.

    Args:
        site: the site's settings.
        model: name and type of the model.
        fingerprint: sha256 of its weights.

    Raises:
        RefusedError: the weights are others.
    """
    found = f"the base model here is {fingerprint[:16]}, but"
    if not fingerprint.startswith(site.base):
        raise RefusedError("base_mismatch", f"{found} {site.name} accepts only {site.base[:16]} (base)")
    first = first_known(site.folder, BASES, model, fingerprint)
    if first != fingerprint:
        raise RefusedError(
            "base_mismatch",
            f"{found} it was {first[:16]} when {site.name} first loaded it; put that back, or, if the change is "
            f"intended, remove its line from the site's {BASES}",
        )


def check_privacy_limits(config: RunConfig, settings: SiteSettings) -> None:
    """Check that a run keeps within the site's privacy limits.

    Raises:
        RefusedError: ε of a training example over the whole run exceeds `most_epsilon`, or is infinite; or
            training is noised and the site has `worse_by`, which would choose by exact losses.
    """
    limit, name = settings.most_epsilon, settings.name
    if config.privacy.training and settings.worse_by is not None:
        raise RefusedError(
            "privacy_limit",
            f"{name}: worse_by chooses by exact losses, which privacy.training does not cover; leave it out",
        )
    if limit is None:
        return
    lines = promise(config) if config.privacy.on else []
    epsilon = next((line.epsilon for line in lines if line.covers == EVERYTHING), math.inf)
    if epsilon > limit:
        what = f"has {epsilon:.2f}" if math.isfinite(epsilon) else "does not protect everything that leaves"
        raise RefusedError(
            "privacy_limit",
            f"{name} takes part in runs of ε up to {limit:g}, {RECORD} (most_epsilon), and this run {what}",
        )


def check_sealing(config: RunConfig, site: SiteSettings) -> None:
    """Check that a run is sealed if the site takes part in no other, and that it knows the others of a sealed run.

    Raises:
        RefusedError: The run is not sealed and `sealed_only` is true; or it is, and the site has no list of keys,
            or wants more sites in a sum than the run, which decides for each row of the head.
    """
    if config.sealing.on:
        from trifed.deployment.site_sums import known_sites  # it needs cryptography, which only sealed runs do

        known_sites(site)
        if sum_rules(config).by_label and site.at_least > config.sealing.at_least:
            raise RefusedError(
                "too_few_for_a_sum",
                f"sealing.at_least: got {config.sealing.at_least}, expected at least the at_least of this site's "
                f"node.toml, {site.at_least}, because rows of the head are summed over so many of their label's "
                f"holders; raise the one, or lower the other",
            )
    elif site.sealed_only:
        raise RefusedError(
            "not_sealed",
            f"sealing.on: {site.name} takes part only in sealed runs; its node.toml has sealed_only = true",
        )


def check_site_policy(config: RunConfig, site: SiteSettings) -> None:
    """Check that a run asks for no kind of message that the site does not send, and keeps within its limits.

    Raises:
        RefusedError: The method asks for an exact gradient and `gradients` is false; or for a summary of raw
            features and `raw_summaries` is false; or it sends label counts without noise and `tell_examples` is
            false; or it needs each download as it is, and the site has `worse_by` or an `others_at_most` below 1.
    """
    method, name = config.composed_method(), site.name
    if method.shared_projections and not site.gradients:
        raise RefusedError(
            "gradients_off",
            f"method.name: '{config.method.name}' asks for an exact gradient of the data; {name} sends none "
            f"unless its node.toml has gradients = true",
        )
    if method.summarise and config.method.options().raw_summary() and not site.raw_summaries:
        raise RefusedError(
            "raw_summaries_off",
            f"method.summary: '{config.method.name}' asks for means and variances of raw features; {name} sends "
            f"none unless its node.toml has raw_summaries = true",
        )
    if method.summarise and not site.tell_examples and not config.privacy.summary:
        raise RefusedError(
            "counts_off",
            f"method.name: '{config.method.name}' sends the number of examples of each label; {name} does "
            f"not, because its node.toml has tell_examples = false",
        )
    limited = site.worse_by is not None or site.others_at_most < 1
    if limited and method.takes_downloads_whole and config.personalization.share:
        raise RefusedError(
            "limits_unusable",
            f"method.name: '{config.method.name}' needs clients that take what they receive as it is, because its "
            f"server relies on that, and {name} has others_at_most or worse_by in its node.toml; remove these "
            f"lines, or do not take part",
        )


def check_columns(config: RunConfig, site: SiteSettings) -> None:
    """Check that a run reads no other columns than the site allows, or than the first run here has read.

    Raises:
        RefusedError: The run's settings name another column.
    """
    data = config.data
    read = {data.label, *(role.column(data) for role in TASKS[config.task].roles)} - {"", None}
    names = json.dumps(sorted(map(str, read)))
    allowed = site.columns
    if allowed is None:
        allowed = json.loads(first_known(site.folder, COLUMNS, str(data.source), names))
    if not read <= set(allowed):
        raise RefusedError(
            "columns_not_allowed",
            f"data: the run reads the columns {names}, and {site.name} allows {json.dumps(allowed)}; if that is "
            f"intended, set columns = {names} in node.toml",
        )


def check_labels(config: RunConfig, site: SiteSettings) -> None:
    """Check that a run names the labels that the site allows, or that the first run here has named.

    Otherwise a server could find out which labels the data have, by naming one after the other.

    Raises:
        RefusedError: The run names other labels.
    """
    found, data = config.data.labels, config.data
    allowed = site.labels or json.loads(
        first_known(site.folder, LABELS, f"{data.source} {data.label}", json.dumps(found))
    )
    if found != allowed:
        raise RefusedError(
            "labels_not_allowed",
            f"data.labels: the run names {json.dumps(found)}, and {site.name} allows {json.dumps(allowed)}; if "
            f"that is intended, set labels = {json.dumps(found)} in node.toml",
        )


def check_method(values: Mapping[str, Any], server_hash: object, site: SiteSettings) -> None:
    """Check the method that a run's settings name: a server names one, the site runs what is installed here.

    Args:
        values: Settings of the run as the server sent them.
        server_hash: Hash of the code of the method at the server, see `code_hash`.
        site: The site's own settings.

    Raises:
        RefusedError: The method is not installed here, the site does not allow it, or its code differs.
    """
    table = values.get("method", {})
    name = str(table.get("name", DEFAULT_METHOD)) if isinstance(table, Mapping) else str(table)
    if name not in METHODS:
        raise RefusedError("method_unknown", f"method.name: got '{name}', which is not installed at {site.name}")
    if name not in (METHODS.keys() - ORIGINS.keys() if site.methods is None else site.methods):
        raise RefusedError(
            "method_not_allowed",
            f"methods: {site.name} does not allow '{name}'; add it to `methods` if you trust its code",
        )
    own_hash = code_hash(METHODS[name])
    if server_hash != own_hash:
        raise RefusedError(
            "method_mismatch",
            f"'{name}': its code here has the hash {own_hash}, at the server {server_hash!r}; install the same "
            f"version",
        )
