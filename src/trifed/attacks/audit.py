"""An audit from end to end: attack the user's method, then the controls, check expectations, write the results."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from trifed.attacks.expectations import check_expectations
from trifed.attacks.plan import Plan
from trifed.common.errors import ConfigError, RunError
from trifed.common.imports import quick_imports
from trifed.common.lock import held
from trifed.config.roles import ROLES
from trifed.config.run import RunConfig, make_config
from trifed.config.sealing import SealingSettings
from trifed.config.toml_files import read_toml
from trifed.data import FederatedData, content_hash, make_clients
from trifed.federation.preparation import environment
from trifed.federation.run_folder import RunFolder, refuse_unwritable
from trifed.methods import METHODS
from trifed.reports.audit.findings import (
    VIEWS,
    Findings,
    Labels,
    Means,
    Membership,
    Reconstruction,
)

if TYPE_CHECKING:
    from trifed.attacks.reconstruction import BatchReconstruction, Progress
    from trifed.attacks.target import TargetClient

# Functions import what needs torch, so that a mistake in settings or data is reported before torch is loaded.

RECONSTRUCTIONS = {"text-classification": "TextReconstruction", "image-classification": "ImageReconstruction"}
"""Class of the reconstruction attacks, in `trifed.attacks.reconstruction`, by task."""
CONTROL_COST = 1.5
"""Duration of a control relative to the user's method: some train the whole model or have more private factors."""


class MethodFindings(BaseModel):
    """Results for one method, kept in `parts/` while an audit is under way.

    Attributes:
        key: Hash of everything that the results depend on.
    """

    model_config = ConfigDict(extra="forbid")

    key: str = ""
    client: str
    round: int
    reconstruction: list[Reconstruction]
    membership: list[Membership]
    labels: list[Labels]
    means: list[Means]
    notes: list[str]
    environment: dict[str, object]
    seconds: float


def read_source(source: Path) -> tuple[RunConfig, Path | None]:
    """Read the configuration of a TOML file or of a run's folder, and return it with that folder.

    Raises:
        ConfigError: The configuration is not valid, or its task cannot be audited.
    """
    folder = source if source.is_dir() else None
    path = source / "config.toml" if folder else source
    config = make_config(read_toml(path), str(path))
    if config.task not in RECONSTRUCTIONS:
        raise ConfigError(
            [f"task: got '{config.task}'; so far an audit attacks {' and '.join(RECONSTRUCTIONS)}"], str(path)
        )
    return config, folder


def audit(
    source: Path, into: Path, plan: Plan, client: str | None = None, progress: Progress = lambda text: None
) -> Findings:
    """Attack a run after its last round, or a configuration after a few rounds, and write `audit.json` in `into`.

    Each method's results are kept in `into`, so a repeated call continues with the first unfinished method.

    Args:
        source: A run's folder, or a TOML file.
        into: Folder of the results.
        plan: How much is attacked.
        client: Name of the attacked client; the first one with training data unless given.
        progress: Receives a line of text for each step.

    Raises:
        TrifedError: The user can correct it; the message says how.
    """
    config, folder = read_source(source)
    refuse_unwritable(into, "give another --into")
    own = config.method.name
    data = make_clients(config.data, config.seed, ROLES[config.task])
    _refuse_large_batches(data, client, plan)
    # Kept results are valid only for the same data and, of a run, for the same number of rounds.
    state = f"{content_hash(data)} {RunFolder.open(folder).rounds_done() if folder else 0}"
    names = [own, *(name for name in plan.controls if name != own)]
    unsealed = config.model_copy(update={"sealing": SealingSettings()})  # controls show what the attacks can do
    parts: list[MethodFindings] = []
    with held(into):
        for number, name in enumerate(names, 1):
            tell = _numbered(progress, number, len(names))
            chosen = config if name == own else unsealed.with_method(name)
            identity = [chosen.run_id(), state, client, asdict(plan) | {"controls": None}]
            key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
            part = _read(into / "parts" / f"{name}.json")
            if part is not None and part.key == key:
                tell(f"{name}: from before")
            else:
                part = _attack(chosen, folder if name == own else None, plan, client, tell, own=name == own)
                part.key = key
                _write(into, f"parts/{name}.json", part)
            parts.append(part)
            findings = _findings(config, plan, parts, finished=len(parts) == len(names))
            _write(into, "audit.json", findings)
    return findings


def _numbered(progress: Progress, number: int, count: int) -> Progress:
    """Return `progress` with the place of a method among several attacked ones before each text."""
    return progress if count == 1 else lambda text: progress(f"{number} of {count}, {text}")


def _refuse_large_batches(data: FederatedData, client: str | None, plan: Plan) -> None:
    """Refuse batch sizes that all exceed the client's examples; an unknown client is refused later."""
    sizes = [len(c.train) for c in data.clients if len(c.train) and client in (None, c.name)]
    if sizes and sizes[0] < min(plan.batches):
        raise RunError(
            f"--batch {min(plan.batches)}: the client has {sizes[0]} examples to train on; give a smaller one, "
            f"or another --client"
        )


def _read(path: Path) -> MethodFindings | None:
    try:
        return MethodFindings.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None  # written by another version, or incomplete: the method is attacked again


def _write(folder: Path, name: str, model: BaseModel) -> None:
    RunFolder(folder).write_text(name, model.model_dump_json(indent=1) + "\n", durable=True)


