"""An audit from end to end: warm up, attack the user's method, then the controls, and write what was found."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from trifed.attacks.claims import claims
from trifed.attacks.duration import minutes
from trifed.attacks.images import ImageTrials
from trifed.attacks.others import attacked, in_summaries, labels_of, members_in_updates
from trifed.attacks.plan import Plan
from trifed.attacks.target import TargetClient
from trifed.attacks.texts import TextTrials
from trifed.attacks.warm_up import left_off, warmed_up
from trifed.common.errors import ConfigError, RunError
from trifed.common.files import whole_file
from trifed.config.run import RunConfig, make_config, read_toml
from trifed.data import FederatedData, content_hash, make_clients
from trifed.federation.guards import refuse_few_tokens
from trifed.federation.preparation import environment
from trifed.federation.run_folder import RunFolder, refuse_unwritable
from trifed.methods import METHODS
from trifed.reports.audit.findings import Findings, Labels, Means, Membership, Reconstruction
from trifed.tasks import TASKS

Say = Callable[[str], None]
TRIALS: dict[str, type[TextTrials] | type[ImageTrials]] = {
    "text-classification": TextTrials,
    "image-classification": ImageTrials,
}
KINDS = {"text-classification": "text", "image-classification": "image"}


class Part(BaseModel):
    """What was found of one method."""

    model_config = ConfigDict(extra="forbid")

    key: str
    client: str
    round: int
    reconstruction: list[Reconstruction]
    membership: list[Membership]
    labels: list[Labels]
    means: list[Means]
    notes: list[str]
    environment: dict[str, object]
    seconds: float


def configuration_of(target: Path) -> tuple[RunConfig, Path | None]:
    """The configuration of a TOML file or of a run's folder, and that folder.

    Raises:
        ConfigError: it is not valid, or of a task that is not audited.
    """
    folder = target if target.is_dir() else None
    source = target / "config.toml" if folder else target
    config = make_config(read_toml(source), str(source))
    if config.task not in TRIALS:
        known = " and ".join(TRIALS)
        raise ConfigError([f"task: got '{config.task}'; so far an audit attacks {known}"], str(source))
    return config, folder


def audit(
    target: Path, into: Path, plan: Plan, client: str | None = None, say: Say = lambda text: None
) -> Findings:
    """Attack a run where it stands, or a configuration after a few rounds, and write `audit.json` in `into`.

    What was found of each method is kept there on the way: the same call again goes on.

    Raises:
        TrifedError: whatever the user can mend.
    """
    config, folder = configuration_of(target)
    refuse_unwritable(into, "give another --into")
    own = config.method.name
    # What was found before counts only for a run that stands where it stood, on the same data.
    data = make_clients(config.data, config.seed, TASKS[config.task].roles)
    refuse_batches(data, client, plan)
    stands = f"{content_hash(data)} {RunFolder.open(folder).rounds_done() if folder else 0}"
    names = [own, *(name for name in plan.controls if name != own)]
    parts: list[Part] = []
    for name in names:
        parts.append(_part(config, folder if name == own else None, name, into, plan, client, stands, say))
        found = _findings(config, plan, parts, finished=len(parts) == len(names))
        with whole_file(into / "audit.json") as scratch:
            scratch.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return found


def refuse_batches(data: FederatedData, client: str | None, plan: Plan) -> None:
    """Raises RunError where the client has too few examples for any batch; one that is not there is told later."""
    sizes = [len(found.train) for found in data.clients if len(found.train) and client in (None, found.name)]
    if sizes and sizes[0] < min(plan.batches):
        raise RunError(
            f"--batch {min(plan.batches)}: the client has {sizes[0]} examples to train on; give a smaller one, "
            f"or another --client"
        )


def _part(
    config: RunConfig, folder: Path | None, name: str, into: Path, plan: Plan, client: str | None, stands: str,
    say: Say,
) -> Part:  # fmt: skip
    """What was found of a method, from before or anew."""
    chosen = config if name == config.method.name else config.with_method(name)
    identity = [chosen.run_id(), stands, client, asdict(plan) | {"controls": None}]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    path = into / "parts" / f"{name}.json"
    known = _read(path)
    if known is not None and known.key == key:
        say(f"{name}: from before")
        return known
    began = time.perf_counter()
    say(f"{name}: warming up")
    if folder is not None:
        target = left_off(folder, client)
    else:
        target = warmed_up(chosen, plan.rounds, client, lambda done: say(f"{name}: round {done} of {plan.rounds}"))
    trials = TRIALS[target.config.task](target, plan, say)
    if name == config.method.name and plan.announced:
        say(f"about {minutes(target, trials, plan):.0f} minutes in all, on this machine as busy as it is")
    found = _attack(target, trials, plan, say)
    if name == config.method.name:
        found.notes += _refused(config, target)
    part = found.model_copy(update={"key": key, "seconds": round(time.perf_counter() - began, 1)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as scratch:
        scratch.write_text(part.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return part


def _read(path: Path) -> Part | None:
    try:
        return Part.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None  # of another version, or cut off: it is found again


def _attack(target: TargetClient, trials: TextTrials | ImageTrials, plan: Plan, say: Say) -> Part:
    rows = trials.all()
    say(f"{target.config.method.name}: labels")
    labels = labels_of(target, plan)
    targets = attacked(target, plan)
    members = members_in_updates(targets, plan, say)
    say(f"{target.config.method.name}: summaries")
    told, means = in_summaries(targets)
    shared_model = target.shared_model
    return Part(
        key="", client=target.client.name, round=target.round, reconstruction=rows, membership=members + told,
        labels=labels, means=means, notes=[], seconds=0.0,
        environment=environment(target.config, shared_model.base, shared_model),
    )  # fmt: skip


def _findings(config: RunConfig, plan: Plan, parts: list[Part], finished: bool) -> Findings:
    own, kind = config.method.name, KINDS[config.task]
    rows = [row for part in parts for row in part.reconstruction]
    # The same batches are guessed at for every method: once is enough.
    rows = [row for row in rows if row.attack != "guesser" or row.method == own]
    members = [row for part in parts for row in part.membership]
    full = next((name for name in plan.controls if METHODS[name].adapter == "none"), "")
    plain = next((name for name in plan.controls if METHODS[name].adapter == "lora"), "")
    return Findings.model_validate(
        {
            "name": config.name,
            "method": own,
            "task": config.task,
            "kind": kind,
            "client": parts[0].client,
            "round": parts[0].round,
            "rank": config.adapter.rank,
            "controls": [name for name in plan.controls if name != own],
            "finished": finished,
            "seconds": sum(part.seconds for part in parts),
            "claims": list(claims(own, rows, members, full, plain)),
            "reconstruction": rows,
            "membership": members,
            "labels": [row for part in parts for row in part.labels],
            "means": [row for part in parts for row in part.means],
            "notes": [*_notes(config), *(note for part in parts for note in part.notes)],
            "configuration": {**config.model_dump(mode="json"), "audit": json.loads(json.dumps(asdict(plan)))},
            "environment": parts[0].environment,
        }
    )


def _refused(config: RunConfig, target: TargetClient) -> Iterator[str]:
    """What a guard has against a run that was attacked all the same."""
    if config.privacy.few_tokens != "refuse":
        return
    clients, shared_model = target.simulation.datasets, target.shared_model
    try:
        refuse_few_tokens(clients, shared_model.layout, config.training, config.seed, config.rounds)
    except RunError as error:
        yield f"Without an audit this run is refused: {error}"


def _notes(config: RunConfig) -> Iterator[str]:
    yield "The update is that of a client that has the attacked examples alone, for its configured steps."
    if config.composed_method().summarise is not None and not config.privacy.summary:
        yield "The summary that is sent once says how many examples of each label a client has, exactly."
    yield "Attackers who match are told the labels and, of texts, the lengths; special tokens count nowhere."
