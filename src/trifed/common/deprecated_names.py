"""Deprecated names: modules that moved, and attributes that were renamed.

Old names can still be imported. A moved module has one module object under both names.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader
else:  # importing the base class takes 15 ms of every command, and the import system does not ask for it
    Loader = object

DOCUMENTED = {
    "trifed.errors": "trifed.common.errors",
    "trifed.settings": "trifed.config.settings",
    "trifed.tracking": "trifed.reports.tracking",
}
"""Moved modules whose old names are documented: both names are valid, without a warning."""

MOVED = {
    "trifed.demo": "trifed.experiments.demo",
    "trifed.adapters.frames": "trifed.adapters.shared_projections",
    "trifed.atomic": "trifed.common.files",
    "trifed.audit": "trifed.attacks",
    "trifed.audit.audit": "trifed.attacks.audit",
    "trifed.audit.claims": "trifed.attacks.audit",
    "trifed.audit.duration": "trifed.attacks.audit",
    "trifed.audit.guess": "trifed.attacks.scores",
    "trifed.audit.images": "trifed.attacks.reconstruction",
    "trifed.audit.inference": "trifed.attacks.inference",
    "trifed.audit.matching": "trifed.attacks.gradient_matching",
    "trifed.audit.others": "trifed.attacks.inference",
    "trifed.audit.patches": "trifed.attacks.patches",
    "trifed.audit.plan": "trifed.attacks.plan",
    "trifed.audit.scores": "trifed.attacks.scores",
    "trifed.audit.span": "trifed.attacks.span",
    "trifed.audit.summaries": "trifed.attacks.inference",
    "trifed.audit.texts": "trifed.attacks.reconstruction",
    "trifed.audit.victim": "trifed.attacks.target",
    "trifed.audit.warm_up": "trifed.attacks.target",
    "trifed.commands": "trifed.cli",
    "trifed.commands.audit": "trifed.cli.audit",
    "trifed.commands.compare": "trifed.cli.compare",
    "trifed.commands.cost": "trifed.cli.cost",
    "trifed.commands.evaluate": "trifed.cli.models",
    "trifed.commands.export": "trifed.cli.models",
    "trifed.commands.flower": "trifed.cli.flower",
    "trifed.commands.predict": "trifed.cli.models",
    "trifed.commands.privacy": "trifed.cli.runs",
    "trifed.commands.report": "trifed.cli.runs",
    "trifed.commands.track": "trifed.cli.runs",
    "trifed.commands.watch": "trifed.cli.runs",
    "trifed.comparison": "trifed.experiments",
    "trifed.comparison.compare": "trifed.experiments.compare",
    "trifed.comparison.config": "trifed.experiments.compare_config",
    "trifed.comparison.digest": "trifed.experiments.comparison_summary",
    "trifed.comparison.pool": "trifed.experiments.pool",
    "trifed.comparison.statistics": "trifed.experiments.comparison_summary",
    "trifed.comparison.tuning": "trifed.experiments.tuning",
    "trifed.comparison.worker": "trifed.experiments.pool",
    "trifed.controls": "trifed.experiments.baselines",
    "trifed.deployment.leaving": "trifed.deployment.site_settings",
    "trifed.deployment.server": "trifed.deployment.folders",
    "trifed.deployment.site": "trifed.deployment.folders",
    "trifed.engines": "trifed.deployment",
    "trifed.engines.flower": "trifed.deployment.flower",
    "trifed.engines.simulator": "trifed.federation.simulation",
    "trifed.engines.worker": "trifed.deployment.worker",
    "trifed.explain": "trifed.config.validation_errors",
    "trifed.federation.answers": "trifed.federation.training.answers",
    "trifed.federation.batches": "trifed.federation.training.batches",
    "trifed.federation.class_scores": "trifed.federation.training.class_scores",
    "trifed.federation.class_weights": "trifed.federation.training.class_weights",
    "trifed.federation.device_placement": "trifed.federation.training.device_placement",
    "trifed.federation.divergence": "trifed.federation.training.divergence",
    "trifed.federation.dp_sgd": "trifed.federation.training.dp_sgd",
    "trifed.federation.dropout": "trifed.federation.training.dropout",
    "trifed.federation.evaluation": "trifed.federation.training.evaluation",
    "trifed.federation.exports": "trifed.federation.client_model",
    "trifed.federation.loudness": "trifed.federation.privacy_report",
    "trifed.federation.matching": "trifed.federation.client_model",
    "trifed.federation.metrics": "trifed.federation.training.metrics",
    "trifed.federation.noising": "trifed.federation.dp_mechanism",
    "trifed.federation.parallel": "trifed.federation.training.parallel",
    "trifed.federation.placing": "trifed.federation.training.device_placement",
    "trifed.federation.private_training": "trifed.federation.training.dp_sgd",
    "trifed.federation.quantise": "trifed.federation.compression",
    "trifed.federation.shared_model": "trifed.federation.training.shared_model",
    "trifed.federation.site": "trifed.federation.client",
    "trifed.federation.spending": "trifed.federation.privacy_report",
    "trifed.federation.stack": "trifed.federation.training.stack",
    "trifed.federation.store": "trifed.federation.run_folder",
    "trifed.federation.terms": "trifed.federation.context",
    "trifed.federation.wire": "trifed.federation.compression",
    "trifed.federation.workbench": "trifed.federation.training.shared_model",
    "trifed.methods.interface": "trifed.methods.base",
    "trifed.methods.averaging": "trifed.methods.base",
    "trifed.models": "trifed.export",
    "trifed.models.answer": "trifed.export.predict",
    "trifed.models.card": "trifed.export.card",
    "trifed.models.evaluate": "trifed.export.evaluate",
    "trifed.models.evaluate_answers": "trifed.export.evaluate",
    "trifed.models.evaluate_matches": "trifed.export.evaluate",
    "trifed.models.export": "trifed.export.export",
    "trifed.models.find": "trifed.export.locate",
    "trifed.models.predict": "trifed.export.predict",
    "trifed.models.stock": "trifed.export.export",
    "trifed.models.texts": "trifed.export.inference_inputs",
    "trifed.nested": "trifed.common.dict_merge",
    "trifed.runner": "trifed.experiments.runner",
    "trifed.sites": "trifed.deployment",
    "trifed.sites.coordinator": "trifed.deployment.site_transport",
    "trifed.sites.life": "trifed.deployment.membership",
    "trifed.sites.node": "trifed.deployment.site_process",
    "trifed.sites.node_privacy": "trifed.deployment.site_run",
    "trifed.sites.node_settings": "trifed.deployment.site_settings",
    "trifed.sites.node_store": "trifed.deployment.site_store",
    "trifed.sites.opening": "trifed.deployment.membership",
    "trifed.sites.phases": "trifed.deployment.site_process",
    "trifed.sites.protocol": "trifed.deployment.protocol",
    "trifed.sites.records": "trifed.deployment.checkpoint",
    "trifed.sites.refusals": "trifed.deployment.protocol",
    "trifed.sites.roll": "trifed.deployment.client_manager",
    "trifed.sites.standing": "trifed.deployment.checkpoint",
    "trifed.sites.telling": "trifed.federation.events",
    "trifed.tasks.interface": "trifed.tasks.base",
    "trifed.tracking.live": "trifed.reports.tracking.trackers",
    "trifed.tracking.scalars": "trifed.reports.tracking.scalars",
    "trifed.tracking.sinks": "trifed.reports.tracking.trackers",
    "trifed.tracking.to_mlflow": "trifed.reports.tracking.to_mlflow",
    "trifed.tracking.to_tensorboard": "trifed.reports.tracking.to_tensorboard",
    "trifed.training": "trifed.federation.training.local_training",
    "trifed.version": "trifed.common.version",
}
"""Old module -> new module. Importing the old name warns."""

RENAMED = {
    "trifed": {
        "Matcher": "trifed.RetrievalModel",
        "load_matcher": "trifed.load_retrieval_model",
    },
    "trifed.config": {
        "DEFAULT_METHOD": "trifed.config.run.DEFAULT_METHOD",
        "MethodSettings": "trifed.config.run.MethodSettings",
        "RunConfig": "trifed.config.run.RunConfig",
        "make_config": "trifed.config.run.make_config",
        "overlay": "trifed.config.run.overlay",
        "read_toml": "trifed.config.toml_files.read_toml",
        "to_toml": "trifed.config.run.to_toml",
    },
    "trifed.federation.cost": {"Once": "trifed.federation.cost.OneTimeMessage"},
    "trifed.methods": {"Setting": "trifed.methods.ServerContext"},
    "trifed.methods.base": {"Setting": "trifed.methods.base.ServerContext"},
}
"""Module -> old attribute -> today's dotted name: attributes that were public or that the reference documented."""


class _MovedModules(Loader):
    """Import a moved module by its old name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for an old name, None for every other name."""
        return ModuleSpec(fullname, self) if fullname in MOVED or fullname in DOCUMENTED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import the module under its new name and return it."""
        new = DOCUMENTED.get(spec.name) or MOVED[spec.name]
        if spec.name not in DOCUMENTED:
            warnings.warn(f"{spec.name} is now {new}", DeprecationWarning, stacklevel=2)
        module = import_module(new)
        self._own_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own spec; the module has been executed already."""
        module.__spec__ = self._own_spec


def install() -> None:
    """Make old module names importable."""
    sys.meta_path.insert(0, _MovedModules())  # before the path finder, which would load a copy


def renamed_attribute(module: str, name: str) -> Any:
    """Return what a module's attribute with an old name is today, with a warning.

    Raises:
        AttributeError: The name is no old one.
    """
    new = RENAMED[module].get(name)
    if new is None:
        raise AttributeError(f"module '{module}' has no attribute '{name}'")
    warnings.warn(f"{module}.{name} is now {new}", DeprecationWarning, stacklevel=3)
    home, _, attribute = new.rpartition(".")
    return getattr(import_module(home), attribute)