def _attack(
    config: RunConfig, folder: Path | None, plan: Plan, client: str | None, progress: Progress, *, own: bool
) -> MethodFindings:
    """Run all attacks on one method; `own` is True for the user's method and False for a control."""
    with quick_imports():
        from trifed.attacks import inference, membership, reconstruction
        from trifed.attacks.target import load_target, train_target
        from trifed.attacks.views import clients_of_round, possible_views, summed_targets

    began, name = time.perf_counter(), config.method.name
    progress(f"{name}: warming up")
    if folder is not None:
        target = load_target(folder, client)
    else:
        target = train_target(
            config, plan.rounds, client, lambda done: progress(f"{name}: round {done} of {plan.rounds}")
        )
    reconstruct = getattr(reconstruction, RECONSTRUCTIONS[config.task])
    attacks = reconstruct(target, plan, progress)
    clients = clients_of_round(target) if own else []
    views = possible_views(target, clients) if own else VIEWS[:1]
    if own and plan.announced:
        progress(
            f"about {estimate_minutes(target, attacks, plan):.0f} minutes in all, on this machine as busy as it is"
        )
    reconstructed = attacks.run()
    progress(f"{name}: labels")
    labels = list(inference.infer_labels(target, plan))
    for summed in summed_targets(target, clients) if len(views) > 1 else ():
        progress(f"{name}: {summed.view} of {summed.size} clients")
        if plan.sums or config.sealing.on:
            reconstructed += reconstruct(summed, plan, progress).run()
        labels += inference.infer_labels(summed, plan)
    members = list(membership.infer_from_updates(target, plan, progress, views))
    progress(f"{name}: summaries")
    targets = membership.membership_targets(target, plan)
    summary_members, means = inference.infer_from_summaries(targets)
    return MethodFindings(
        client=target.client.name, round=target.round, reconstruction=reconstructed,
        membership=members + summary_members, labels=labels, means=means,
        notes=list(_guard_notes(config, target)) if own else [],
        environment=environment(target.config, target.shared_model.base, target.shared_model),
        seconds=round(time.perf_counter() - began, 1),
    )  # fmt: skip


def estimate_minutes(target: TargetClient, attacks: BatchReconstruction[Any], plan: Plan) -> float:
    """Estimate the duration of an audit, controls included, from a sample of each kind of work."""
    from trifed.attacks.membership import cosines
    from trifed.attacks.target import OBSERVATIONS, Subset

    rows = np.array([0])
    observed = target.gradient(rows)
    some = Subset(target.client.train, rows)
    matching = _seconds(lambda: attacks.by_matching(rows, observed, 1)) * attacks.iterations * plan.matched
    matching *= sum((1 + size) / 2 for size in attacks.batches if size <= plan.match_up_to)
    span = _seconds(lambda: attacks.by_span([rows], [observed])) * len(attacks.batches) * (1 + plan.trials / 4)
    membership = _seconds(lambda: cosines(target, target.before, [observed], some)) * 2 * plan.members
    membership *= plan.observed
    levels, controls = len(target.knowledge_levels()), set(plan.controls) - {target.config.method.name}
    seconds = ((matching + span) * len(OBSERVATIONS) + membership * plan.clients) * levels
    return seconds / 60 * (1 + CONTROL_COST * len(controls))


def _seconds(work: Callable[[], object]) -> float:
    work()  # the first time takes longer
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _findings(config: RunConfig, plan: Plan, parts: list[MethodFindings], finished: bool) -> Findings:
    """Put the methods' results together."""
    own, first = config.method.name, parts[0]
    # Guesses are the same for every method: those of the user's own are kept.
    rows = [r for part in parts for r in part.reconstruction if r.attack != "guesser" or r.method == own]
    members = [row for part in parts for row in part.membership]
    full = next((name for name in plan.controls if METHODS[name].adapter == "none"), "")
    plain = next((name for name in plan.controls if METHODS[name].adapter == "lora"), "")
    return Findings.model_validate(
        {
            "name": config.name,
            "method": own,
            "task": config.task,
            "kind": config.task.partition("-")[0],
            "client": first.client,
            "round": first.round,
            "rank": config.adapter.rank,
            "sealed": config.sealing.on,
            "controls": [name for name in plan.controls if name != own],
            "finished": finished,
            "seconds": sum(part.seconds for part in parts),
            "claims": list(check_expectations(own, rows, members, full, plain, sealed=config.sealing.on)),
            "reconstruction": rows,
            "membership": members,
            "labels": [row for part in parts for row in part.labels],
            "means": [row for part in parts for row in part.means],
            "notes": [*_notes(config), *(note for part in parts for note in part.notes)],
            "configuration": {**config.model_dump(mode="json"), "audit": json.loads(json.dumps(asdict(plan)))},
            "environment": first.environment,
        }
    )


def _guard_notes(config: RunConfig, target: TargetClient) -> Iterator[str]:
    """Yield the reason for which a guard would refuse the attacked run."""
    from trifed.federation.guards import refuse_few_tokens

    if config.privacy.few_tokens == "refuse":
        clients, layout = target.simulation.datasets, target.shared_model.layout
        try:
            refuse_few_tokens(clients, layout, config.training_of, config.seed, config.rounds)
        except RunError as error:
            yield f"Without an audit this run is refused: {error}"


def _notes(config: RunConfig) -> Iterator[str]:
    yield "The update is that of a client that has the attacked examples alone, for its configured steps."
    summary = config.composed_method().summarise is not None and not config.privacy.summary
    if config.sealing.on:
        yield "Sealed: the server sees only sums. Attacks on one upload are a control, because nobody sees it."
    elif summary:
        yield "The summary that is sent once says how many examples of each label a client has, exactly."
    yield "Gradient matching is given the labels and the lengths of texts; special tokens are not counted."
