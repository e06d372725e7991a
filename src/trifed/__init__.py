"""Federated fine-tuning of pre-trained models, for sites that differ and slow networks.

    from trifed import make_config, run
    result = run(make_config({"data": {"source": "tickets.csv"}, "model": {"name": "demo"}}))
    result.accuracy, result.client("client-00").predict(["where is my parcel?"])

The names are imported when they are first used, so that the command line's help need not wait for torch.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from trifed.common import deprecated_names
from trifed.common.errors import TrifedError
from trifed.common.version import __version__

if TYPE_CHECKING:
    from trifed.adapters import TriLoraConfig, export_plain_lora
    from trifed.config.metrics import register_metric
    from trifed.config.run import RunConfig, make_config
    from trifed.experiments.compare import ComparisonResult, load_comparison
    from trifed.experiments.compare_config import CompareConfig, make_comparison
    from trifed.experiments.run_result import RunResult
    from trifed.experiments.runner import load_result
    from trifed.experiments.with_progress import compare, resume, run
    from trifed.export.export import export_client, export_clients
    from trifed.federation.client_model import (
        Classifier,
        RetrievalModel,
        Writer,
        load_client,
        load_retrieval_model,
        load_writer,
    )
    from trifed.federation.tagger import Tagger, load_tagger
    from trifed.federation.target_models import (
        MultiLabelClassifier,
        Regressor,
        load_multi_label_classifier,
        load_regressor,
    )
    from trifed.methods import Method, register_method
    from trifed.reports.report import report

# PEFT imports bitsandbytes wherever it is installed, which then tells of kernels that it lacks, and later of every
# layer whose inputs it rounds.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

_HOMES = {
    "Classifier": "trifed.federation.client_model",
    "CompareConfig": "trifed.experiments.compare_config",
    "ComparisonResult": "trifed.experiments.compare",
    "MultiLabelClassifier": "trifed.federation.target_models",
    "Regressor": "trifed.federation.target_models",
    "RetrievalModel": "trifed.federation.client_model",
    "Method": "trifed.methods",
    "RunConfig": "trifed.config.run",
    "RunResult": "trifed.experiments.run_result",
    "Tagger": "trifed.federation.tagger",
    "TriLoraConfig": "trifed.adapters",
    "Writer": "trifed.federation.client_model",
    "compare": "trifed.experiments.with_progress",
    "export_client": "trifed.export.export",
    "export_clients": "trifed.export.export",
    "export_plain_lora": "trifed.adapters",
    "load_client": "trifed.federation.client_model",
    "load_comparison": "trifed.experiments.compare",
    "load_multi_label_classifier": "trifed.federation.target_models",
    "load_regressor": "trifed.federation.target_models",
    "load_retrieval_model": "trifed.federation.client_model",
    "load_tagger": "trifed.federation.tagger",
    "load_writer": "trifed.federation.client_model",
    "load_result": "trifed.experiments.runner",
    "make_comparison": "trifed.experiments.compare_config",
    "make_config": "trifed.config.run",
    "register_method": "trifed.methods",
    "register_metric": "trifed.config.metrics",
    "report": "trifed.reports.report",
    "resume": "trifed.experiments.with_progress",
    "run": "trifed.experiments.with_progress",
}


deprecated_names.install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        return deprecated_names.renamed_attribute("trifed", name)
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "Classifier",
    "CompareConfig",
    "ComparisonResult",
    "Method",
    "MultiLabelClassifier",
    "Regressor",
    "RetrievalModel",
    "RunConfig",
    "RunResult",
    "Tagger",
    "TriLoraConfig",
    "TrifedError",
    "Writer",
    "__version__",
    "compare",
    "export_client",
    "export_clients",
    "export_plain_lora",
    "load_client",
    "load_comparison",
    "load_multi_label_classifier",
    "load_regressor",
    "load_result",
    "load_retrieval_model",
    "load_tagger",
    "load_writer",
    "make_comparison",
    "make_config",
    "register_method",
    "register_metric",
    "report",
    "resume",
    "run",
]
