"""Check that a request fits the run's method and phase, by the files on the site's disk."""

from __future__ import annotations

from trifed.config.run import RunConfig
from trifed.deployment.protocol import Request
from trifed.deployment.refusals import RefusalCode, RefusedError
from trifed.deployment.site_store import SiteStore
from trifed.methods import METHODS


def check_asked_for(request: Request, config: RunConfig, store: SiteStore) -> None:
    """Refuse a request that a server which follows the run's settings never sends, before any computation.

    Two requests pass and are checked later by `SiteRun`: a train request to a site that was not opened (it replies
    `changed`, and is opened again), and frames that the site has lost or already has.

    Raises:
        RefusedError: the method does not ask for it, or not in this phase.
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
    """Return why a request does not fit the run's phase; empty if it does."""
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
    """Return why a round cannot be next; empty if it can. `counted`: the last round that counts at the server."""
    number, counts = request.number("round"), request.number("counts")
    first, last = (rounds + 1, rounds + 1) if request.kind == "finish" else (counted + 1, rounds)
    if not first <= number <= last or counts >= number:
        return f"round {number} after round {counts} is not between {first} and {last}, and after what counts"
    return ""
