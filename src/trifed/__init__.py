"""Federated fine-tuning of foundation models when the wire is thin and the sites differ.

    from trifed import make_config, run
    result = run(make_config({"data": {"source": "tickets.csv"}, "model": {"name": "demo"}}))
    result.accuracy, result.client("client-00").predict(["where is my parcel?"])

The names are imported when they are first used, so that the command line's help need not wait for torch.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from trifed.errors import TrifedError
from trifed.version import __version__

if TYPE_CHECKING:
    from trifed.adapters import TriLoraConfig, export_plain_lora
    from trifed.comparison.compare import ComparisonResult, compare, load_comparison
    from trifed.comparison.config import CompareConfig, make_comparison
    from trifed.config import RunConfig, make_config
    from trifed.federation.exports import Classifier, Writer, load_client, load_writer
    from trifed.federation.matching import Matcher, load_matcher
    from trifed.models.export import export_client
    from trifed.reports.writing import report
    from trifed.runner import RunResult, load_result, resume, run

# PEFT imports bitsandbytes wherever it is installed, which then tells of kernels that it lacks, and later of every
# layer whose inputs it rounds.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

_HOMES = {
    "Classifier": "trifed.federation.exports",
    "CompareConfig": "trifed.comparison.config",
    "ComparisonResult": "trifed.comparison.compare",
    "Matcher": "trifed.federation.matching",
    "RunConfig": "trifed.config",
    "RunResult": "trifed.runner",
    "TriLoraConfig": "trifed.adapters",
    "Writer": "trifed.federation.exports",
    "compare": "trifed.comparison.compare",
    "export_client": "trifed.models.export",
    "export_plain_lora": "trifed.adapters",
    "load_client": "trifed.federation.exports",
    "load_comparison": "trifed.comparison.compare",
    "load_matcher": "trifed.federation.matching",
    "load_writer": "trifed.federation.exports",
    "load_result": "trifed.runner",
    "make_comparison": "trifed.comparison.config",
    "make_config": "trifed.config",
    "report": "trifed.reports.writing",
    "resume": "trifed.runner",
    "run": "trifed.runner",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trifed' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


__all__ = [
    "Classifier",
    "CompareConfig",
    "ComparisonResult",
    "Matcher",
    "RunConfig",
    "RunResult",
    "TriLoraConfig",
    "TrifedError",
    "Writer",
    "__version__",
    "compare",
    "export_client",
    "export_plain_lora",
    "load_client",
    "load_comparison",
    "load_matcher",
    "load_result",
    "load_writer",
    "make_comparison",
    "make_config",
    "report",
    "resume",
    "run",
]
