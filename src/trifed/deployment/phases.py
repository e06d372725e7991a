"""Which requests a run's method and phase ask for, decided from what lies on the site's disk."""

from __future__ import annotations

from trifed.config.run import RunConfig
from trifed.deployment.protocol import Request
from trifed.deployment.refusals import RefusalCode, RefusedError
from trifed.deployment.site_store import SiteStore
from trifed.methods import METHODS


def check_asked_for(request: Request, config: RunConfig, store: SiteStore) -> None:
    """Refuse a request that no server sends that follows the run's settings, before anything is computed for it.

    A train request to a site that was not opened passes: the site answers it with `changed`, and is opened again.
    So do frames that a site has lost, or has already: `Node` compares them with those that it keeps.

    Raises:
        RefusedError: the method does not ask for it, or not at this time.
        MessageError: the request lacks the facts of its kind.
    """
    kind = request.kind
    if kind in ("gradient", "frames") and not METHODS[config.method.name].shared_projections:
        raise RefusedError(RefusalCode.NOT_ASKED_FOR, f"'{config.method.name}' has no {kind}; it is refused")
    if kind == "gradient" and config.privacy.on:
        raise RefusedError(RefusalCode.NOT_ASKED_FOR, "under [privacy] no noise covers a gradient; it is refused")
    phase = _wrong_phase(request, config, store)
    if phase:
        raise RefusedError(RefusalCode.WRONG_PHASE, f"got '{kind}', but {phase}; it is refused")


def _wrong_phase(request: Request, config: RunConfig, store: SiteStore) -> str:
    """The phase that a request does not fit; empty where it fits."""
    kind, trained = request.kind, store.last_round() is not None
    if kind != "finish" and store.finished():
        return "the run is finished"
    if kind in ("gradient", "frames", "finish") and not store.opened():
        return "the run was not opened"
    if kind == "gradient" and (trained or store.has_shared_projections()):
        return "the opening is over"
    if kind == "open" and trained and not request.facts.get("again"):
        return "a round was trained already"
    if kind in ("train", "finish"):
        return _wrong_round(request, config.rounds, store.counted_round() or 0)
    return ""


def _wrong_round(request: Request, rounds: int, counted: int) -> str:
    """Where the round is none that can come next. `counted`: the last one known to count at the server."""
    number, counts = request.number("round"), request.number("counts")
    first, last = (rounds + 1, rounds + 1) if request.kind == "finish" else (counted + 1, rounds)
    if not first <= number <= last or counts >= number:
        return f"round {number} after round {counts} is not between {first} and {last}, and after what counts"
    return ""
