"""Check a run's TOML file without loading weights, and a run's folder."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from trifed.common.errors import RunError
from trifed.common.lock import LOCK
from trifed.config.roles import ROLES
from trifed.config.run import RunConfig, make_config
from trifed.config.settings import TaskName
from trifed.config.toml_files import read_toml
from trifed.data import read_table, read_test
from trifed.data.sources import is_on_hub
from trifed.deployment.checkpoint import FACTS
from trifed.deployment.protocol import AT_THE_CLIENTS
from trifed.federation.manifest import MANIFEST, SUMMARY, changed_files
from trifed.federation.run_folder import PRIVACY, RunFolder
from trifed.privacy.ledger import FILE, read_ledger
from trifed.reports.doctor import Check, State, attempt, broken, check_files, check_lock, judge, under
from trifed.reports.format import listing
from trifed.reports.read import read_source
from trifed.reports.tracking import require_trackers

SETTINGS = "Valid: {0.task} with {0.method.name}, {0.rounds} rounds."
RESTORE = "Put whole files back from a copy; without one, start a new run under another --name."
LEDGER = "Restore a copy; without one, count the run's whole budget as spent and start a new run."


# -- a run's file


def check_run_file(path: Path) -> Iterator[Check]:
    """Check a run's settings, and what they name. Relative paths start at the current folder, as for a run."""
    mend = f"Correct it in {path}; `trifed settings` explains every setting."
    config = yield from attempt("settings", partial(read_run_settings, path), SETTINGS, mend)
    if config is None:
        return
    if config.data.source == AT_THE_CLIENTS:
        yield from attempt("sites", partial(_check_for_sites, config), "Sites can make this run.", mend)
    yield from check_data(config)
    yield from check_base_model(config.model.name, config.task)
    from trifed.federation.training.device_placement import choose_device, slow_precision

    mend = "Set training.device to 'auto', or run on another machine."
    device = yield from attempt("device", partial(choose_device, config.training), "The run uses {}.", mend)
    for warning in slow_precision(config.training) if device else ():
        yield Check(
            "precision", "warning", warning.partition("; ")[0], "Set training.precision to 'auto' or 'fp32'."
        )
    if config.trackers:
        trackers = partial(require_trackers, config.trackers)
        yield from attempt(
            "trackers", trackers, "They are installed.", "Install the extra, or leave the tracker out."
        )
    output = Path("runs") / config.name
    mend = f"`trifed doctor {shlex.quote(str(output))}` checks what is there."
    good = "The run can write its folder."
    yield from attempt("output", partial(RunFolder.refuse_existing, output), good, mend, "warning")


def read_run_settings(path: Path) -> RunConfig:
    """Return settings for a run, or for `trifed flower init`: these have labels, and no source.

    Raises:
        ConfigError: There are mistakes.
    """
    values = read_toml(path)
    data = values.get("data")
    if isinstance(data, dict) and "labels" in data and "source" not in data:
        from trifed.deployment.folders import read_run  # needs the extra flower

        return read_run(path)
    return make_config(values, str(path))


def _check_for_sites(config: RunConfig) -> None:
    """Check what `trifed flower init` checks; ConfigError or RunError if it would refuse the run."""
    from trifed.deployment.run_checks import check_for_sites, check_new_run
    from trifed.deployment.sealed_by_default import sealed_by_default  # needs torch

    check_for_sites(config)
    check_new_run(sealed_by_default(config)[0])


def check_data(config: RunConfig) -> Iterator[Check]:
    """Read the table and the separate test set, as the run would; a name on the hub is not looked up."""
    data, mend = config.data, "Correct the file or [data]."
    for name, source, read in (("data", data.source, read_table), ("test data", data.test, read_test)):
        if isinstance(source, str) and is_on_hub(source):
            yield Check(name, "skipped", f"'{source}' is not here; the run loads it from the hub or its cache.")
        elif source not in (None, AT_THE_CLIENTS):
            table = partial(read, data, ROLES[config.task])
            yield from attempt(name, table, "It can be read.", mend)


