"""Privacy at a site: secure noise, limits on what a run may ask for, and facts that are withheld."""

from __future__ import annotations

import math
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load

from trifed.common.errors import MessageError
from trifed.config.run import RunConfig
from trifed.deployment.protocol import Fact, Request
from trifed.deployment.refusals import RefusalCode, RefusedError
from trifed.deployment.site_settings import SiteSettings
from trifed.federation.client_privacy import ClientPrivacy, NoPrivacy
from trifed.federation.dp_mechanism import DpContext, DpMechanism, digest_of
from trifed.federation.privacy_report import promise
from trifed.federation.run_folder import PRIVACY
from trifed.privacy import RECORD, secure_noise
from trifed.privacy.ledger import EVERYTHING

WITHHELD: dict[str, Fact] = {"loss": math.nan, "steps": 0, "kept_own": 0, "seconds": 0.0}
"""Reported under privacy in place of facts that depend on the client's data."""


def site_privacy(config: RunConfig, folder: Path, name: str) -> ClientPrivacy:
    """Return the protection of a site's client, with its ledger in the run's folder.

    Noise comes from the operating system's generator, never from the run's seed, which the server has.
    """
    if not config.privacy.on:
        return NoPrivacy()
    context = DpContext(name, folder / PRIVACY, config.rounds, config.training.steps, lambda *_: secure_noise)
    return DpMechanism(config.privacy, context)


def check_privacy_limits(config: RunConfig, settings: SiteSettings) -> None:
    """Check that a run keeps within the site's privacy limits.

    Raises:
        RefusedError: ε of a training example over the whole run exceeds `most_epsilon`, or is infinite; or
            training is noised and the site has `worse_by`, which would choose by exact losses.
    """
    limit, name = settings.most_epsilon, settings.name
    if config.privacy.training and settings.worse_by is not None:
        raise RefusedError(
            RefusalCode.PRIVACY_LIMIT,
            f"{name}: worse_by chooses by exact losses, which privacy.training does not cover; leave it out",
        )
    if limit is None:
        return
    lines = promise(config) if config.privacy.on else []
    epsilon = next((line.epsilon for line in lines if line.covers == EVERYTHING), math.inf)
    if epsilon > limit:
        what = f"has {epsilon:.2f}" if math.isfinite(epsilon) else "protects not everything that leaves"
        raise RefusedError(
            RefusalCode.PRIVACY_LIMIT,
            f"{name} takes part in runs of ε up to {limit:g}, {RECORD} (most_epsilon), and this run {what}",
        )


def check_site_policy(config: RunConfig, settings: SiteSettings) -> None:
    """Check that a run asks for no kind of message that the site does not send.

    Raises:
        RefusedError: the method asks for an exact gradient and `gradients` is false; or it sends label counts
            without noise and `tell_examples` is false.
    """
    method, name = config.composed_method(), settings.name
    if method.shared_projections and not settings.gradients:
        raise RefusedError(
            RefusalCode.GRADIENTS_OFF,
            f"method.name: '{config.method.name}' asks for an exact gradient of the data; {name} sends none "
            f"unless its node.toml has gradients = true",
        )
    if method.summarise and not settings.tell_examples and not config.privacy.summary:
        raise RefusedError(
            RefusalCode.COUNTS_OFF,
            f"method.name: '{config.method.name}' sends the number of examples of each label; {name} does "
            f"not, because its node.toml has tell_examples = false",
        )


def request_key(request: Request) -> str:
    """Return a text that identifies a train request: a repeated request gets the same upload.

    Raises:
        MessageError: the download cannot be read.
    """
    try:
        download = digest_of(load(request.parts["download"])) if "download" in request.parts else "none"
    except (SafetensorError, ValueError, KeyError) as error:
        raise MessageError(f"the download is not a readable message ({error}); it is refused") from error
    return f"{request.number('place')} {request.number('round')} {request.number('counts')} {download}"
