"""What a node does where its run has [privacy]: true noise, and nothing said that no noise covers."""

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

UNTOLD: dict[str, Fact] = {"loss": math.nan, "steps": 0, "kept_own": 0, "seconds": 0.0}
"""In the place of facts that depend on a client's data."""


def site_privacy(config: RunConfig, folder: Path, name: str) -> ClientPrivacy:
    """A client's noise, its ledger in the run's folder at the node; None where the run has no [privacy].

    Noise is the operating system's, never the run's seed, which the server knows.
    """
    if not config.privacy.on:
        return NoPrivacy()
    return DpMechanism(
        config.privacy,
        DpContext(name, folder / PRIVACY, config.rounds, config.training.steps, lambda *_: secure_noise),
    )


def within(config: RunConfig, settings: SiteSettings) -> None:
    """Does the run ask for no more than this client gives?

    Raises:
        RefusedError: it has no [privacy], or a larger ε for one training example over the whole run; or it noises
            training, and this client would choose by its validation examples what to go on from.
    """
    most, name = settings.most_epsilon, settings.name
    if config.privacy.training and settings.worse_by is not None:
        raise RefusedError(
            RefusalCode.PRIVACY_LIMIT,
            f"{name}: worse_by chooses by exact losses, which privacy.training does not cover; leave it out",
        )
    if most is None:
        return
    asked = (
        next(line.epsilon for line in promise(config) if line.covers == EVERYTHING)
        if config.privacy.on
        else math.inf
    )
    if asked > most:
        raise RefusedError(
            RefusalCode.PRIVACY_LIMIT,
            f"{name} takes part in runs of ε up to {most:g}, {RECORD} (most_epsilon), and this run "
            f"{f'has {asked:.2f}' if math.isfinite(asked) else 'protects not everything that leaves'}",
        )


def key_of(request: Request) -> str:
    """What an upload answers: the same request again gets the same message again.

    Raises:
        MessageError: the download cannot be read.
    """
    try:
        download = digest_of(load(request.parts["download"])) if "download" in request.parts else "none"
    except (SafetensorError, ValueError, KeyError) as error:
        raise MessageError(f"the download is not a readable message ({error}); it is refused") from error
    return f"{request.number('place')} {request.number('round')} {request.number('counts')} {download}"