def check_base_model(name: str, task: TaskName) -> Iterator[Check]:
    """Check a model's configuration, whether it fits a task, and the headers of its weights."""
    from trifed.tasks.base_model import fitting_tasks, read_config

    state: State = "warning" if is_on_hub(name) else "problem"
    mend = "Correct model.name; a name on the hub needs a network once."
    found = yield from attempt("base model", partial(read_config, name, local_only=True), "", mend, state)
    if found is None:
        return
    folder, fitting = Path(found[0]), fitting_tasks(found[1])
    kind = f"'{name}' is a '{found[1].model_type}' model"
    weights = sorted(folder.glob("*.safetensors"))
    wrong = broken(weights) or ([] if weights or not folder.is_dir() else [f"{folder}: no safetensors file"])
    yield from judge(
        "base model",
        f"{kind}.",
        (
            task not in fitting,
            "problem",
            f"{kind}, which fits {listing(fitting) or 'no task'}; the run has task = '{task}'.",
            "Set another model.name or another task.",
        ),
        (wrong, "problem", f"{listing(wrong)}.", "Fetch the model again, as safetensors."),
    )


def check_ledgers(folder: Path) -> Iterator[Check]:
    """Check the ledger of each client below a folder."""
    for path in sorted(folder.rglob(FILE)):
        yield from attempt("ledger", partial(read_ledger, path), "{0.client}: it can be read.", LEDGER)


# -- a run's folder


def check_run_folder(path: Path) -> Iterator[Check]:
    """Check a run's folder with its baselines."""
    whole = yield from check_files(path, RESTORE)
    yield from check_run(path, whole)
    for inner in sorted((path / "baselines").glob("*/config.toml")):
        yield from under(f"baselines/{inner.parent.name}", check_run(inner.parent, whole))


def check_run(path: Path, whole: bool) -> Iterator[Check]:
    """Check one run. `whole`: whether its JSON and safetensors files can be read."""
    run = RunFolder(path)
    mend = "Put config.toml back; a method from outside needs trifed --method-file FILE.py."
    yield from attempt("settings", partial(read_run_settings, path / "config.toml"), SETTINGS, mend)
    yield from check_lock(path / LOCK, "Wait for the process that leads this run, or end it.")
    yield from attempt("event log", run.events, "It can be read.", RESTORE)
    if not whole:
        yield Check("other checks", "skipped", "They need files that can be read.", "Mend the files first.")
        return
    yield from attempt("checkpoint", partial(check_checkpoint, run), "{}", RESTORE)
    source = yield from attempt("result", partial(read_source, path), "", RESTORE)
    if source:
        states = listing([f"{missing.method} was {missing.state}" for missing in source.study.missing])
        sites = "run.sh in the server's folder" if (path / FACTS).is_file() else ""
        mend = f"If no process works on it, continue it: {sites or source.resume_command}"
        yield from judge("result", "The run is finished.", (states, "warning", f"{states}.", mend))
    if (path / "summary.json").is_file() and not (path / FACTS).is_file():
        yield from attempt("clients", partial(check_clients, run), "{} models can be read.", RESTORE)
    if (path / MANIFEST).is_file() and (path / SUMMARY).is_file():
        yield from attempt("manifest", partial(check_manifest, run), "{}", RESTORE)
    yield from check_ledgers(path / PRIVACY)


def check_manifest(run: RunFolder) -> str:
    """Return a sentence about a finished run's files; RunError if one is not as it was when the run ended."""
    changed = changed_files(run)
    if changed:
        raise RunError(f"{run.path}: not as at the end of the run: {listing(changed)}")
    return "All files are as they were at the end of the run."


def check_checkpoint(run: RunFolder) -> str:
    """Return a sentence about a run's checkpoint; RunError if the run cannot be resumed from it."""
    facts, logged = run.facts(), run.whole_rounds() if run.has_checkpoint() else run.events()
    rounds = [event["round"] for event in logged if event["event"] in ("trained", "round")]
    finished = bool(logged) and logged[-1]["event"] == "finished"
    if not facts:
        if max(rounds, default=0) > 1 and not finished:
            raise RunError(f"{run.path}: no checkpoint.safetensors; to resume the run would delete the event log")
        return "There is none; it is needed only to resume a run after its first round."
    run.load_checkpoint(facts["identity"], cut=False)
    if rounds != sorted(rounds) or set(rounds) != set(range(1, facts["round"] + 1)):
        shown = listing([str(number) for number in dict.fromkeys(rounds)]) or "no round"
        raise RunError(f"{run.path}: the checkpoint is of round {facts['round']}, but the event log has {shown}")
    return f"It is of round {facts['round']} and fits the event log."


def check_clients(run: RunFolder) -> int:
    """Return the number of models that a finished run has for its clients; raises if one is not complete."""
    from trifed.federation.client_model import read_client

    return len(
        [read_client(run.path / "clients" / one["name"]) for one in run.read_json("summary.json")["clients"]]
    )
